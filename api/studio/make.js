// Write a prompt, see what will be made, and watch the queue.

import { choice, el, field, fill, note, seconds } from "./dom.js";
import { listen } from "./events.js";
import { get, post, query, send } from "./http.js";
import { card, isOpen } from "./card.js";
import { own } from "./own.js";

const EARLIER = "earlier prompts";
const EXAMPLES = ["slow blues in a smoky bar, brushed drums", "happy folk with acoustic guitar and whistle, 120 bpm", "calm ambient pads, no drums", "driving techno with a deep bass"];
const draft = JSON.parse(sessionStorage.getItem("draft") ?? "{}");

export async function make(main, changes = {}) {
  Object.assign(draft, changes);
  const [models, adapters] = await Promise.all([get("/models"), get("/adapters?limit=200")]);
  const active = models.items.find((model) => model.is_active) ?? models.items[0];
  const form = composer(models.items, adapters.items, active);
  const queue = el("div", { className: "cards" });
  fill(main, el("h1", { className: "hidden" }, "Make"), el("div", { className: "make" }, form, el("section", { "aria-labelledby": "queue" }, el("h2", { id: "queue" }, "Queue and latest"), queue)));
  const jobs = new Map();
  const shown = new Map();
  // Clips of a blind test are heard in the test: here one could find out which arm is which.
  const isHidden = (job) => job.ab_test_id && !isOpen(job);
  const show = (job) => {
    if (isHidden(job)) { forget(job.id); return; }
    jobs.set(job.id, job);
    if (shown.has(job.id)) { shown.get(job.id).update(job); places(); return; }
    const node = card(job, { remove: () => forget(job.id) });
    const later = [...shown].filter(([id]) => jobs.get(id).created_at > job.created_at).map(([, other]) => other);
    const last = [...queue.children].findLast((child) => later.includes(child));
    if (last) last.after(node);
    else queue.prepend(node);
    shown.set(job.id, node);
    blank();
    places();
  };
  const forget = (id) => { jobs.delete(id); shown.get(id)?.remove(); shown.delete(id); blank(); };
  // Where each waiting job stands, once things have been quiet for a moment.
  const places = () => {
    clearTimeout(places.timer);
    if (![...jobs.values()].some((job) => job.status === "queued")) return;
    places.timer = setTimeout(async () => {
      const waiting = await get("/jobs?status=queued&limit=200").catch(() => null);
      if (!waiting) return;
      const line = inLine(waiting.items);
      for (const [id, node] of shown) if (jobs.get(id).status === "queued") node.place(line.has(id) ? line.get(id) ? `${line.get(id)} before it` : "next" : "");
    }, 300);
  };
  const blank = () => {
    const there = queue.querySelector(".empty");
    if (shown.size) there?.remove();
    else if (!there) queue.append(el("div", { className: "empty" }, el("h3", {}, "Nothing made yet"), el("p", {}, "Describe a piece of music and press Make. Clips appear here as they are made. Or begin with one of these:"),
      el("div", { className: "row" }, EXAMPLES.map((each) => el("button", { type: "button", onclick: () => form.write(each) }, each)))));
  };
  // What the stream says while a read is under way is newer than the read.
  const heard = new Set();
  const load = async () => {
    heard.clear();
    const latest = (await get("/jobs?limit=40")).items.filter((job) => !isHidden(job)).slice(0, 12);
    const ids = new Set(latest.map((job) => job.id));
    for (const [id, node] of shown) if (!ids.has(id) && !isOpen(jobs.get(id))) { node.remove(); shown.delete(id); jobs.delete(id); }
    latest.reverse().filter((job) => !heard.has(job.id)).forEach(show);
    blank();
  };
  form.addEventListener("made", (event) => get(`/jobs/${event.detail}`).then((job) => {
    if (!heard.has(job.id)) show(job);
    // Where the queue is below the form, nobody would see that something happens.
    if (innerWidth <= 860) shown.get(job.id)?.scrollIntoView({ block: "center" });
  }, (error) => note(error.message, "error")));
  // Listening begins before the read: what happens in between would be in neither.
  const stop = listen((name, body) => {
    if (name === "connected") load();
    else if (name === "job") { heard.add(body.id); show(body); }
    else if (name === "progress" && jobs.has(body.job_id)) {
      const job = jobs.get(body.job_id);
      if (job.attempt === body.attempt && job.status === "processing") shown.get(job.id).progress({ progress: body.progress, stage: body.stage, eta_seconds: body.eta_seconds });
    } else if (name === "changed" && body.kind === "jobs" && shown.has(body.id)) forget(body.id);
    else if (name === "changed" && body.kind === "feedback") reload();
  });
  await load();
  return () => { clearTimeout(places.timer); clearTimeout(reload.timer); stop(); };

  function reload() {
    clearTimeout(reload.timer);
    reload.timer = setTimeout(load, 400);
  }
}

