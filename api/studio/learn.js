// From feedback to a better model: what was said, datasets, trainings, adapters, and the way around in five steps.

import { choice, confirm, el, empty, field, fill, Kept, note, percent, when } from "./dom.js";
import { live } from "./events.js";
import { get, post, query, save, send } from "./http.js";
import { lineage } from "./lineage.js";
import { play } from "./player.js";

const KINDS = ["datasets", "trainings", "adapters", "feedback", "abtests"];

// The forms are made once and only the lists beside them change, so nobody loses what they are writing.
export async function learn(main) {
  const steps = el("div", {}), trains = el("div", {});
  const state = { datasets: [], tests: new Map() };
  const datasets = new Kept({}, dataset, "A dataset freezes what listeners said, up to a moment. Build one with the form “New dataset”.");
  const trainings = new Kept({}, training, "A training makes an adapter of a dataset.");
  const adapters = new Kept({}, (each) => adapter(each, state), "An adapter changes what the model makes. Trainings make them, and “text2song adapters add” registers your own.");
  const builder = build();
  let built = null;
  fill(main, el("section", { className: "learn" }, el("h1", {}, "Learn"), steps,
    el("div", { className: "split" },
      el("div", {}, ...[["Datasets", datasets], ["Trainings", trainings], ["Adapters", adapters]].map(([name, list]) => el("section", { "aria-labelledby": name }, el("h2", { id: name }, name), list.node))),
      el("div", {}, builder, trains))));
  const draw = async () => {
    const [stats, found, runs, made, tests] = await Promise.all([get("/feedback/stats"), get("/datasets?limit=50"), get("/trainings?limit=50"), get("/adapters?limit=100"), get("/ab-tests?limit=100")]);
    state.datasets = found.items;
    const judging = tests.items.filter((test) => test.adapter_a || test.adapter_b);
    await Promise.all(judging.map(async (test) => state.tests.set(test.id, { ...test, said: await get(`/ab-tests/${test.id}/results`).catch(() => null) })));
    const focus = steps.contains(document.activeElement) ? document.activeElement.textContent : null;
    fill(steps, turn(stats, found.items, runs.items, made.items, tests.items));
    if (focus) [...steps.querySelectorAll("a")].find((each) => each.textContent === focus)?.focus();
    datasets.show(found.items);
    trainings.show(runs.items);
    adapters.show(made.items, (each) => JSON.stringify([each, state.datasets.find((other) => other.id === each.training_dataset_id), ...[...state.tests.values()].filter((test) => judges(test, each)).map((test) => [test.status, test.said?.votes, test.said?.verdict])]));
    builder.count();
    const choices = JSON.stringify(found.items.filter((each) => each.status === "built").map((each) => each.id));
    if (choices !== built && !trains.contains(document.activeElement)) { built = choices; fill(trains, train(found.items)); }
  };
  return live(draw, (name, body) => name === "changed" && KINDS.includes(body.kind));
}

const many = (count, one, several) => `${count.toLocaleString()} ${count === 1 ? one : several}`;
const judges = (test, adapter) => test.adapter_a === adapter.id || test.adapter_b === adapter.id;

function turn(stats, datasets, trainings, adapters, tests) {
  const compared = stats.wins + stats.ties + stats.both_bad;
  const steps = [
    ["Make pairs", "#/", compared > 0 || stats.count > 0, "Two samples of each prompt."],
    ["Say which is better", "#/gallery", compared >= 24, `${compared} of at least 24 comparisons.`],
    ["Build a dataset", "#/learn", datasets.some((each) => each.status === "built"), `${datasets.length} built.`],
    ["Train an adapter", "#/learn", adapters.some((each) => each.training_id), trainings.find((each) => each.status === "processing") ? "One is being trained." : many(trainings.length, "training", "trainings") + "."],
    ["Test it blind", "#/tests", tests.some((each) => each.adapter_a || each.adapter_b), many(tests.length, "test", "tests") + "."],
  ];
  const now = steps.findIndex(([, , done]) => !done);
  return el("ol", { className: "turn", "aria-label": "One turn of the loop" }, steps.map(([name, href, done, text], at) => el("li", { className: done ? "done" : at === now ? "now" : "" }, el("a", { href, "aria-current": at === now ? "step" : null }, name), el("span", { className: "facts" }, done ? `Done. ${text}` : text))));
}

