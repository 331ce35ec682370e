// The gallery's jobs, by their place in the list. Memory stays flat, however far one scrolls.

import { get, query } from "./http.js";

const PAGE = 100, KEPT = 8, SEARCHED_AT_ONCE = 2000;

// All that fit: a page follows the one before by its cursor, and by its offset where somebody jumped there.
export class Pages {
  count = 0;
  isComplete = false;
  canSearch = false;
  #pages = new Map();
  #cursors = new Map();
  #asked = new Map();
  #round = 0;
  #seen = 0;

  constructor(fields, changed, failed) { Object.assign(this, { fields, changed, failed }); }

  get said() { return !this.isComplete ? "Loading …" : this.count === 1 ? "1 job" : `${this.count.toLocaleString()} jobs`; }
  begin() { this.#page(0); }
  search() {}
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

// Those that have feedback. Feedback is counted apart from the jobs, so the jobs are searched, some thousands at a time.
export class Rated {
  canSearch = false;
  isComplete = false;
  #found = [];
  #cursor = null;
  #looked = 0;
  #total = 0;
  #searching = false;
  #round = 0;

  constructor(fields, changed, failed) { Object.assign(this, { fields, changed, failed }); }

  get count() { return this.#found.length; }
  get said() { return `${this.#found.length.toLocaleString()} with feedback${this.isComplete ? "" : ` among the newest ${this.#looked.toLocaleString()} of ${this.#total.toLocaleString()} jobs`}`; }
  begin() { this.search(); }
  end() { this.#round++; this.changed = this.failed = () => {}; }
  isLoaded() { return true; }
  at(index) {
    if (index > this.#found.length - 20 && !this.isComplete && !this.canSearch) this.search();
    return this.#found[index];
  }

  renew() {
    const [before, looked] = [this.#found, this.#looked];
    this.#round++;
    this.#searching = false;
    Object.assign(this, { isComplete: false });
    this.#cursor = null;
    this.#looked = 0;
    this.#found = [];
    this.search(before, looked);
  }

  async search(shown = null, until = 0) {
    if (this.#searching) return;
    const round = this.#round, found = shown ? [] : this.#found, begun = this.#looked;
    if (shown) this.#found = shown;
    this.#searching = true;
    this.canSearch = false;
    try {
      for (let hits = found.length; !this.isComplete;) {
        const page = await get(`/jobs${query({ ...this.fields, limit: 200, cursor: this.#cursor })}`);
        if (round !== this.#round) return;
        for (const job of page.items) if (job.feedback.has_feedback) found.push(slim(job));
        this.#looked += page.items.length;
        this.#total = page.total;
        this.#cursor = page.next_cursor;
        this.isComplete = !page.next_cursor;
        if (this.#looked < until) continue;
        if (found.length - hits >= PAGE) break;
        if (this.#looked - begun >= SEARCHED_AT_ONCE) { this.canSearch = !this.isComplete; break; }
      }
      this.#found = found;
    } catch (error) { this.canSearch = true; this.failed(error); } finally { if (round === this.#round) { this.#searching = false; this.changed(); } }
  }
}

const slim = ({ id, prompt, status, created_at, feedback, collection, ab_test_id, sample_ids, generation_params: { duration } }) => ({ id, prompt, status, created_at, feedback, collection, ab_test_id, sample_ids, generation_params: { duration } });
