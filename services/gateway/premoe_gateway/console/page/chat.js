// The chat: what was said, the prompt being written, and the answer that comes.
import { element } from "./element.js";
import { record } from "./record.js";
import { events } from "./stream.js";

const at = (id) => document.getElementById(id);

export class Chat {
  #api;
  #models;
  #patterns;
  #answered;
  #turns = [];
  #running = null;
  #log = at("log");

  // `answered` is called when an answer has come, for it may have moved experts.
  constructor(api, models, patterns, answered) {
    this.#api = api;
    this.#models = models;
    this.#patterns = patterns;
    this.#answered = answered;
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    at("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    at("stop").addEventListener("click", () => this.#running?.abort());
    at("fresh").addEventListener("click", () => this.#forget());
  }

  async #send() {
    const prompt = at("prompt").value;
    if (this.#running || !prompt.trim()) return;
    at("empty").hidden = true;
    at("prompt").value = "";
    this.#busy(new AbortController());
    this.#add("user", prompt);
    const turns = this.#turns;
    const messages = [...turns, { role: "user", content: prompt }];
    const answer = this.#add("assistant", "");
    try {
      const text = await this.#read(answer, await this.#ask(messages));
      turns.push(messages.at(-1), { role: "assistant", content: text });
    } catch (error) {
      const said = error.name === "AbortError" ? "stopped" : error.message;
      answer.append(element("p", { className: "failed", text: said }));
    }
    this.#follow(answer);
    this.#busy(null);
    this.#answered();
  }

  #ask(messages) {
    const body = { model: this.#models.chosen, messages, stream: true, stream_options: { include_usage: true } };
    if (at("tokens").value) body.max_tokens = Number(at("tokens").value);
    if (at("temperature").value) body.temperature = Number(at("temperature").value);
    if (this.#patterns.chosen) body.pattern = this.#patterns.chosen;
    return this.#api.post("v1/chat/completions", body, this.#running.signal);
  }

  async #read(answer, response) {
    const text = answer.querySelector(".text");
    let said = null;
    let usage = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices[0]?.delta?.content;
      if (piece) {
        text.textContent += piece;
        this.#follow(answer);
      }
      said = event.premoe ?? said;
      usage = event.usage ?? usage;
    }
    if (said === null) throw new Error("the answer was cut off");
    answer.append(record(said, usage));
    return text.textContent;
  }

  #add(role, content) {
    const name = element("h3", { text: role === "user" ? "You" : this.#models.chosen });
    const turn = element("article", { className: `turn ${role}` }, name, element("p", { className: "text", text: content }));
    this.#log.append(turn);
    this.#log.scrollTop = this.#log.scrollHeight;
    return turn;
  }

  // Stays at the end, unless the reader has scrolled up.
  #follow(answer) {
    const below = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight;
    if (below < answer.clientHeight + 80) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #busy(running) {
    this.#running = running;
    at("send").disabled = Boolean(running);
    at("stop").disabled = !running;
    this.#log.setAttribute("aria-busy", String(Boolean(running)));
  }

  #forget() {
    this.#running?.abort();
    this.#turns = [];
    this.#log.replaceChildren(at("empty"));
    at("empty").hidden = false;
    at("prompt").focus();
  }
}
