// One stream of everything that happens. A tab that slept or lost its studio connects again and reads anew.

import { forgetPosition, request } from "./http.js";

const listeners = new Set();
let shown = "";

export function listen(handler) {
  listeners.add(handler);
  return () => listeners.delete(handler);
}

// Draws a view, and once more a moment after each event that it names, until it is left.
export async function live(draw, concerns) {
  let timer = null;
  // Before the first read: what happens in between would be in neither.
  const stop = listen((name, body) => {
    if (name !== "connected" && !concerns(name, body)) return;
    clearTimeout(timer);
    timer = setTimeout(draw, 500);
  });
  await draw();
  return () => { clearTimeout(timer); stop(); };
}

export async function follow() {
  for (;;) {
    try {
      const answer = await request("GET", "/events", { headers: { Accept: "text/event-stream" } });
      await read(answer.body.getReader());
    } catch (error) {
      if (error.status && error.status < 500) { state(error.message); return; }
    }
    forgetPosition();
    state("The studio is away; trying again …");
    await new Promise((done) => setTimeout(done, 1000));
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    // A stream that says nothing for longer than its heartbeat is dead, as after a laptop slept.
    const { done, value } = await Promise.race([reader.read(), new Promise((_, fail) => setTimeout(() => fail(new Error("silence")), 40000))]);
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) tell(block);
  }
}

function tell(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trim());
  }
  if (!data.length || !data[0]) return;
  if (name === "connected") state("");
  const body = JSON.parse(data.join("\n"));
  for (const handler of [...listeners]) handler(name, body);
}

function state(text) {
  const line = document.getElementById("link");
  if (text === shown && line.dataset.live) return;
  shown = text;
  line.dataset.live = text ? "no" : "yes";
  line.textContent = text || "Live";
}
