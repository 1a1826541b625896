// The API key: in this tab's session storage only, and in the header of requests.
const NAME = "premoe-key";

export class Key {
  #details;
  #input;

  constructor(details, changed) {
    this.#details = details;
    this.#input = details.querySelector("input");
    this.#input.value = sessionStorage.getItem(NAME) ?? "";
    details.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep(this.#input.value.trim());
      changed();
    });
    details.querySelector("#key-forget").addEventListener("click", () => {
      this.#input.value = "";
      this.#keep("");
      changed();
    });
  }

  get headers() {
    const key = sessionStorage.getItem(NAME);
    return key ? { authorization: `Bearer ${key}` } : {};
  }

  // Opens the field: a request was refused for want of a key.
  ask() {
    this.#details.open = true;
  }

  #keep(key) {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
    this.#details.open = false;
  }
}
