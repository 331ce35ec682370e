// The gallery's jobs, by their place in the list. Memory stays flat, however far one scrolls.

import { get, query } from "./http.js";

const PAGE = 100, KEPT = 8;

// All that fit: a page follows the one before by its cursor, and by its offset where somebody jumped there.
export class Pages {
  count = 0;
  isComplete = false;
  #pages = new Map();
  #cursors = new Map();
  #asked = new Map();
  #round = 0;
  #seen = 0;

  constructor(fields, changed, failed) { Object.assign(this, { fields, changed, failed }); }

  get said() { return !this.isComplete ? "Loading …" : this.count === 1 ? "1 job" : `${this.count.toLocaleString()} jobs`; }
  begin() { this.#page(0); }
  end() { this.#round++; this.changed = this.failed = () => {}; }
  at(index) { this.#seen = Math.floor(index / PAGE); return this.#page(this.#seen)?.[index % PAGE]; }
  isLoaded(first, last) { return this.#pages.has(Math.floor(first / PAGE)) && this.#pages.has(Math.floor(last / PAGE)); }

  // What is shown stays until its new state has arrived.
  renew() {
    this.#round++;
    this.#asked.clear();
    this.#cursors.clear();
    for (const number of this.#pages.keys()) if (Math.abs(number - this.#seen) > 1) this.#pages.delete(number);
    for (const number of new Set([0, ...this.#pages.keys()])) this.#fetch(number);
  }

  #page(number) {
    if (!this.#pages.has(number) && !this.#asked.has(number)) this.#fetch(number);
    return this.#pages.get(number);
  }

  async #fetch(number) {
    const round = this.#round, from = this.#cursors.get(number);
    this.#asked.set(number, true);
    try {
      const found = await get(`/jobs${query({ ...this.fields, limit: PAGE, ...(from ? { cursor: from } : { offset: number * PAGE }) })}`);
      if (round !== this.#round) return;
      this.count = found.total;
      this.isComplete = true;
      this.#pages.set(number, found.items);
      if (found.next_cursor) this.#cursors.set(number + 1, found.next_cursor);
      if (this.#pages.size > KEPT) this.#pages.delete([...this.#pages.keys()].sort((one, other) => Math.abs(other - this.#seen) - Math.abs(one - this.#seen))[0]);
      this.changed();
    } catch (error) { this.failed(error); } finally { if (round === this.#round) this.#asked.delete(number); }
  }
}
