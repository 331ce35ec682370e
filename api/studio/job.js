// One job: listen, compare, judge, and see how it was made.

import { confirm, el, empty, fill, note, seconds } from "./dom.js";
import { listen } from "./events.js";
import { get, listener, post, save, send } from "./http.js";
import { clips, isOpen, LETTERS, row, WORDS } from "./card.js";
import { erased } from "./gallery.js";
import { heard, play } from "./player.js";

export async function job(main, id) {
  let found;
  try {
    found = await get(`/jobs/${encodeURIComponent(id)}`);
  } catch (error) {
    fill(main, empty("This job is not here", error.message, el("a", { className: "button", href: "#/gallery" }, "To the gallery")));
    return null;
  }
  const redraw = async () => {
    const focused = main.contains(document.activeElement) ? document.activeElement : null;
    // What somebody is writing is not taken from under their hands.
    if (focused?.matches("input:not([type=radio]), select")) { focused.addEventListener("blur", redraw, { once: true }); return; }
    try { found = await get(`/jobs/${found.id}`); } catch { location.hash = "#/gallery"; return; }
    const key = focused?.dataset.key ?? focused?.getAttribute("aria-label"), text = focused?.textContent;
    // What was unfolded stays unfolded, also what was while the answers came.
    await show(() => [...main.querySelectorAll("details")].map((each) => each.open));
    if (focused && !main.contains(document.activeElement)) [...main.querySelectorAll("a, button, input, summary")].find((each) => key ? (each.dataset.key ?? each.getAttribute("aria-label")) === key : each.textContent === text)?.focus();
  };
  let timer = null;
  const soon = () => { clearTimeout(timer); timer = setTimeout(redraw, 300); };
  const show = async (unfolded = () => []) => {
    const [samples, feedback, compared] = await Promise.all([
      Promise.all(found.sample_ids.map((each) => get(`/audio/${each}`).catch(() => null))),
      get(`/jobs/${found.id}/feedback?limit=200`),
      found.sample_ids.length > 1 ? get(`/audio/compare?ids=${found.sample_ids.join(",")}`).catch(() => null) : null,
    ]);
    const open = unfolded();
    fill(main, el("article", { className: "job" },
      el("header", {}, el("p", { className: "crumbs" }, el("a", { href: "#/gallery" }, "Gallery")), el("h1", { className: "prompt", dir: "auto" }, found.prompt),
        el("p", { className: "facts" }, facts(found)), found.warnings.map((warning) => el("p", { className: "warning" }, warning)),
        found.lyrics && el("details", {}, el("summary", {}, "Lyrics"), el("pre", { dir: "auto" }, found.lyrics)),
        found.error && el("p", { className: "problem" }, found.error),
        isOpen(found) && el("progress", { max: 100, value: found.progress, "aria-label": "Progress" })),
      actions(found),
      el("div", { className: "columns" },
        found.sample_ids.length
          ? el("section", { className: "samples", "aria-label": "Samples" }, found.sample_ids.map((_, at) => judged(found, samples, feedback.items, at, redraw)))
          : el("p", { className: "empty" }, isOpen(found) ? "Its samples appear here as they are made." : "No sample was made, or its audio was removed."),
        el("div", { className: "beside" },
          found.sample_ids.length > 1 && preference(found, samples, feedback.items, redraw),
          compared && differences(compared),
          timeline(found, samples, feedback.items)))));
    main.querySelectorAll("details").forEach((each, at) => { each.open = open[at] ?? each.open; });
  };
  // Before the samples are read: what happens in between would be in neither.
  const stop = listen((name, body) => {
    if (name === "connected" || (name === "job" && body.id === found.id) || (name === "changed" && body.kind === "feedback")) soon();
    else if (name === "progress" && body.job_id === found.id) { const bar = main.querySelector("header progress"); if (bar) bar.value = body.progress; }
    else if (name === "changed" && body.kind === "jobs" && body.id === found.id) location.hash = "#/gallery";
  });
  await show();
  return () => { clearTimeout(timer); stop(); };
}

