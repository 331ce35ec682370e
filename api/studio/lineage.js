// Where an adapter comes from and what listeners made of it, drawn from left to right.

import { el } from "./dom.js";

const WIDE = 128, HIGH = 46, GAP = 26;
const SHORT = { A: "preferred: A", B: "preferred: B", equivalent: "no difference", inconclusive: "no verdict yet" };

export function lineage(adapter, dataset, tests) {
  const chain = [];
  if (adapter.training_dataset_id) {
    chain.push({ name: dataset?.judgements === null || !dataset ? "Feedback" : `${dataset.judgements.toLocaleString()} judgements`, text: "feedback" });
    chain.push({ name: dataset?.name ?? "a dataset", text: dataset?.sample_count ? `${dataset.sample_count.toLocaleString()} ${dataset.type === "preference" ? "pairs" : "samples"}` : "dataset" });
  }
  if (adapter.training_id) chain.push({ name: adapter.training_config?.method ?? "Training", text: "training" });
  chain.push({ name: `${adapter.name} ${adapter.version}`, text: adapter.is_active ? "in use" : "inactive", on: true });
  const judged = tests.slice(0, 5);
  const rows = Math.max(1, judged.length), middle = ((rows - 1) * (HIGH + 10)) / 2;
  const width = (chain.length + (judged.length ? 1 : 0)) * (WIDE + GAP) - GAP, height = rows * (HIGH + 10) - 10;
  const box = ({ name, text, on, href }, x, y) => {
    const short = name.length > 17 ? `${name.slice(0, 16)}…` : name;
    const inner = [el("title", {}, `${name}: ${text}`), el("rect", { x: x + 0.5, y: y + 0.5, width: WIDE - 1, height: HIGH - 1, rx: 8, class: on ? "on" : "" }), el("text", { x: x + 10, y: y + 19, class: "name" }, short), el("text", { x: x + 10, y: y + 36 }, text)];
    return href ? el("g", {}, link(href, name, text, inner)) : el("g", {}, inner);
  };
  const line = (x, from, to) => el("path", { d: `M${x} ${from + HIGH / 2}C${x + GAP / 2} ${from + HIGH / 2} ${x + GAP / 2} ${to + HIGH / 2} ${x + GAP} ${to + HIGH / 2}` });
  const parts = chain.flatMap((each, at) => [box(each, at * (WIDE + GAP), middle), at > 0 && line(at * (WIDE + GAP) - GAP, middle, middle)]);
  const x = chain.length * (WIDE + GAP);
  judged.forEach((test, at) => {
    const y = at * (HIGH + 10), said = test.said, side = test.adapter_a === adapter.id ? "A" : "B";
    const text = !said?.cast ? "no votes yet" : said.verdict === side ? "better" : said.verdict === "A" || said.verdict === "B" ? "worse" : SHORT[said.verdict] ?? said.verdict;
    parts.push(line(x - GAP, middle, y), box({ name: test.name, text: `${text}${said?.votes ? ` (${said.votes})` : ""}`, href: `#/tests/${test.id}` }, x, y));
  });
  return el("div", { className: "scroll", tabindex: 0, role: "group", "aria-label": "Where it comes from, scrolls" },
    el("svg", { class: "lineage", viewBox: `0 0 ${width} ${height}`, width, height, role: judged.length ? "group" : "img", "aria-label": `Where it comes from: ${chain.map((each) => each.name).join(", then ")}` }, parts));
}

function link(href, name, text, inner) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "a");
  node.setAttribute("href", href);
  node.setAttribute("aria-label", `${name}: ${text}`);
  node.append(...inner);
  return node;
}
