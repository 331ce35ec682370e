// A job as a card: where it stands, and once there is something to hear, its samples. It changes in place, so that
// whoever is about to press a button of it finds the button still there.

import { el, fill, note, seconds, when } from "./dom.js";
import { get, send } from "./http.js";
import { current, play, watch } from "./player.js";
import { picture } from "./waveform.js";

export const WORDS = { queued: "Waits", processing: "Being made", completed: "Done", failed: "Failed", cancelling: "Stopping", cancelled: "Stopped" };
export const LETTERS = "ABCDEFGHIJKLMNOP";
export const isOpen = (job) => ["queued", "processing", "cancelling"].includes(job.status);

// What the player needs of a job's samples.
export function clips(job, samples = null) {
  return job.sample_ids.map((id, at) => ({ name: id, label: LETTERS[at], stream: `/audio/${id}/stream?format=wav`, waveform: `/audio/${id}/waveform`, lufs: samples?.[at]?.loudness_lufs ?? null }));
}

async function hear(job, at) {
  const samples = await Promise.all(job.sample_ids.map((id) => get(`/audio/${id}`).catch(() => null)));
  return play(job.id, job.prompt, clips(job, samples), at);
}

// `at` is the sample's place among those that can be heard; `latest` gives the job as it is when the button is pressed.
export function row(job, at, latest = () => job) {
  const id = job.sample_ids[at];
  const button = el("button", { type: "button", className: "round", onclick: () => hear(latest(), at) });
  const paint = () => {
    const now = current();
    const on = now?.key === job.id && now.name === id && now.playing;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-label", `${on ? "Pause" : "Play"} sample ${LETTERS[at]}`);
    line.classList.toggle("on", now?.key === job.id && now.name === id);
    if (!line.isConnected && paint.was) stop();
    paint.was = line.isConnected;
  };
  const line = el("div", { className: "sample" }, button, el("span", { className: "letter" }, LETTERS[at]), picture(`/audio/${id}/waveform`, `Waveform of sample ${LETTERS[at]}`));
  const stop = watch(paint);
  paint();
  return line;
}

export function card(first, { remove } = {}) {
  let job = first, drawn = "", place = "";
  const bar = el("progress", { max: 100, "aria-label": "Progress" });
  const state = el("p", { className: "state" });
  const facts = el("p", { className: "facts" });
  const rows = el("div", { className: "samples-of" });
  const buttons = el("div", { className: "row" });
  const act = (call) => async (event) => { event.currentTarget.disabled = true; try { await call(); } catch (error) { note(error.message, "error"); event.target.disabled = false; } };
  const node = el("article", { "aria-label": job.prompt }, el("p", { className: "prompt", dir: "auto" }, el("a", { href: `#/job/${job.id}` }, job.prompt)), facts, state, bar, rows, buttons);
  const say = (now) => {
    bar.hidden = !isOpen(now);
    if (now.status === "queued") bar.removeAttribute("value");
    else bar.value = now.progress;
    const left = now.eta_seconds ? ` · about ${seconds(now.eta_seconds)} left` : "";
    const text = now.status === "completed" ? "" : now.error ? ` · ${now.error}` : `${now.status === "queued" && place ? ` · ${place}` : ""}${now.stage ? ` · ${now.stage}` : ""}${now.status === "processing" ? ` · ${Math.round(now.progress)} %` : ""}${left}`;
    if (state.textContent !== WORDS[now.status] + text) fill(state, el("strong", {}, WORDS[now.status]), text);
  };
  node.progress = (change) => say(job = { ...job, ...change });
  node.place = (text) => { place = text; say(job); };
  node.update = (now) => {
    job = now;
    node.className = `card ${job.status}`;
    const made = job.generation_params;
    facts.textContent = `${seconds(made.duration ?? 0)} · ${made.num_samples} ${made.num_samples === 1 ? "sample" : "samples"}${made.best_of ? `${made.num_samples === 1 ? "," : ", each"} the best of ${made.best_of}` : ""}${job.adapter_id ? " · with an adapter" : ""}${job.ab_test_id ? " · of a blind test" : ""} · ${when(job.created_at)}${job.feedback.count > 0 ? ` · rated ${job.feedback.mean_rating?.toFixed(1) ?? ""} (${job.feedback.count})` : ""}`;
    say(job);
    const ids = job.sample_ids.join();
    if (rows.dataset.ids !== ids) {
      // Samples are only added while a job is made; what stands here stays.
      if (!ids.startsWith(rows.dataset.ids ?? "")) fill(rows);
      for (let at = rows.children.length; at < job.sample_ids.length; at++) rows.append(row(job, at, () => job));
      rows.dataset.ids = ids;
    }
    const kind = isOpen(job) ? "open" : job.status === "completed" ? "" : "ended";
    if (kind !== drawn) {
      drawn = kind;
      fill(buttons, kind === "open" ? el("button", { type: "button", onclick: act(() => send("DELETE", `/generate/${job.id}`)) }, "Stop")
        : kind === "ended" && [el("button", { type: "button", className: "quiet", onclick: act(async () => { await send("DELETE", `/jobs/${job.id}`); remove?.(); }) }, "Remove"), el("a", { className: "button quiet", href: `#/?from=${job.id}` }, "Change and try again")]);
    }
    buttons.hidden = !kind;
    if (job.status === "cancelling") buttons.querySelector("button").disabled = true;
  };
  node.update(job);
  return node;
}