function facts(job) {
  const made = job.generation_params;
  const taken = Object.entries(made.parameters).filter(([, value]) => value !== "").map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  const drawn = [`temperature ${made.temperature}`, `top k ${made.top_k}`];
  const parts = [WORDS[job.status], job.model_id, `${seconds(made.duration)}`, `guidance ${made.guidance_scale}`, ...(made.best_of ? [`best of ${made.best_of}`] : []), ...(taken.length ? taken : drawn)];
  if (job.adapter_id) parts.push(`adapter ${job.adapter_id} × ${made.adapter_scale ?? 1}`);
  for (const name of ["collection", "campaign_id", "client_id"]) if (job[name]) parts.push(`${name.replace("_id", "")} ${job[name]}`);
  return parts.join(" · ");
}

// With a key the studio shows its owner's feedback alone; without one, a browser has a name.
const isMine = (item) => listener() === null || item.user_id === listener();
const mine = (items, sample) => items.find((item) => item.audio_id === sample && item.preferred_over === null && isMine(item));
const signed = (body) => listener() === null ? body : { ...body, user_id: listener() };

function judged(job, samples, items, at, redraw) {
  const id = job.sample_ids[at];
  const own = mine(items, id);
  const stars = el("fieldset", { className: "stars" }, el("legend", {}, `Rating of sample ${LETTERS[at]}`),
    [1, 2, 3, 4, 5].map((value) => el("label", { className: own && own.rating >= value ? "lit" : "" },
      el("input", { type: "radio", name: `r${id}`, "data-key": `r${id}-${value}`, value, checked: own?.rating === value, onchange: () => rate({ rating: value }) }), el("span", { "aria-hidden": "true" }, "★"), el("span", { className: "hidden" }, `${value} of 5`))));
  const tags = el("input", { value: own?.tags.join(", ") ?? "", placeholder: "Tags: warm, too busy", "aria-label": `Tags of sample ${LETTERS[at]}`, onchange: () => rate({}) });
  const notes = el("input", { value: own?.notes ?? "", maxLength: 4000, placeholder: "Notes", "aria-label": `Notes on sample ${LETTERS[at]}`, onchange: () => rate({}) });
  // One after the other: each knows what the one before has kept.
  let kept = own, turn = Promise.resolve();
  const rate = (change) => { turn = turn.then(() => give(change)); };
  async function give(change) {
    const own = kept;
    const said = { rating: own?.rating ?? undefined, tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean), notes: notes.value.trim() || undefined, ...change };
    if (heard[id]) said.seconds_listened = { [id]: Math.round(heard[id] * 10) / 10 };
    if (said.rating === undefined && !said.tags.length && !said.notes) return;
    try {
      const given = own ? await send("PUT", `/feedback/${own.id}`, signed({ audio_id: id, ...said })) : await post("/feedback", signed({ audio_id: id, ...said }));
      kept = given;
      stars.querySelectorAll("label").forEach((label, at) => label.classList.toggle("lit", at < given.rating));
      note("Kept.", "info", async () => {
        if (own) await send("PUT", `/feedback/${own.id}`, signed({ audio_id: id, rating: own.rating ?? undefined, tags: own.tags, notes: own.notes ?? undefined }));
        else await send("DELETE", `/feedback/${given.id}`);
        redraw();
      });
    } catch (error) { note(error.message, "error"); }
  }
  const sample = samples[at];
  return el("div", { className: "judged" }, row(job, at),
    el("p", { className: "facts" }, sample ? `seed ${sample.generation_params.seed} · ${seconds(sample.duration_seconds)} · ${sample.loudness_lufs === null ? "silent" : `${sample.loudness_lufs.toFixed(1).replace("-", "−")} LUFS`}` : "The audio is away."),
    sample?.scores.length > 0 && scores(sample),
    el("div", { className: "say" }, stars, tags, notes,
      el("details", { className: "menu" }, el("summary", {}, "More"), el("div", {},
        ["wav", "flac", "mp3", "ogg"].map((form) => el("button", { type: "button", className: "quiet", onclick: () => save(`/audio/${id}/stream?format=${form}`, `${id}.${form}`).catch((error) => note(error.message, "error")) }, `Save as ${form.toUpperCase()}`)),
        sample && el("a", { className: "button quiet", href: `#/?from=${job.id}&continue=${id}` }, "Go on from its end"),
        sample && el("a", { className: "button quiet", href: `#/?from=${job.id}&seed=${sample.generation_params.seed}` }, "Again with this seed")))));
}

