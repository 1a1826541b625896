// A picture of layers × experts on a canvas, whose cells can be told one by one.
const TALLEST_CELL = 14;
const LOWEST_CELL = 3;
const GAP_FROM = 5;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Grid {
  #canvas = document.createElement("canvas");
  #note;
  #colour;
  #layers = 0;
  #experts = 0;
  #values = new Uint8Array();
  #say = () => "";
  #cursor = null;

  // `colours(style)`: from a value to a colour of the canvas's computed style. `note`: where the cell is told.
  constructor(colours, note) {
    this.#colour = colours;
    this.#note = note;
    this.#canvas.setAttribute("role", "img");
    this.#canvas.tabIndex = 0;
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#move(null));
    this.#canvas.addEventListener("keydown", (event) => this.#press(event));
    this.#canvas.addEventListener("blur", () => this.#move(null));
    this.#canvas.addEventListener("redraw", () => this.#draw());
    // In the next frame: drawing sets the height, which the observer must not see at once.
    new ResizeObserver(() => requestAnimationFrame(() => this.#draw())).observe(this.#canvas);
  }

  get element() {
    return this.#canvas;
  }

  // One value a cell, layer by layer; `label` for those who see no picture, `say(value)` for one cell.
  show(values, experts, label, say) {
    this.#values = values;
    this.#experts = experts;
    this.#layers = values.length / experts;
    this.#say = say;
    this.#canvas.setAttribute("aria-label", label);
    this.#canvas.style.maxWidth = `${experts * TALLEST_CELL}px`;
    this.#draw();
    this.#tell();
  }

  #draw() {
    const width = this.#canvas.clientWidth;
    if (!width || !this.#layers) return;
    const cell = Math.min(TALLEST_CELL, Math.max(LOWEST_CELL, width / this.#experts));
    const height = Math.round(cell * this.#layers);
    this.#canvas.style.height = `${height}px`;
    // At least a pixel a cell, whatever the width: the browser scales it down.
    this.#canvas.width = Math.max(this.#experts, Math.round(width * devicePixelRatio));
    this.#canvas.height = Math.max(this.#layers, Math.round(height * devicePixelRatio));
    const context = this.#canvas.getContext("2d");
    const colours = this.#colour(getComputedStyle(this.#canvas));
    // Where there are no gaps, what is not there is painted at once.
    const close = this.#canvas.width / this.#experts < GAP_FROM;
    context.fillStyle = colours(0);
    if (close) context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#values.forEach((value, index) => {
      if (close && !value) return;
      context.fillStyle = colours(value);
      context.fillRect(...this.#box(Math.floor(index / this.#experts), index % this.#experts));
    });
    if (this.#cursor) {
      const [x, y, w, h] = this.#box(...this.#cursor);
      context.strokeStyle = getComputedStyle(this.#canvas).color;
      context.lineWidth = Math.max(2, devicePixelRatio);
      context.strokeRect(x - 1, y - 1, w + 2, h + 2);
    }
  }

  #box(layer, expert) {
    const [x, right] = span(expert, this.#experts, this.#canvas.width);
    const [y, bottom] = span(layer, this.#layers, this.#canvas.height);
    return [x, y, right - x, bottom - y];
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const layer = Math.floor((event.clientY - box.top) / box.height * this.#layers);
    const expert = Math.floor((event.clientX - box.left) / box.width * this.#experts);
    this.#move([layer, expert]);
  }

  #press(event) {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const [layer, expert] = this.#cursor ?? [0, 0];
    this.#move(this.#cursor ? [layer + step[0], expert + step[1]] : [0, 0]);
  }

  #move(cursor) {
    if (cursor) cursor = [within(cursor[0], this.#layers), within(cursor[1], this.#experts)];
    if (String(cursor) === String(this.#cursor)) return;
    this.#cursor = cursor;
    this.#draw();
    this.#tell();
  }

  #tell() {
    if (!this.#cursor) {
      this.#note.textContent = "";
      return;
    }
    const [layer, expert] = this.#cursor;
    this.#note.textContent = `layer ${layer}, expert ${expert}: ${this.#say(this.#values[layer * this.#experts + expert])}`;
  }
}

// One listener for all: those of pictures that are gone would keep them.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("redraw"));
});

const within = (place, count) => Math.min(count - 1, Math.max(0, place));

// From where to where a cell reaches, in whole pixels, with a gap where there is room for one.
function span(place, count, length) {
  const from = Math.round(place * length / count);
  const to = Math.round((place + 1) * length / count);
  return [from, length / count >= GAP_FROM ? to - 1 : to];
}
