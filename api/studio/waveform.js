// Peaks of a sample, drawn on a canvas; a click or the arrow keys seek.

import { el } from "./dom.js";
import { get } from "./http.js";

const known = new Map();

export function peaks(url) {
  if (!known.has(url)) {
    if (known.size > 200) known.delete(known.keys().next().value);
    known.set(url, get(url).then((found) => {
      const top = found.bits === 8 ? 128 : 32768;
      const pairs = found.data.length / 2;
      return Array.from({ length: pairs }, (_, at) => Math.max(Math.abs(found.data[2 * at]), Math.abs(found.data[2 * at + 1])) / top);
    }).catch(() => { known.delete(url); return []; }));
  }
  return known.get(url);
}

export function draw(canvas, values, share = 0, color = null) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const bars = Math.floor(width / 3);
  const loudest = Math.max(0.05, ...values);
  for (let bar = 0; bar < bars; bar++) {
    const first = Math.floor((bar / bars) * values.length);
    const last = Math.max(first + 1, Math.floor(((bar + 1) / bars) * values.length));
    let top = 0;
    for (let at = first; at < last; at++) top = Math.max(top, values[at] ?? 0);
    const tall = Math.max(1, (top / loudest) * (height - 2));
    pen.fillStyle = bar / bars < share ? color ?? style.getPropertyValue("--accent") : style.getPropertyValue("--wave");
    pen.fillRect(bar * 3, (height - tall) / 2, 2, tall);
  }
}

export function picture(url, label) {
  const canvas = el("canvas", { className: "wave", role: "img", "aria-label": label });
  const paint = async () => draw(canvas, await peaks(url));
  new ResizeObserver(paint).observe(canvas);
  return canvas;
}
