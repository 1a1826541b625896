// Asks again and again while the page is looked at; slower while it fails.
const SLOW_S = 5;

export class Poll {
  #ask;
  #told;
  #seconds = 1;
  #timer = 0;
  #busy = false;
  #again = false;

  // `ask` may resolve to the seconds until the next time; `told` gets the error, or null.
  constructor(ask, told) {
    this.#ask = ask;
    this.#told = told;
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.now(); });
  }

  start() {
    this.now();
  }

  async now() {
    if (this.#busy) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    this.#busy = true;
    let wait = SLOW_S;
    try {
      this.#seconds = (await this.#ask()) ?? this.#seconds;
      wait = Math.max(0.5, this.#seconds);
      this.#told(null);
    } catch (error) {
      this.#told(error);
    }
    this.#busy = false;
    if (this.#again) wait = 0;
    this.#again = false;
    if (!document.hidden) this.#timer = setTimeout(() => this.now(), 1000 * wait);
  }
}
