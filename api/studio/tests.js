// Blind tests: made, listened to with the keyboard alone, and their verdict as it evolves.

import { choice, el, empty, field, fill, note, percent, seconds, when } from "./dom.js";
import { live } from "./events.js";
import { get, listener, post, query, send } from "./http.js";
import { heard, play, step, stop, toggle, unload } from "./player.js";

const VERDICTS = { A: "A is preferred", B: "B is preferred", equivalent: "No difference that matters", inconclusive: "No verdict yet" };

const changes = (name, body, id = body.id) => name === "changed" && body.kind === "abtests" && body.id === id;

export const tests = (main) => live(() => drawTests(main), changes);

async function drawTests(main) {
  // What somebody is writing is not taken from under their hands.
  if (document.activeElement?.form && main.contains(document.activeElement)) return;
  const [found, adapters] = await Promise.all([get("/ab-tests?limit=100"), get("/adapters?limit=200")]);
  const names = new Map(adapters.items.map((each) => [each.id, `${each.name} ${each.version}`]));
  const arm = (id) => id ? names.get(id) ?? id : "the model alone";
  const list = found.items.length
    ? el("ul", { className: "plain" }, found.items.map((test) => el("li", { className: "card" }, el("p", {}, el("a", { href: `#/tests/${test.id}` }, el("strong", {}, test.name))),
        el("p", { className: "facts" }, `${arm(test.adapter_a)} against ${arm(test.adapter_b)} · ${test.progress} · ${test.status} · ${when(test.created_at)}`),
        test.status === "ready" && el("p", {}, el("a", { className: "button", href: `#/tests/${test.id}/listen` }, "Listen")))))
    : empty("No blind test yet", "A blind test plays two clips of one prompt without telling which model made which. It says honestly when there is no difference.");
  fill(main, el("section", { className: "split" }, el("div", {}, el("h1", {}, "Blind tests"), list), create(adapters.items)));
}

function create(adapters) {
  const options = [["", "Model alone"], ...adapters.filter((each) => each.is_active).map((each) => [each.id, `${each.name} ${each.version}`])];
  const name = el("input", { required: true, maxLength: 200, value: "Before and after" });
  const prompts = el("textarea", { required: true, rows: 5, placeholder: "slow blues\nfast jazz, walking bass", dir: "auto" });
  const a = choice(options), b = choice(options, options[1]?.[0] ?? "");
  const pairs = el("input", { type: "number", min: 1, max: 100, value: 5 });
  const duration = el("input", { type: "number", min: 0.5, step: "any", value: 5 });
  const catches = el("input", { type: "number", min: 0, value: 0 });
  return el("form", { className: "composer", "aria-label": "New blind test", onsubmit: async (event) => {
    event.preventDefault();
    try {
      const made = await post("/ab-tests", { name: name.value, prompts: prompts.value.split("\n").map((each) => each.trim()).filter(Boolean), adapter_a: a.value || null, adapter_b: b.value || null, pairs_per_prompt: Number(pairs.value), duration: Number(duration.value), catch_trials: Number(catches.value) });
      made.warnings?.forEach((warning) => note(warning, "warning"));
      location.hash = `#/tests/${made.id}`;
    } catch (error) { note(error.message, "error"); }
  } }, el("h2", {}, "New test"), field("Name", name), el("div", { className: "grid" }, field("Arm A", a), field("Arm B", b)), field("Prompts, one a line", prompts),
    el("div", { className: "grid" }, field("Pairs a prompt", pairs), field("Seconds", duration), field("Identical pairs, as a check", catches)), el("button", { className: "primary wide" }, "Make the test"));
}

export const test = (main, id) => live(() => drawTest(main, id), (name, body) => name === "job" || changes(name, body, id));

