// What only some models take: lyrics, a melody, and parameters of their own, as the studio lists them.

import { choice, el, field, fill, note } from "./dom.js";
import { post } from "./http.js";

export function own(draft, store) {
  const lyrics = el("textarea", { rows: 6, maxLength: 10000, dir: "auto", placeholder: "[verse]\n…\n\n[chorus]\n…", value: draft.lyrics ?? "", oninput: (event) => { draft.lyrics = event.target.value; store(); } });
  const sung = field("Lyrics", lyrics, "Tags such as [verse] and [chorus] begin parts of the song.");
  const melody = el("input", { value: draft.melody_from ?? "", maxLength: 200, oninput: (event) => { draft.melody_from = event.target.value; store(); } });
  const clip = el("input", { type: "file", accept: "audio/*", onchange: upload });
  const followed = el("div", { className: "grid hinted" }, field("Melody", melody, "The id of a sample or of an uploaded clip, whose tones the music follows."), field("Upload a clip", clip));
  const grid = el("div", { className: "grid hinted" });
  const details = el("details", {}, el("summary", {}, "What this model takes"), grid);
  const controls = new Map();

  function show(model) {
    sung.hidden = !model.capabilities.includes("lyrics");
    followed.hidden = !model.capabilities.includes("melody");
    details.hidden = !model.own_parameters.length;
    controls.clear();
    fill(grid, model.own_parameters.map((each) => {
      const control = made(each);
      controls.set(each, control);
      return field(each.name.replaceAll("_", " "), control, each.description);
    }));
  }

  async function upload() {
    if (!clip.files.length) return;
    const form = new FormData();
    form.append("file", clip.files[0]);
    try {
      melody.value = draft.melody_from = (await post("/melodies", form)).id;
      store();
    } catch (error) { note(error.message, "error"); }
    clip.value = "";
  }

  function made(each) {
    const value = draft.parameters?.[each.name] ?? "";
    const onchange = (event) => { draft.parameters = { ...draft.parameters, [each.name]: event.target.value }; store(); };
    const usual = String(each.default);
    if (each.kind === "choice") return choice([["", usual || "the model's choice"], ...each.choices.filter((one) => one && one !== usual).map((one) => [one, one])], value, { onchange });
    if (each.kind === "switch") return choice([["", usual], ["true", "true"], ["false", "false"]], value, { onchange });
    if (each.kind === "text") return el("input", { value, maxLength: each.max_length, placeholder: usual, onchange });
    // The browser's own bounds would refuse a default that lies outside of them.
    return el("input", { type: "number", step: each.kind === "integer" ? 1 : "any", value, placeholder: usual, onchange });
  }

  function said() {
    const given = [...controls].map(([each, control]) => [each, control.value]).filter(([, value]) => value !== "");
    const parameters = Object.fromEntries(given.map(([each, value]) => [each.name, read(each, value)]));
    const melody_from = followed.hidden ? undefined : melody.value.trim() || undefined;
    return { lyrics: !sung.hidden && lyrics.value.trim() ? lyrics.value : undefined, melody_from, parameters: given.length ? parameters : undefined };
  }

  return { nodes: [sung, followed, details], show, said };
}

function read(each, value) {
  if (each.kind === "switch") return value === "true";
  return each.kind === "number" || each.kind === "integer" ? Number(value) : value;
}
