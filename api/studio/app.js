// Which view is shown, and what works everywhere: theme, space for the player, focus after a change of view.

import { el, empty, fill, note } from "./dom.js";
import { follow } from "./events.js";
import { get } from "./http.js";
import { gallery } from "./gallery.js";
import { job } from "./job.js";
import { learn } from "./learn.js";
import { make } from "./make.js";
import { step, toggle } from "./player.js";
import { test, tests, trial } from "./tests.js";

const main = document.getElementById("main");
let leave = null;
let turn = 0;

async function show() {
  const mine = ++turn;
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  const fields = Object.fromEntries(new URLSearchParams(text));
  leave?.();
  leave = null;
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash.replace(/^#\/?/, "") === (parts[0] ?? "") || (parts[0] === "job" && link.hash === "#/gallery")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const view = el("div", { className: "view" });
  fill(main, view);
  document.title = `${{ gallery: "Gallery", job: "Job", tests: "Blind tests", learn: "Learn" }[parts[0]] ?? "Make"} · Text2Song Studio`;
  try {
    const left = await route(view, parts, fields);
    if (mine === turn) leave = left;
    else left?.();
  } catch (error) {
    if (mine === turn) fill(view, empty("This cannot be shown", error.message, el("button", { type: "button", onclick: show }, "Try again")));
  }
}

async function route(view, parts, fields) {
  switch (parts[0]) {
    case undefined: return make(view, await changes(fields));
    case "gallery": return gallery(view, fields);
    case "job": return job(view, parts[1] ?? "");
    case "tests": return parts[2] === "listen" ? trial(view, parts[1]) : parts[1] ? test(view, parts[1]) : tests(view);
    case "learn": return learn(view);
    default: fill(view, empty("There is nothing here", "The address names no part of the studio.", el("a", { className: "button", href: "#/" }, "To the start"))); return null;
  }
}

// "Again with a change": the form as the job was asked for.
async function changes(fields) {
  if (fields.adapter) return { adapter_id: fields.adapter };
  if (!fields.from) return {};
  try {
    const found = await get(`/jobs/${encodeURIComponent(fields.from)}`);
    const { duration, guidance_scale, temperature, top_k, best_of, parameters } = found.generation_params;
    return { prompt: found.prompt, model_id: found.model_id, adapter_id: found.adapter_id ?? "", duration, guidance_scale, temperature, top_k, best_of: best_of ?? "", parameters, lyrics: found.lyrics ?? "", melody_from: found.generation_params.melody_from ?? "", num_samples: found.generation_params.num_samples, seed: fields.seed ?? "", collection: found.collection ?? "", continue_from: fields.continue ?? "" };
  } catch (error) {
    note(error.message, "error");
    return {};
  }
}

const theme = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
theme.addEventListener("click", () => {
  const next = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select, button, a, summary, [role=slider]") || event.ctrlKey || event.metaKey || event.altKey || location.hash.endsWith("/listen")) return;
  if (event.key === " ") { event.preventDefault(); toggle(); }
  if (event.key === "s") step(1);
});
addEventListener("hashchange", () => show().then(() => main.focus({ preventScroll: true })));
show();
follow();
