// The workers and what is resident on each, one card a worker.
import { element } from "./element.js";
import { bytes, counted, percent } from "./figures.js";
import { Grid } from "./grid.js";
import { cells, size } from "./masks.js";

const NAMES = ["not resident", "resident", "resident, came with the last swap", "went with the last swap"];
const [EMPTY, RESIDENT, IN, OUT] = NAMES.keys();

export class Residency {
  #place;
  #cards = new Map();
  #more = element("p", { className: "hint" });

  constructor(place) {
    this.#place = place;
  }

  show({ workers, left_out: leftOut }) {
    const addresses = new Set(workers.map((worker) => worker.address));
    for (const address of this.#cards.keys()) if (!addresses.has(address)) this.#cards.delete(address);
    for (const worker of workers) {
      if (!this.#cards.has(worker.address)) this.#cards.set(worker.address, new Card());
      this.#cards.get(worker.address).show(worker);
    }
    this.#more.textContent = leftOut ? `${counted(leftOut, "worker")} more without a picture` : "";
    const wanted = [...addresses].map((address) => this.#cards.get(address).element);
    const shown = [...this.#place.children];
    // The same elements stay where they are, or the focus would be lost at every look.
    if (wanted.length + 1 !== shown.length || wanted.some((card, index) => card !== shown[index])) {
      this.#place.replaceChildren(...wanted, this.#more);
    }
  }
}

class Card {
  #title = element("h3");
  #state = element("p", { className: "hint" });
  #swap = element("p", { className: "swap" });
  #note = element("output", { className: "note" });
  #grid = new Grid(colours, this.#note);
  element = element("article", { className: "worker" }, this.#title, this.#state, this.#grid.element, this.#swap, this.#note);
  #drawn = "";

  show(worker) {
    this.#title.textContent = worker.address;
    this.element.classList.toggle("gone", !worker.serving);
    if (!worker.serving) {
      this.#state.textContent = "does not serve";
      return;
    }
    const experts = worker.experts;
    const resident = cells(worker.resident, experts);
    const share = percent(worker.device_bytes / (worker.total_bytes || 1));
    this.#state.textContent = [
      worker.model,
      `budget ${worker.budget}`,
      `${bytes(worker.device_bytes)} of ${bytes(worker.total_bytes)} (${share}) in slots`,
      `${worker.running} running, ${worker.waiting} waiting`,
    ].join(" · ");
    // Redrawn only when a cell changed: fifteen thousand of them take their time.
    const drawn = JSON.stringify([worker.resident, worker.moved]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const values = Uint8Array.from(resident, (each) => (each ? RESIDENT : EMPTY));
    const moved = worker.moved ?? { in: [], out: [] };
    const came = cells(moved.in, experts);
    const went = cells(moved.out, experts);
    came.forEach((each, index) => { if (each) values[index] = IN; });
    went.forEach((each, index) => { if (each) values[index] = OUT; });
    this.#swap.textContent = worker.moved
      ? `Last swap: ${counted(size(came), "expert")} came, ${size(went)} went (generation ${worker.generation})`
      : `Nothing has moved since the gateway began to look (generation ${worker.generation})`;
    const label = `${worker.resident.length} layers of ${experts} experts, ${size(resident)} resident. ${this.#swap.textContent}`;
    this.#grid.show(values, experts, label, (value) => NAMES[value]);
  }
}

function colours(style) {
  const known = ["empty", "resident", "in", "out"].map((name) => style.getPropertyValue(`--${name}`));
  return (value) => known[value];
}