// How many jobs are made before each: higher priorities first, and within one the users take turns.
function inLine(waiting) {
  const turns = new Map();
  const ordered = waiting.toSorted((one, other) => one.created_at < other.created_at ? -1 : 1).map((job) => {
    const turn = `${job.priority} ${job.user_id ?? job.client_id ?? job.ab_test_id}`;
    turns.set(turn, (turns.get(turn) ?? -1) + 1);
    return { job, turn: turns.get(turn) };
  });
  ordered.sort((one, other) => other.job.priority - one.job.priority || one.turn - other.turn);
  return new Map(ordered.map(({ job }, at) => [job.id, at]));
}

function composer(models, adapters, active) {
  const earlier = JSON.parse(localStorage.getItem(EARLIER) ?? "[]");
  let at = -1;
  const keep = (name) => (event) => { draft[name] = event.target.value; sessionStorage.setItem("draft", JSON.stringify(draft)); check(); };
  const text = el("textarea", { rows: 4, required: true, maxLength: 4000, dir: "auto", placeholder: "slow blues in a smoky bar, brushed drums", value: draft.prompt ?? "", oninput: keep("prompt"),
    onkeydown: (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (by && event.altKey && earlier.length) { event.preventDefault(); at = Math.min(Math.max(-1, at + by), earlier.length - 1); text.value = at < 0 ? "" : earlier[at]; keep("prompt")({ target: text }); }
    } });
  const input = (name, props) => el("input", { value: draft[name] ?? "", oninput: keep(name), ...props });
  const model = choice(models.map((each) => [each.id, each.id + (each.is_loaded ? "" : " (no worker has it)")]), draft.model_id && models.some((each) => each.id === draft.model_id) ? draft.model_id : active.id, { onchange: (event) => { keep("model_id")(event); limits(); } });
  const adapter = el("select", { onchange: (event) => { keep("adapter_id")(event); scaled(); } });
  const scale = input("adapter_scale", { type: "number", min: 0, max: 2, step: "any", placeholder: "1" });
  const duration = input("duration", { type: "number", step: "any" });
  const samples = input("num_samples", { type: "number", min: 1, step: 1, value: draft.num_samples ?? 2 });
  samples.addEventListener("input", () => candidates());
  const best = input("best_of", { type: "number", min: 1, step: 1, placeholder: "1" });
  const seed = input("seed", { type: "number", min: 0, step: 1, placeholder: "random" });
  const guidance = input("guidance_scale", { type: "number", step: "any" });
  const temperature = input("temperature", { type: "number", step: "any" });
  const top_k = input("top_k", { type: "number", step: 1 });
  const attributes = { style: input("style", { maxLength: 200 }), tempo: input("tempo", { maxLength: 200, placeholder: "90 bpm" }), instrumentation: input("instrumentation", { placeholder: "violin, piano" }), mood: input("mood", { maxLength: 200 }) };
  const filed = { collection: input("collection", { maxLength: 200 }), campaign_id: input("campaign_id", { maxLength: 200 }), client_id: input("client_id", { maxLength: 200 }) };
  const warnings = el("div", { className: "warnings", "aria-live": "polite" });
  const button = el("button", { className: "primary wide" }, "Make");
  const hint = el("p", { className: "hint" });
  const drawn = [["Guidance", guidance, "guidance_scale"], ["Temperature", temperature, "temperature"], ["Top k", top_k, "top_k"]].map(([label, control, name]) => ({ control, name, node: field(label, control) }));
  const extras = own(draft, () => sessionStorage.setItem("draft", JSON.stringify(draft)));
  const bestField = field("Best of", best, "So many are made for each sample, and the one that fits the prompt best is kept.");
  const adapterField = field("Adapter", adapter);
  const scaleField = field("How much of it", scale, "0 is the model alone, 1 the adapter as it was trained.");
  const form = el("form", { className: "composer", "aria-label": "Make music", onsubmit: submit },
    field("What do you want to hear?", text, "Ctrl + Enter makes it; Alt + ↑ brings earlier prompts back."),
    warnings,
    el("div", { className: "grid" }, field("Seconds", duration), field("Samples", samples)),
    hint,
    extras.nodes,
    el("details", { open: ["style", "tempo", "instrumentation", "mood"].some((name) => draft[name]) }, el("summary", {}, "Style, tempo, instruments, mood"),
      el("div", { className: "grid" }, field("Style", attributes.style), field("Tempo", attributes.tempo), field("Instruments", attributes.instrumentation), field("Mood", attributes.mood))),
    el("details", { open: Boolean(draft.adapter_id || draft.seed || draft.best_of) }, el("summary", {}, "Model, adapter, seed, sampling"),
      field("Model", model), adapterField, scaleField,
      el("div", { className: "grid" }, field("Seed", seed), drawn.map(({ node }) => node)), bestField),
    el("details", {}, el("summary", {}, "File it under"), el("div", { className: "grid" }, field("Collection", filed.collection), field("Campaign", filed.campaign_id), field("Client", filed.client_id))),
    button);

  function chosen() { return models.find((each) => each.id === model.value) ?? active; }
  function limits() {
    const found = chosen();
    duration.min = found.min_duration;
    duration.max = found.max_extended_duration;
    duration.placeholder = String(found.parameters.duration.default);
    const goesOn = found.max_extended_duration > found.max_duration ? `; beyond ${seconds(found.max_duration)} it goes on from its own end` : "";
    hint.textContent = `${found.id} makes ${seconds(found.min_duration)} to ${seconds(found.max_extended_duration)}${goesOn}. Licence: ${found.license}.${found.notice ? ` ${found.notice}` : ""}`;
    bestField.hidden = !found.capabilities.includes("best_of");
    candidates();
    extras.show(found);
    adapterField.hidden = !found.capabilities.includes("adapters");
    for (const { control, name, node } of drawn) {
      const range = found.parameters[name];
      node.hidden = !range;
      if (range) { control.min = range.minimum; control.max = range.maximum; control.placeholder = String(range.default); }
    }
    const fitting = adapters.filter((each) => each.is_active && each.base_model.split("@")[0] === found.id.split("@")[0]);
    fill(adapter, el("option", { value: "" }, "None: the model alone"), fitting.map((each) => el("option", { value: each.id }, `${each.name} ${each.version}`)));
    adapter.value = fitting.some((each) => each.id === draft.adapter_id) ? draft.adapter_id : "";
    scaled();
  }
  // All candidates together are bounded as samples are.
  function candidates() {
    const most = chosen().parameters.num_samples.maximum;
    samples.max = most;
    best.max = Math.max(1, Math.floor(most / Math.max(1, Number(samples.value) || 1)));
  }
  function scaled() { scaleField.hidden = !adapter.value; }

  let checking = null;
  function check() {
    checking?.abort();
    clearTimeout(check.timer);
    if (!text.value.trim()) { fill(warnings); return; }
    check.timer = setTimeout(async () => {
      checking = new AbortController();
      try {
        const found = await get(`/prompts/reading${query({ text: text.value, model_id: model.value })}`, { signal: checking.signal });
        fill(warnings, found.warnings.map((warning) => el("p", { className: "warning" }, warning)));
      } catch { /* the receipt says it as well */ }
    }, 300);
  }

  async function submit(event) {
    event.preventDefault();
    const number = (control) => control.value === "" ? undefined : Number(control.value);
    const body = {
      model_id: model.value, num_samples: number(samples), duration: number(duration), adapter_id: adapter.value || undefined,
      adapter_scale: adapter.value ? number(scale) : undefined, seed: number(seed),
      best_of: !bestField.hidden && number(best) > 1 ? number(best) : undefined,
      ...Object.fromEntries(drawn.filter(({ node }) => !node.hidden).map(({ name, control }) => [name, number(control)])),
      ...extras.said(),
      continue_from: draft.continue_from || undefined,
      ...Object.fromEntries(Object.entries(filed).map(([name, control]) => [name, control.value.trim() || undefined])),
    };
    const said = Object.fromEntries(Object.entries(attributes).map(([name, control]) => [name, control.value.trim()]).filter(([, value]) => value));
    button.disabled = true;
    try {
      if (Object.keys(said).length) {
        if (said.instrumentation) said.instrumentation = said.instrumentation.split(",").map((each) => each.trim()).filter(Boolean);
        body.prompt_id = (await post("/prompts", { text: text.value, attributes: said })).id;
      } else body.prompt = text.value;
      const receipt = await post("/generate", body);
      receipt.warnings?.forEach((warning) => note(warning, "warning"));
      localStorage.setItem(EARLIER, JSON.stringify([text.value, ...earlier.filter((each) => each !== text.value)].slice(0, 50)));
      earlier.unshift(text.value);
      delete draft.continue_from;
      form.dispatchEvent(new CustomEvent("made", { detail: receipt.job_id }));
      note("Queued.", "info", () => send("DELETE", `/jobs/${receipt.job_id}`).catch((error) => note(error.message, "error")));
    } catch (error) {
      note(error.message, "error");
    } finally {
      button.disabled = false;
    }
  }
  limits();
  check();
  return Object.assign(form, { write: (said) => { text.value = said; keep("prompt")({ target: text }); text.focus(); } });
}
