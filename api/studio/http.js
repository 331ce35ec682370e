// Requests to the studio that served this page. A key, where the studio has keys, stays in this tab's session.

import { el } from "./dom.js";

// Milliseconds for which a studio may be away, as while it starts again on a busy machine, and may say that it cannot.
const AWAY = 60000, UNABLE = 20000;

let position = null;
let asking = null;

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.errors?.length ? problem.errors.map((each) => each.detail).join(" ") : problem.detail ?? `The studio answered ${status}.`);
    this.status = status;
    this.problem = problem;
  }
}

export async function request(method, path, { body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  const key = sessionStorage.getItem("key");
  if (key) sent["X-API-Key"] = key;
  if (position) sent["If-Event-Position"] = position;
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) sent["Content-Type"] = "application/json";
  let answer;
  for (const begun = Date.now(); ;) {
    try {
      answer = await fetch(path, { method, headers: sent, body: body === undefined || isForm ? body : JSON.stringify(body), signal });
    } catch (error) {
      if (signal?.aborted || Date.now() - begun > AWAY || (method === "POST" && !sent["Idempotency-Key"])) throw signal?.aborted ? error : new Error("The studio does not answer. It may be starting again; try once more.");
      await new Promise((done) => setTimeout(done, 500));
      continue;
    }
    if (answer.status !== 503 || Date.now() - begun > UNABLE) break;
    await new Promise((done) => setTimeout(done, 1000));
  }
  if (answer.status === 401) {
    await askForKey(Boolean(key));
    return request(method, path, { body, headers, signal });
  }
  // A read may arrive late, and must not take the place of what was written since.
  if (method !== "GET") position = answer.headers.get("X-Event-Position") ?? position;
  if (!answer.ok) throw new Refused(await answer.json().catch(() => ({})), answer.status);
  return answer;
}

// After a break the studio may be another one, on another log.
export const forgetPosition = () => { position = null; };

// Who listens, where no key says it: one name for each browser.
export function listener() {
  if (sessionStorage.getItem("key")) return null;
  let name = localStorage.getItem("voter");
  if (!name) localStorage.setItem("voter", name = `listener-${Math.random().toString(36).slice(2, 8)}`);
  return name;
}

export const get = async (path, options) => {
  const answer = await request("GET", path, options);
  return answer.status === 204 ? null : answer.json();
};

// The key makes a repeat the same thing, so an answer that was lost makes nothing twice.
export const post = async (path, body, key = crypto.randomUUID?.() ?? String(Math.random())) =>
  (await request("POST", path, { body, headers: { "Idempotency-Key": key } })).json();

export const send = async (method, path, body) => {
  const answer = await request(method, path, { body });
  return answer.status === 204 ? null : answer.json().catch(() => null);
};

export function query(fields) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value !== "" && value !== null && value !== undefined) found.set(name, value);
  const text = found.toString();
  return text ? `?${text}` : "";
}

export async function save(path, name) {
  const answer = await request("GET", path);
  const link = el("a", { href: URL.createObjectURL(await answer.blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const input = el("input", { type: "password", autocomplete: "off", required: true, pattern: "\\s*t2s_[\\x21-\\x7e]+\\s*", title: "A key begins with t2s_. Copy it as it was printed.", id: "api-key" });
    const dialog = el("dialog", { "aria-label": "Key" },
      el("form", { method: "dialog" },
        el("h2", {}, "This studio asks for a key"),
        refused && el("p", { className: "problem", role: "alert" }, "That key was not accepted: it is unknown, revoked, or has expired."),
        el("p", {}, "Whoever runs it makes one with ", el("code", {}, "text2song keys create"), ". The key stays in this tab until you close it."),
        el("div", { className: "field" }, el("label", { htmlFor: "api-key" }, "Key"), input),
        el("div", { className: "row end" }, el("button", { className: "primary" }, "Use the key"))));
    dialog.addEventListener("close", () => { sessionStorage.setItem("key", input.value.trim()); dialog.remove(); asking = null; resolve(); });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
