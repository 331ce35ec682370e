// Everything that was made. Rows are drawn as they scroll into view, and pages are fetched as they are needed.

import { choice, confirm, el, fill, note, seconds, when } from "./dom.js";
import { listen } from "./events.js";
import { get, query, save, send } from "./http.js";
import { LETTERS, row, WORDS } from "./card.js";
import { Pages } from "./pages.js";

const ROW = 76; // pixels, as in the style sheet
const IN_ONE_ARCHIVE = 50;

export async function gallery(main, fields) {
  const models = (await get("/models")).items;
  const set = (name, value) => { location.hash = `#/gallery${query({ ...fields, [name]: value })}`; };
  const input = (name, label, props = {}) => el("label", {}, label, el("input", { value: fields[name] ?? "", onchange: (event) => set(name, event.target.value.trim()), ...props }));
  const total = el("p", { className: "facts", role: "status" });
  const filtered = Object.keys(fields).length;
  const filters = el("details", { className: "filters", open: innerWidth > 860 || filtered > 0 }, el("summary", {}, "Filters"),
    el("form", { "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      el("label", {}, "Status", choice([["", "any"], ...["completed", "processing", "queued", "failed", "cancelled"].map((each) => [each, WORDS[each]])], fields.status, { onchange: (event) => set("status", event.target.value) })),
      el("label", {}, "Feedback", choice([["", "with or without"], ["true", "with"], ["false", "without"]], fields.has_feedback, { onchange: (event) => set("has_feedback", event.target.value) })),
      el("label", {}, "Model", choice([["", "any"], ...models.map((each) => [each.id, each.id])], fields.model_id, { onchange: (event) => set("model_id", event.target.value) })),
      input("collection", "Collection"), input("campaign_id", "Campaign"), input("client_id", "Client"),
      input("start_date", "From", { type: "date" }), input("end_date", "Until", { type: "date" }),
      filtered > 0 && el("a", { className: "button quiet", href: "#/gallery" }, "Clear")));
  const list = el("div", { className: "rows", role: "list", "aria-label": "Jobs" });
  const scroller = el("div", { className: "scroller", tabindex: 0, role: "group", "aria-label": "Gallery, scrolls" }, list);
  const chosen = new Map();
  const bar = el("div", { className: "row chosen", role: "group", "aria-label": "Selection", hidden: true });
  fill(main, el("section", { className: "gallery" }, el("h1", {}, "Gallery"), filters, el("div", { className: "row" }, total, bar), scroller));
  const nodes = new Map();
  const failed = (error) => { total.textContent = error.message; };
  const source = new Pages(fields, () => paint(), failed);

  const paint = () => {
    const count = source.count;
    total.textContent = source.said;
    list.style.setProperty("height", `${Math.max(1, count) * ROW}px`);
    if (!count) {
      nodes.forEach(({ node }) => node.remove());
      nodes.clear();
      if (!source.isComplete) return;
      fill(list, el("div", { className: "empty" }, el("h2", {}, filtered ? "Nothing fits these filters" : "Nothing made yet"), el("p", {}, filtered ? "Loosen or clear them." : "What you make is kept here."), el("a", { className: "button", href: "#/" }, "Make something")));
      return;
    }
    list.querySelector(".empty")?.remove();
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 5);
    const last = Math.min(count - 1, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + 5);
    const seen = new Set();
    for (let at = first; at <= last; at++) {
      const job = source.at(at);
      if (!job || seen.has(job.id)) continue;
      seen.add(job.id);
      const mark = `${job.status} ${job.sample_ids.length} ${job.feedback.count} ${job.feedback.mean_rating}`;
      let kept = nodes.get(job.id);
      if (kept?.mark !== mark) {
        const node = line(job, chosen, choose);
        if (kept) kept.node.replaceWith(node);
        else list.append(node);
        nodes.set(job.id, kept = { node, mark });
      }
      kept.node.style.setProperty("top", `${at * ROW}px`);
    }
    // A row in which somebody stands stays, so that the focus does.
    for (const [id, { node }] of nodes) if (!seen.has(id) && (source.isLoaded(first, last) || nodes.size > 200) && !node.contains(document.activeElement)) { node.remove(); nodes.delete(id); }
  };

  function choose(job, on) {
    if (on) chosen.set(job.id, job);
    else chosen.delete(job.id);
    bar.hidden = !chosen.size;
    const jobs = [...chosen.values()], heard = jobs.filter((each) => each.sample_ids.length && ["completed", "failed", "cancelled"].includes(each.status));
    fill(bar, el("span", { role: "status" }, `${jobs.length} selected`),
      heard.length > 0 && el("button", { type: "button", onclick: () => {
        if (heard.length > IN_ONE_ARCHIVE) { note(`${heard.length} jobs are too many for one archive; select up to ${IN_ONE_ARCHIVE}.`, "warning"); return; }
        save(`/jobs/audio.zip?ids=${heard.map((each) => each.id).join(",")}`, "selection.zip").catch((error) => note(error.message, "error"));
      } }, "Save as ZIP"),
      el("button", { type: "button", className: "danger", onclick: () => erase(jobs) }, "Delete"),
      el("button", { type: "button", className: "quiet", onclick: () => { chosen.clear(); list.querySelectorAll(":checked").forEach((box) => { box.checked = false; }); bar.hidden = true; } }, "Select none"));
  }

  async function erase(jobs) {
    if (!await confirm(jobs.length === 1 ? "Delete this job?" : `Delete these ${jobs.length} jobs?`, erased(jobs), "Delete")) return;
    for (const job of jobs) {
      try { await send("DELETE", `/jobs/${job.id}`); choose(job, false); } catch (error) { note(error.message, "error"); break; }
    }
    source.renew();
  }

  scroller.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  const resized = new ResizeObserver(paint);
  resized.observe(scroller);
  source.begin();
  let timer = null;
  const stop = listen((name, body) => {
    if (name !== "connected" && name !== "job" && !(name === "changed" && ["jobs", "feedback"].includes(body.kind))) return;
    timer ??= setTimeout(() => { timer = null; source.renew(); }, 1000);
  });
  return () => { clearTimeout(timer); resized.disconnect(); source.end(); stop(); };
}

