// Which models are served, and the one that is asked.
import { element } from "./element.js";

export class Models {
  #select;
  #changed;
  #names = [];
  #workers = [];

  constructor(select, changed) {
    this.#select = select;
    this.#changed = changed;
    select.addEventListener("change", changed);
  }

  get chosen() {
    return this.#select.value;
  }

  get summary() {
    const serving = this.#workers.filter((worker) => worker.serving).length;
    if (!this.#workers.length) return "no worker yet";
    return `${serving} of ${this.#workers.length} ${this.#workers.length === 1 ? "worker serves" : "workers serve"}`;
  }

  show(workers) {
    this.#workers = workers;
    const names = [...new Set(workers.filter((worker) => worker.serving).map((worker) => worker.model))].sort();
    // While none serves, the names of before stay: their workers are on their way.
    if (!names.length || names.join("\n") === this.#names.join("\n")) return;
    const before = this.chosen;
    this.#names = names;
    this.#select.replaceChildren(...names.map((name) => element("option", { value: name, text: name })));
    if (names.includes(before)) this.#select.value = before;
    this.#select.disabled = names.length < 2;
    if (this.chosen !== before) this.#changed();
  }
}