// Of the candidates for one sample, the one that was kept first.
function scores(sample) {
  const by = sample.picked_by ?? "likelihood", kept = sample.generation_params.seed;
  const shown = (value) => value === null ? "–" : value.toFixed(3).replace("-", "−");
  const ranked = sample.scores.toSorted((one, other) => (other.seed === kept) - (one.seed === kept) || (other[by] ?? -Infinity) - (one[by] ?? -Infinity));
  const named = ["likelihood", "preference"].filter((name) => ranked.some((each) => each[name] !== null));
  return el("details", { className: "scores" }, el("summary", {}, `Best of ${ranked.length} by ${by}: ${shown(ranked[0][by])}`),
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Seed"), named.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ranked.map((each) => el("tr", {}, el("th", { scope: "row" }, `${each.seed}${each.seed === kept ? ", kept" : ""}`), named.map((name) => el("td", {}, shown(each[name]))))))),
    el("p", { className: "hint" }, SCORES[by]));
}

const SCORES = {
  likelihood: "How many nats a code the prompt makes it likelier: more is closer to the prompt, as the model finds.",
  preference: "The log-odds that the adapter's preference model gives it: more is liked better.",
};

function preference(job, samples, items, redraw) {
  const state = { first: 0, second: 1 };
  const pair = el("div", { className: "pair" });
  const paint = () => {
    const ids = [job.sample_ids[state.first], job.sample_ids[state.second]];
    const said = items.find((item) => item.preferred_over !== null && isMine(item) && ids.includes(item.audio_id) && ids.includes(item.preferred_over));
    const chosen = said && (said.verdict === "preferred" ? said.audio_id : said.verdict);
    const answer = (key, label, body) => el("button", { type: "button", className: "choice", "data-key": `choice-${label}`, "aria-pressed": String(chosen === key), onclick: () => give(body, said) }, label);
    const pick = (name) => el("select", { "aria-label": name === "first" ? "First sample" : "Second sample", onchange: (event) => { state[name] = Number(event.target.value); paint(); } },
      job.sample_ids.map((_, at) => el("option", { value: at, disabled: at === state[name === "first" ? "second" : "first"], selected: at === state[name] }, LETTERS[at])));
    fill(pair, job.sample_ids.length > 2 && el("p", { className: "row" }, pick("first"), "or", pick("second")),
      el("div", { className: "row" },
        answer(ids[0], `${LETTERS[state.first]} is better`, { audio_id: ids[0], preferred_over: ids[1] }),
        answer(ids[1], `${LETTERS[state.second]} is better`, { audio_id: ids[1], preferred_over: ids[0] }),
        answer("tie", "No difference", { audio_id: ids[0], preferred_over: ids[1], verdict: "tie" }),
        answer("both_bad", "Both bad", { audio_id: ids[0], preferred_over: ids[1], verdict: "both_bad" }),
        el("button", { type: "button", onclick: () => play(job.id, job.prompt, clips(job, samples), state.first) }, "Listen")));
  };
  async function give(body, said) {
    try {
      const before = said && { audio_id: said.audio_id, preferred_over: said.preferred_over, verdict: said.verdict };
      const put = async (now, next) => {
        if (now && next && now.audio_id === next.audio_id) return send("PUT", `/feedback/${now.id}`, signed(next));
        const given = next && await post("/feedback", signed(next));
        if (now) await send("DELETE", `/feedback/${now.id}`);
        return given;
      };
      const given = await put(said, body);
      note("Kept.", "info", async () => { await put(given, before); redraw(); });
      redraw();
    } catch (error) { note(error.message, "error"); }
  }
  paint();
  return el("section", { "aria-labelledby": "better" }, el("h2", { id: "better" }, "Which one is better?"), pair);
}

