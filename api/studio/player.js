// The bar at the bottom: what is loaded, which clip of it is heard, and where.

import { Deck } from "./deck.js";
import { el, fill, note, seconds } from "./dom.js";
import { request } from "./http.js";
import { draw, peaks } from "./waveform.js";

const bar = document.getElementById("player");
let deck = null;
let loaded = null; // {key, title, clips: [{name, label, stream, waveform, lufs}]}
let pending = null; // what is being loaded, {key, index}
let shapes = [];
let parts = {};
const watchers = new Set();

export const watch = (handler) => { watchers.add(handler); return () => watchers.delete(handler); };
export const current = () => loaded && { key: loaded.key, name: loaded.clips[deck.active]?.name, playing: deck.playing, position: deck.position };
const changed = () => watchers.forEach((handler) => handler());

// Loads clips under a key and plays one of them; with the key loaded already it switches in place.
export async function play(key, title, clips, index = 0) {
  deck ??= new Deck(new AudioContext());
  deck.onended = () => { show(); changed(); };
  deck.context.resume();
  if (loaded?.key === key) {
    if (deck.active === index && deck.playing) deck.stop();
    else { deck.use(index); if (!deck.playing) deck.play(); }
    return show();
  }
  if (pending?.key === key) { pending.index = index; return; }
  const mine = pending = { key, index };
  deck.stop();
  try {
    bar.hidden = false;
    fill(bar, el("p", { className: "loading" }, "Loading the audio …"));
    const buffers = await Promise.all(clips.map(async (clip) => {
      const answer = await request("GET", clip.stream);
      return deck.context.decodeAudioData(await answer.arrayBuffer());
    }));
    const drawn = await Promise.all(clips.map((clip, at) => clip.waveform ? peaks(clip.waveform) : shape(buffers[at])));
    // Something else was asked for meanwhile, or nothing any more.
    if (pending !== mine) return;
    pending = null;
    loaded = { key, title, clips };
    shapes = drawn;
    deck.load(clips.map((clip, at) => ({ buffer: buffers[at], lufs: clip.lufs })));
    deck.active = mine.index;
    build();
    deck.play(0);
    show();
  } catch (error) {
    if (pending !== mine) return;
    pending = null;
    bar.hidden = !loaded;
    if (loaded) build();
    note(`This audio cannot be played: ${error.message}`, "error");
  }
}

export function stop() {
  if (deck) { deck.stop(); show(); }
}

export function unload() {
  if (!deck) return;
  deck.stop();
  loaded = pending = null;
  forget();
  bar.hidden = true;
  changed();
}

// How long each clip was heard since it was loaded, in seconds by its name.
export const heard = {};

function forget() {
  for (const name of Object.keys(heard)) delete heard[name];
}

function shape(buffer) {
  const data = buffer.getChannelData(0), count = 600, size = Math.max(1, Math.floor(data.length / count));
  return Array.from({ length: Math.floor(data.length / size) }, (_, at) => {
    let top = 0;
    for (let i = at * size; i < (at + 1) * size; i += 8) top = Math.max(top, Math.abs(data[i]));
    return top;
  });
}

function build() {
  forget();
  parts = {
    toggle: el("button", { type: "button", className: "primary round", onclick: toggle }),
    tabs: loaded.clips.map((clip, at) => el("button", { type: "button", className: "tab", onclick: () => { deck.use(at); if (!deck.playing) deck.play(); show(); } }, clip.label)),
    wave: el("canvas", { className: "wave", tabindex: 0, role: "slider", "aria-label": "Position", "aria-valuemin": 0, "aria-valuemax": Math.round(deck.duration),
      onclick: (event) => { deck.seek((event.offsetX / parts.wave.clientWidth) * deck.duration); show(); },
      onkeydown: (event) => { const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key]; if (step) { event.preventDefault(); deck.seek(deck.position + step); show(); } } }),
    time: el("output", { className: "time" }),
    loop: el("button", { type: "button", className: "quiet", "aria-pressed": "false", onclick: () => { deck.loop(!deck.loops); show(); } }, "Loop"),
    match: el("button", { type: "button", className: "quiet", "aria-pressed": "true", title: "Plays all clips as loud as the quietest", onclick: () => { deck.match(!deck.matched); show(); } }, "Same loudness"),
  };
  fill(bar, parts.toggle, el("div", { className: "what" }, el("p", { className: "prompt one-line", dir: "auto" }, loaded.title), loaded.clips.length > 1 && el("div", { className: "tabs", role: "group", "aria-label": "Clips" }, parts.tabs)),
    parts.wave, parts.time, el("div", { className: "row" }, loaded.clips.length > 1 && parts.match, parts.loop,
      el("button", { type: "button", className: "quiet icon", "aria-label": "Close the player", onclick: unload }, "×")));
  bar.hidden = false;
}

export function toggle() {
  if (!loaded) return;
  if (deck.playing) deck.stop();
  else deck.play();
  show();
}

export function step(by) {
  if (!loaded) return;
  deck.use((deck.active + by + loaded.clips.length) % loaded.clips.length);
  show();
}

let last = 0;
function show(now = performance.now()) {
  if (!loaded || !parts.toggle) return changed();
  const at = deck.position;
  parts.toggle.textContent = deck.playing ? "❚❚" : "▶";
  parts.toggle.setAttribute("aria-label", deck.playing ? "Pause" : "Play");
  parts.tabs.forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === deck.active)));
  parts.loop.setAttribute("aria-pressed", String(deck.loops));
  parts.match.setAttribute("aria-pressed", String(deck.matched));
  parts.time.textContent = `${at.toFixed(1)} / ${seconds(deck.duration)}`;
  parts.wave.setAttribute("aria-valuenow", Math.round(at));
  parts.wave.setAttribute("aria-valuetext", `${at.toFixed(1)} seconds`);
  draw(parts.wave, shapes[deck.active] ?? [], deck.duration ? at / deck.duration : 0);
  if (deck.playing) {
    const name = loaded.clips[deck.active].name;
    if (last && now - last < 500) heard[name] = (heard[name] ?? 0) + (now - last) / 1000;
    last = now;
    requestAnimationFrame(show);
  } else last = 0;
  const state = `${loaded.key} ${deck.active} ${deck.playing}`;
  if (state !== show.state) { show.state = state; changed(); }
}
