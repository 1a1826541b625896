// The stored patterns: a heat-map of each, one of all together, and the choice of one for a prompt.
import { element } from "./element.js";
import { counted } from "./figures.js";
import { Grid } from "./grid.js";
import { cells, size } from "./masks.js";
import { overlapTable } from "./overlaps.js";

export class Patterns {
  #place;
  #overlaps;
  #note;
  #select;

  constructor(place, overlaps, note, select) {
    this.#place = place;
    this.#overlaps = overlaps;
    this.#note = note;
    this.#select = select;
    this.#offer([]);
  }

  // The pattern that the next prompt names; empty: its task is recognised.
  get chosen() {
    return this.#select.value;
  }

  show({ budget, layers, experts, patterns, overlaps, left_out: leftOut }) {
    const sets = patterns.map((pattern) => cells(pattern.kept, experts));
    const more = leftOut ? ` ${counted(leftOut, "pattern")} more without a picture.` : "";
    this.#note.textContent = `The experts that each task keeps at budget ${budget}, ${layers} layers of ${experts}.${more}`;
    const common = new Uint8Array(layers * experts);
    for (const set of sets) set.forEach((each, index) => { common[index] += each; });
    const pictures = patterns.map((pattern, index) => (
      figure(pattern.task, `${size(sets[index])} kept`, sets[index], experts, 1, (value) => (value ? "kept" : "not kept"))
    ));
    if (patterns.length) {
      const say = (value) => `kept by ${value} of ${patterns.length}`;
      pictures.unshift(figure("all of them", "how many keep it", common, experts, patterns.length, say));
    }
    this.#place.replaceChildren(...pictures);
    this.#overlaps.replaceChildren(overlapTable(patterns.map((pattern) => pattern.task), overlaps));
    this.#offer(patterns);
  }

  refused(error) {
    this.#note.textContent = error.message;
  }

  #offer(patterns) {
    const before = this.chosen;
    const tasks = patterns.filter((pattern) => pattern.kind === "specialist");
    const choices = [["", "recognise the task"], ["generalist", "generalist"], ["full", "every expert"]];
    choices.push(...tasks.map((pattern) => [pattern.id, pattern.task]));
    this.#select.replaceChildren(...choices.map(([value, text]) => element("option", { value, text })));
    if (choices.some(([value]) => value === before)) this.#select.value = before;
  }
}

function figure(name, about, values, experts, most, say) {
  const note = element("output", { className: "note" });
  const grid = new Grid((style) => heat(style, most), note);
  const caption = element("figcaption", {}, element("b", { text: name }), element("span", { text: about }), note);
  const made = element("figure", {}, caption, grid.element);
  grid.show(values, experts, `${name}: ${about}`, say);
  return made;
}

// From nothing to the full colour in `most` steps.
function heat(style, most) {
  const [none, full] = [style.getPropertyValue("--empty"), style.getPropertyValue("--resident")];
  const steps = Array.from({ length: most + 1 }, (_, step) => (
    step ? `color-mix(in srgb, ${full} ${Math.round(15 + 85 * step / most)}%, ${none})` : none
  ));
  return (value) => steps[value];
}