function dataset(each) {
  const forms = each.type === "preference" ? ["preference", "unpaired"] : ["supervised", "unpaired"];
  const out = (form) => async () => {
    try {
      let made = each.exports[form];
      if (made?.status !== "exported") {
        await post(`/datasets/${each.id}/export`, { format: form });
        for (;;) { made = (await get(`/datasets/${each.id}`)).exports[form]; if (made.status !== "requested") break; await new Promise((done) => setTimeout(done, 500)); }
      }
      if (!made.url) throw new Error(made.error ?? `The export is ${made.status}.`);
      await save(made.url, `${each.name}-${form}.zip`);
    } catch (error) { note(error.message, "error"); }
  };
  const left = Object.entries(each.left_out).map(([reason, count]) => `${count} ${reason}`).join(", ");
  return el("article", { className: "card", "aria-label": each.name }, el("p", {}, el("strong", { dir: "auto" }, each.name)),
    el("p", { className: "facts" }, `${each.type} · ${each.status}${each.sample_count === null ? "" : ` · ${each.sample_count} ${each.type === "preference" ? "pairs" : "samples"} from ${each.judgements} judgements`} · ${when(each.created_at)}`),
    each.error && el("p", { className: "warning" }, each.error), each.notice && el("p", { className: "warning" }, each.notice),
    left && el("p", { className: "facts" }, `Left out: ${left}`),
    each.agreement?.alpha !== null && each.agreement?.alpha !== undefined && el("p", { className: "facts" }, `Listeners agree: α = ${each.agreement.alpha.toFixed(2)}`),
    each.erased_since.count > 0 && el("p", { className: "warning" }, `${each.erased_since.count} of its records were erased since.`),
    each.status === "built" && el("div", { className: "row" }, forms.map((form) => el("button", { type: "button", onclick: out(form) }, `Export ${form}`))));
}

// The loss of every step that was noted, and over it, on the same scale, that on what is held out.
function curve(points) {
  const lines = ["loss", "held_out_loss"].map((name) => [name, points.filter((point) => Number.isFinite(point[name]))]).filter(([, shown]) => shown.length > 1);
  if (!lines.length) return null;
  const width = 420, height = 90, all = lines.flatMap(([name, shown]) => shown.map((point) => point[name])), low = Math.min(...all), high = Math.max(...all), end = Math.max(...lines.map(([, shown]) => shown.at(-1).step));
  const drawn = ([name, shown]) => el("polyline", { class: name === "loss" && lines.length > 1 ? "curve faint" : "curve", points: shown.map((point) => `${((point.step / end) * width).toFixed(1)},${(height - 6 - ((point[name] - low) / (high - low || 1)) * (height - 12)).toFixed(1)}`).join(" ") });
  const said = lines.map(([name, shown]) => `${name === "loss" ? "loss" : "loss on what is held out"} ${shown[0][name].toFixed(3)} → ${shown.at(-1)[name].toFixed(3)}`).join(" · ");
  return el("figure", { className: "losses" }, el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${said}, in ${end} steps` }, el("line", { class: "limit", x1: 0, x2: width, y1: height - 1, y2: height - 1 }), lines.map(drawn)), el("figcaption", {}, said));
}

function training(each) {
  const open = ["queued", "processing"].includes(each.status);
  const accuracy = each.metrics.pair_accuracy;
  return el("article", { className: "card", "aria-label": `${each.adapter_name} ${each.adapter_version}` }, el("p", {}, el("strong", {}, `${each.adapter_name} ${each.adapter_version}`)),
    el("p", { className: "facts" }, `${each.method} · ${each.status}${each.stage ? ` · ${each.stage}` : ""}${each.steps ? ` · step ${each.step} of ${each.steps}` : ""} · ${when(each.created_at)}`),
    open && el("progress", { max: 100, value: each.progress, "aria-label": "Progress" }),
    curve(each.curve), accuracy !== undefined && el("p", { className: "facts" }, `It tells apart ${percent(accuracy)} of held-out pairs.`),
    each.message && el("p", { className: "facts" }, each.message), each.error && el("p", { className: "warning" }, each.error),
    each.samples.length > 0 && el("ul", { className: "heard", "aria-label": "Samples before and after" }, each.samples.map((sample, at) => heard(each, sample, at))),
    open && el("button", { type: "button", onclick: () => send("DELETE", `/trainings/${each.id}`).catch((error) => note(error.message, "error")) }, "Stop"));
}

// One seed, by the base model and by the adapter: the player switches between them in place.
function heard(training, sample, at) {
  const clips = [["Before", sample.before_url], ["After", sample.after_url]].map(([name, stream]) => ({ name, label: name, stream, waveform: null, lufs: null }));
  return el("li", {}, el("span", { dir: "auto" }, sample.prompt), el("span", { className: "row" }, clips.map((clip, side) => el("button", { type: "button", className: "quiet", "aria-label": `${clip.name} the training: ${sample.prompt}`, onclick: () => play(`training ${training.id} ${at}`, sample.prompt, clips, side) }, clip.name))));
}

function adapter(each, { datasets, tests }) {
  const from = datasets.find((other) => other.id === each.training_dataset_id);
  const judged = [...tests.values()].filter((test) => judges(test, each));
  return el("article", { className: "card", "aria-label": `${each.name} ${each.version}` }, el("p", {}, el("strong", {}, `${each.name} ${each.version}`), each.is_active ? "" : " (inactive)"),
    el("p", { className: "facts" }, `for ${each.base_model.split("@")[0]} · rank ${each.rank} · ${when(each.created_at)}`),
    each.description && el("p", {}, each.description),
    lineage(each, from, judged),
    el("div", { className: "row" }, each.is_active && el("a", { className: "button", href: `#/?adapter=${each.id}` }, "Make with it"),
      el("button", { type: "button", className: "quiet", onclick: async () => {
        if (each.is_active && !await confirm("Deactivate this adapter?", ["New jobs cannot use it. Jobs that were accepted before go on with it."], "Deactivate")) return;
        try { await send("PATCH", `/adapters/${each.id}`, { is_active: !each.is_active }); } catch (error) { note(error.message, "error"); }
      } }, each.is_active ? "Deactivate" : "Activate")));
}

