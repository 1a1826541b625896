// The gateway's HTTP API, relative to this page, with the key where there is one.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  #key;
  #last = new Map();

  constructor(key) {
    this.#key = key;
  }

  // The document at a path, or null while it is what it was the last time.
  async document(path) {
    const text = await (await this.#fetch(path, { cache: "no-cache" })).text();
    if (this.#last.get(path) === text) return null;
    this.#last.set(path, text);
    return JSON.parse(text);
  }

  // The answer to a JSON body, as it comes. Aborted by `signal`.
  async post(path, body, signal) {
    const headers = { "content-type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...this.#key.headers };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "the gateway does not answer");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) this.#key.ask();
    throw new Refused(answer.status, await reason(answer));
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the gateway answered ${answer.status}`;
  }
}
