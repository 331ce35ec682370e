// Nodes made of text: nothing that a person wrote is ever read as HTML.

export function el(tag, props = {}, ...children) {
  const node = tag === "svg" || SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !(node instanceof SVGElement) && !ATTRIBUTES.has(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = new Set(["path", "line", "circle", "polyline", "rect", "text", "g", "polygon", "title"]);
const ATTRIBUTES = new Set(["list", "form", "role", "for"]);

export function fill(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function note(text, kind = "info", undo = null) {
  const line = el("p", { className: `note ${kind}` }, el("span", {}, text));
  const gone = () => line.remove();
  if (undo) line.append(el("button", { type: "button", className: "quiet", onclick: () => { gone(); undo(); } }, "Undo"));
  line.append(el("button", { type: "button", className: "quiet", "aria-label": "Dismiss", onclick: gone }, "×"));
  document.getElementById("notes").append(line);
  setTimeout(gone, kind === "error" ? 15000 : 7000);
}

export function field(label, control, hint = null) {
  control.id ||= `f${++field.count}`;
  return el("div", { className: "field" }, el("label", { htmlFor: control.id }, label), control, hint && el("p", { className: "hint" }, hint));
}
field.count = 0;

export function choice(options, value = "", props = {}) {
  const select = el("select", props, options.map(([key, text]) => el("option", { value: key }, text)));
  select.value = value ?? "";
  return select;
}

export function empty(title, text, action = null) {
  return el("div", { className: "empty" }, el("h2", {}, title), el("p", {}, text), action);
}

export const seconds = (value) => value >= 60 ? `${Math.floor(value / 60)}:${String(Math.round(value % 60)).padStart(2, "0")}` : `${Number(value.toFixed(1))} s`;

export function when(moment) {
  const ago = (Date.now() - new Date(moment)) / 1000;
  if (ago < 60) return "just now";
  if (ago < 3600) return `${Math.floor(ago / 60)} min ago`;
  if (ago < 86400) return `${Math.floor(ago / 3600)} h ago`;
  return new Date(moment).toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

export const percent = (value) => `${Math.round(100 * value)} %`;

// What asks before it destroys; resolves to whether the person agreed.
export function confirm(title, lines, yes) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-label": title, onclose: () => { resolve(dialog.returnValue === "yes"); dialog.remove(); } },
      el("h2", {}, title), lines.map((line) => el("p", {}, line)),
      el("div", { className: "row end" },
        el("button", { type: "button", className: "quiet", onclick: () => dialog.close("no") }, "Keep it"),
        el("button", { type: "button", className: "danger", onclick: () => dialog.close("yes") }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A list whose items stay the same nodes while they say the same; a new node takes the focus of the one it replaces.
export class Kept {
  #nodes = new Map();

  constructor(props, draw, none) { Object.assign(this, { draw, none, node: el("div", props) }); }

  show(items, mark = JSON.stringify) {
    const fresh = new Map(items.map((item) => {
      const said = mark(item), before = this.#nodes.get(item.id);
      if (before?.said === said) return [item.id, before];
      const node = this.draw(item);
      if (before) {
        const at = [...before.node.querySelectorAll("a, button, summary")].indexOf(document.activeElement);
        before.node.querySelectorAll("details[open]").forEach(() => node.querySelectorAll("details").forEach((each) => { each.open = true; }));
        before.node.replaceWith(node);
        if (at >= 0) node.querySelectorAll("a, button, summary")[at]?.focus();
      }
      return [item.id, { node, said }];
    }));
    for (const [id, { node }] of this.#nodes) if (!fresh.has(id)) node.remove();
    let last = null;
    for (const { node } of fresh.values()) {
      const place = last ? last.nextSibling : this.node.firstChild;
      if (node !== place) this.node.insertBefore(node, place);
      last = node;
    }
    this.#nodes = fresh;
    this.node.querySelector(":scope > .empty")?.remove();
    if (!items.length) this.node.append(el("p", { className: "empty" }, this.none));
  }
}