// What goes for good when jobs are deleted.
export function erased(jobs) {
  const sum = (of) => jobs.reduce((all, job) => all + of(job), 0), samples = sum((job) => job.sample_ids.length), said = sum((job) => job.feedback.count), tested = sum((job) => job.ab_test_id ? 1 : 0);
  const judgements = said === 1 ? "one judgement of them" : `${said} judgements of them`;
  return [
    samples ? `This removes ${samples === 1 ? "one sample" : `${samples} samples`} for good.` : "This removes the job for good. It has no audio.",
    said ? `It erases ${judgements}, from the datasets that have it too.` : "Nobody has given feedback that would be erased.",
    tested ? `${tested === 1 ? "One pair of a blind test is" : `Up to ${tested} pairs of blind tests are`} left out from now on.` : "No blind test loses a pair.",
  ];
}

function line(job, chosen, choose) {
  return el("div", { className: `line ${job.status}`, role: "listitem" },
    el("input", { type: "checkbox", checked: chosen.has(job.id), "aria-label": `Select ${job.prompt.slice(0, 80)}`, onchange: (event) => choose(job, event.target.checked) }),
    el("div", { className: "what" }, el("a", { className: "prompt one-line", dir: "auto", href: `#/job/${job.id}`, title: job.prompt }, job.prompt),
      el("p", { className: "facts one-line" }, [WORDS[job.status], seconds(job.generation_params.duration), when(job.created_at), job.feedback.count && `rated ${job.feedback.mean_rating?.toFixed(1) ?? "–"}`, job.ab_test_id && "of a blind test", job.collection].filter(Boolean).join(" · "))),
    el("div", { className: "strip" }, job.sample_ids.slice(0, 2).map((_, index) => row(job, index)), job.sample_ids.length > 2 && el("span", { className: "facts" }, `+${job.sample_ids.length - 2} to ${LETTERS[job.sample_ids.length - 1]}`)));
}