function build() {
  const name = el("input", { required: true, maxLength: 200, value: `What was liked, ${new Date().toISOString().slice(0, 10)}` });
  const kind = choice([["preference", "Pairs: which was better"], ["supervised", "Single samples with ratings"]], "preference");
  const low = el("input", { type: "number", min: 1, max: 5, step: "any" }), tags = el("input", { placeholder: "warm" }), listeners = el("input", { placeholder: "everybody" });
  const from = el("input", { type: "date" }), until = el("input", { type: "date" });
  const counted = el("p", { className: "facts", role: "status" });
  const list = (control) => [...new Set(control.value.split(",").map((each) => each.trim()).filter(Boolean))];
  let timer = null, turn = 0;
  const count = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const mine = ++turn, words = list(tags), users = list(listeners), dates = { start_date: from.value, end_date: until.value };
      const of = (fields) => get(`/feedback${query({ limit: 1, min_rating: low.value, ...dates, ...fields })}`).then((found) => found.total);
      try {
        const one = (user_id) => words.length ? Promise.all(words.map((tag) => of({ tag, user_id }))) : of({ user_id }).then((total) => [total]);
        const found = await Promise.all((users.length ? users : [""]).map(one));
        const votes = low.value || words.length || users.length || from.value || until.value ? null : await cast();
        if (mine !== turn) return;
        const by = words.map((_, at) => found.reduce((sum, each) => sum + each[at], 0));
        const total = words.length ? by.reduce((sum, each) => sum + each, 0) : found.reduce((sum, each) => sum + each[0], 0);
        counted.textContent = [many(total, "piece of feedback fits", "pieces of feedback fit"), words.length > 1 && `(${words.map((tag, at) => `${by[at]} ${tag}`).join(", ")}; one with both counts twice)`, votes !== null && `and ${many(votes, "vote", "votes")} of blind tests`].filter(Boolean).join(" ") + " so far.";
      } catch (error) { if (mine === turn) counted.textContent = error.message; }
    }, 300);
  };
  count();
  const form = el("form", { className: "composer", "aria-label": "New dataset", oninput: count, onsubmit: async (event) => {
    event.preventDefault();
    const filter_query = { min_rating: low.value ? Number(low.value) : undefined, tags: list(tags), user_ids: list(listeners), start_date: from.value || undefined, end_date: until.value || undefined };
    try { await post("/datasets", { name: name.value, type: kind.value, filter_query }); note("It is being built."); } catch (error) { note(error.message, "error"); }
  } }, el("h2", {}, "New dataset"), field("Name", name), field("What it holds", kind), el("div", { className: "grid" }, field("Rated at least", low), field("Tags", tags), field("Listeners", listeners), field("From", from), field("Until", until)), counted, el("button", { className: "primary wide" }, "Build it"));
  return Object.assign(form, { count });
}

async function cast() {
  const tests = (await get("/ab-tests?limit=100")).items;
  const said = await Promise.all(tests.map((test) => get(`/ab-tests/${test.id}/results`).catch(() => null)));
  return said.reduce((sum, each) => sum + (each?.cast ?? 0), 0);
}

function train(datasets) {
  const built = datasets.filter((each) => each.status === "built");
  if (!built.length) return empty("Train an adapter", "Build a dataset first.");
  const data = choice(built.map((each) => [each.id, `${each.name} (${each.sample_count})`]), built[0].id);
  const method = choice([["taste", "taste: learns what is preferred"], ["dpo", "dpo: from hundreds of pairs"], ["sft", "sft: imitates what was liked"]], "taste");
  const name = el("input", { required: true, pattern: "[a-zA-Z0-9._\\-]+", value: "mine" }), version = el("input", { required: true, value: "1.0.0" });
  return el("form", { className: "composer", "aria-label": "New training", onsubmit: async (event) => {
    event.preventDefault();
    try { await post("/trainings", { dataset_id: data.value, method: method.value, adapter_name: name.value, adapter_version: version.value }); note("The training waits for its turn."); } catch (error) { note(error.message, "error"); }
  } }, el("h2", {}, "New training"), field("Dataset", data), field("Method", method), el("div", { className: "grid" }, field("Adapter", name), field("Version", version)), el("button", { className: "primary wide" }, "Train"));
}