async function drawTest(main, id) {
  const path = `/ab-tests/${encodeURIComponent(id)}`;
  const wasOpen = main.querySelector("details.verdict")?.open ?? false;
  let found, said;
  try {
    [found, said] = await Promise.all([get(path), get(`${path}/results`)]);
  } catch (error) {
    fill(main, empty("This test is not here", error.message, el("a", { className: "button", href: "#/tests" }, "To the tests")));
    return;
  }
  const rate = said.win_rate;
  const half = percent;
  fill(main, el("article", { className: "test" },
    el("p", { className: "crumbs" }, el("a", { href: "#/tests" }, "Blind tests")), el("h1", {}, found.name),
    el("p", { className: "facts", role: "status" }, `${found.progress} · ${found.status}${found.pairs_failed ? ` · ${found.pairs_failed} pairs left out` : ""} · ${seconds(found.duration)} clips of ${found.model_id}`),
    found.notice && el("p", { className: "warning" }, found.notice),
    found.status === "generating" && el("progress", { max: found.pairs_total, value: found.pairs_generated + found.pairs_failed, "aria-label": "Pairs generated" }),
    el("div", { className: "row actions" },
      found.status === "ready" && el("a", { className: "button primary", href: `#/tests/${found.id}/listen` }, "Listen and vote"),
      found.status === "ready" && el("button", { type: "button", onclick: async () => { try { await send("POST", `${path}/close`, {}); drawTest(main, id); } catch (error) { note(error.message, "error"); } } }, "Close the test")),
    el("details", { className: "verdict", open: found.status === "closed" || wasOpen }, el("summary", {}, "The verdict so far: vote first, or the votes of others may lead you"), el("h2", { id: "verdict" }, VERDICTS[said.verdict] ?? said.verdict),
      el("p", {}, said.cast && !said.votes ? `${said.cast} votes were cast, and none of them counts.` : said.cast ? `${said.votes} votes of ${said.voters} ${said.voters === 1 ? "listener" : "listeners"}: A won ${said.wins.A}, B won ${said.wins.B}, ${said.ties} without a difference, ${said.both_bad} both bad.` : "Nobody has voted yet. The verdict may be looked at after every vote; it does not get worse by looking."),
      said.votes === 0 && said.excluded.length > 0 && el("p", { className: "warning" }, `Left out: ${said.excluded.map((each) => `${each.count} for ${each.reason.replaceAll("_", " ")}`).join(", ")}.`),
      said.votes > 0 && el("dl", { className: "figures" },
        el("dt", {}, "B is preferred in"), el("dd", {}, `${half(1 - rate.value)} (${half(1 - rate.high)} to ${half(1 - rate.low)})`),
        el("dt", {}, "Evidence"), el("dd", {}, `${said.e_value.toPrecision(3)} of ${said.threshold}`),
        el("dt", {}, "Sign test"), el("dd", {}, `p = ${said.sign_test_p.toPrecision(2)}`),
        said.excluded.length > 0 && [el("dt", {}, "Left out"), el("dd", {}, said.excluded.map((each) => `${each.count} for ${each.reason.replaceAll("_", " ")}`).join(", "))]),
      said.timeline.length > 1 && evidence(said))));
}