function differences(compared) {
  if (!compared.differences.length) return null;
  return el("section", { "aria-labelledby": "differ" }, el("h2", { id: "differ" }, compared.same_prompt ? "What differs" : "What differs, besides the prompt"),
    el("div", { className: "scroll", tabindex: 0, role: "group", "aria-label": "Differing parameters" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Parameter"), compared.samples.map((_, at) => el("th", { scope: "col" }, LETTERS[at])))),
      el("tbody", {}, compared.differences.map((each) => el("tr", {}, el("th", { scope: "row" }, each.parameter), compared.samples.map((sample) => el("td", {}, String(each.values[sample.id] ?? "–")))))))));
}

function actions(job) {
  const again = async (body) => {
    try { location.hash = `#/job/${(await post(`/jobs/${job.id}/rerun`, body)).job_id}`; } catch (error) { note(error.message, "error"); }
  };
  return el("div", { className: "row actions" },
    el("button", { type: "button", onclick: () => again({}) }, "Make more of this"),
    el("a", { className: "button", href: `#/?from=${job.id}` }, "Again with a change"),
    job.sample_ids.length > 0 && el("button", { type: "button", onclick: () => save(`/jobs/${job.id}/audio.zip`, `${job.id}.zip`).catch((error) => note(error.message, "error")) }, "Save all as ZIP"),
    isOpen(job) && el("button", { type: "button", onclick: () => send("DELETE", `/generate/${job.id}`).catch((error) => note(error.message, "error")) }, "Stop"),
    el("button", { type: "button", className: "danger", onclick: async () => {
      if (!await confirm("Delete this job?", erased([job]), "Delete")) return;
      try { await send("DELETE", `/jobs/${job.id}`); location.hash = "#/gallery"; } catch (error) { note(error.message, "error"); }
    } }, "Delete"));
}

// Every moment that is known of it, in order, with how long it took from the one before.
function timeline(job, samples, items) {
  const ended = { completed: "Completed", failed: "Failed", cancelled: "Stopped" }[job.status] ?? "Ended";
  const moments = [["Asked for", job.created_at], [job.attempt > 1 ? `Begun, attempt ${job.attempt}` : "Begun", job.started_at], ...samples.map((sample, at) => [`Sample ${LETTERS[at]} was made`, sample?.created_at]), [ended, job.completed_at],
    ...items.map((item) => [`${said(item, job)}${item.user_id ? ` by ${item.user_id}` : ""}`, item.created_at]), ["Its audio was removed", job.purged_at]].filter(([, at]) => at).sort((one, other) => new Date(one[1]) - new Date(other[1]));
  const clock = (at) => new Date(at).toLocaleTimeString(undefined, { timeStyle: "medium" });
  const since = (at) => at && (new Date(moments[at][1]) - new Date(moments[at - 1][1])) / 1000;
  const gap = (value) => value >= 86400 ? `+${Math.round(value / 86400)} d` : value >= 3600 ? `+${Math.round(value / 3600)} h` : value >= 0.05 ? `+${seconds(value)}` : "";
  const refused = job.outcomes.filter((each) => each.reason);
  return el("section", { "aria-labelledby": "events" }, el("h2", { id: "events" }, "What happened"), el("p", { className: "facts" }, new Date(job.created_at).toLocaleDateString(undefined, { dateStyle: "long" })),
    el("ol", { className: "timeline" }, moments.map(([name, at], index) => el("li", {}, el("time", { dateTime: at }, clock(at)), el("span", { dir: "auto" }, name), el("span", { className: "gap" }, gap(since(index)))))),
    refused.length > 0 && el("details", {}, el("summary", {}, `${refused.length} events were not counted`), el("ul", {}, refused.map((each) => el("li", {}, `${each.type}: ${each.reason}`)))));
}

function said(item, job) {
  const letter = (id) => LETTERS[job.sample_ids.indexOf(id)] ?? "one that is gone";
  if (item.preferred_over === null) return `${letter(item.audio_id)} was ${item.rating === null ? "described" : `rated ${item.rating}`}`;
  return { tie: "No difference was heard", both_bad: "Both were called bad" }[item.verdict] ?? `${letter(item.audio_id)} was preferred to ${letter(item.preferred_over)}`;
}