function evidence(said) {
  const width = 640, height = 160, top = Math.max(Math.log10(said.threshold) * 1.2, ...said.timeline.map((point) => Math.log10(Math.max(point.e_value, 1e-2))));
  const low = -1, last = said.timeline.at(-1).votes;
  const x = (votes) => (votes / last) * width;
  const y = (value) => height - ((Math.log10(Math.max(value, 0.1)) - low) / (top - low)) * height;
  const line = said.timeline.map((point) => `${x(point.votes).toFixed(1)},${y(point.e_value).toFixed(1)}`).join(" ");
  return el("figure", {}, el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Evidence over ${last} votes, now ${said.e_value.toPrecision(3)}; a verdict from ${said.threshold} on` },
    el("line", { class: "limit", x1: 0, x2: width, y1: y(said.threshold), y2: y(said.threshold) }), el("polyline", { class: "curve", points: line })),
    el("figcaption", {}, `Evidence over the votes. From the dashed line (${said.threshold}) on there is a verdict.`));
}

// One key an answer: 1 and 2 play the sides, space stops, the arrows and t and b vote.
export async function trial(main, id) {
  const path = `/ab-tests/${encodeURIComponent(id)}`;
  const voter = listener() ?? localStorage.getItem("voter") ?? "listener";
  let now = null, first = null, voting = false, told = null;
  const sides = ["left", "right"];
  const name = el("input", { value: voter, maxLength: 100, onchange: () => { localStorage.setItem("voter", name.value.trim() || voter); next(); } });
  const stage = el("div", { className: "trial" });
  const reveal = el("p", { className: "told", role: "status" });
  fill(main, el("article", {}, el("p", { className: "crumbs" }, el("a", { href: `#/tests/${id}` }, "Back to the test")), el("h1", {}, "Which one do you prefer?"), stage, reveal, field("You vote as", name, "Use the same name on every visit.")));

  const hear = (at) => { first ??= sides[at]; play(`trial ${now.trial_id}`, now.prompt, sides.map((side) => ({ name: side, label: side === "left" ? "Left" : "Right", stream: now[side].stream_url, waveform: null, lufs: null })), at); };
  const vote = async (pick) => {
    if (!now || voting) return;
    if (!sides.every((side) => heard[side] > 0)) { note("Listen to both sides first: keys 1 and 2.", "warning"); return; }
    voting = true;
    stop();
    try {
      const seconds_listened = Object.fromEntries(sides.map((side) => [side, Math.round((heard[side] ?? 0) * 10) / 10]));
      const given = await post(`${path}/votes`, { trial_id: now.trial_id, choice: pick, heard_first: first, seconds_listened });
      const arm = (side) => { const made = given.adapters[given[`${side}_arm`]]; return made ? `${made.name} ${made.version}` : "the model alone"; };
      told = `Your vote counts. Left was ${arm("left")}, right was ${arm("right")}.`;
      await next();
    } catch (error) { note(error.message, "error"); }
    voting = false;
  };
  const next = async () => {
    unload();
    first = null;
    try { now = await get(`${path}/next${query({ voter: name.value.trim() || voter })}`); } catch (error) { fill(stage, empty("There is nothing to vote on", error.message)); return; }
    reveal.textContent = told ?? "";
    if (!now) { fill(stage, empty("You have heard them all", "Thank you. The verdict is on the test's page.", el("a", { className: "button primary", href: `#/tests/${id}` }, "See the verdict"))); return; }
    const side = (at) => el("button", { type: "button", className: "side", onclick: () => hear(at) }, el("span", { className: "big" }, at ? "Right" : "Left"), el("kbd", {}, String(at + 1)), el("span", { className: "facts" }, "not heard yet"));
    const answer = (pick, label, key) => el("button", { type: "button", className: "choice", onclick: () => vote(pick) }, label, " ", el("kbd", {}, key));
    fill(stage, el("p", { className: "prompt", dir: "auto" }, now.prompt), el("p", { className: "facts" }, `${now.remaining} to go`), el("div", { className: "sides" }, side(0), side(1)),
      el("div", { className: "row" }, answer("left", "Left is better", "←"), answer("right", "Right is better", "→"), answer("tie", "No difference", "T"), answer("both_bad", "Both bad", "B")));
  };
  const keys = (event) => {
    if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || !now) return;
    if (event.target.closest("#player") && event.key.startsWith("Arrow")) return;
    const act = { 1: () => hear(0), 2: () => hear(1), " ": toggle, Tab: null, s: () => step(1), ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), t: () => vote("tie"), b: () => vote("both_bad") }[event.key];
    if (!act || (event.key === " " && event.target.closest("button, a, summary"))) return;
    event.preventDefault();
    act();
  };
  document.addEventListener("keydown", keys);
  const timer = setInterval(() => stage.querySelectorAll(".side .facts").forEach((line, at) => { if (heard[sides[at]] > 0) line.textContent = `heard for ${heard[sides[at]].toFixed(1)} s`; }), 200);
  await next();
  return () => { document.removeEventListener("keydown", keys); clearInterval(timer); unload(); };
}
