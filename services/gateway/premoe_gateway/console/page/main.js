// Puts the parts of the page together: nothing is decided here.
import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Key } from "./key.js";
import { Models } from "./models.js";
import { Patterns } from "./patterns.js";
import { Poll } from "./poll.js";
import { Residency } from "./residency.js";

const PATTERNS_S = 10;
const at = (id) => document.getElementById(id);

const key = new Key(at("key"), () => { residency.now(); patterns.now(); });
const api = new Api(key);
const models = new Models(at("model"), () => patterns.now());
const workers = new Residency(at("workers"));
const stored = new Patterns(at("patterns"), at("overlaps"), at("patterns-note"), at("pattern"));

const residency = new Poll(async () => {
  const said = await api.document("premoe/v1/residency");
  if (said !== null) {
    models.show(said.workers);
    workers.show(said);
  }
  return said?.poll_s;
}, (error) => status(error));

const patterns = new Poll(async () => {
  if (models.chosen) {
    const said = await api.document(`premoe/v1/patterns?model=${encodeURIComponent(models.chosen)}`);
    if (said !== null) stored.show(said);
  }
  return PATTERNS_S;
}, (error) => { if (error) stored.refused(error); });

function status(error) {
  at("status").textContent = error ? error.message : models.summary;
  at("status").classList.toggle("bad", Boolean(error) || !models.chosen);
}

new Chat(api, models, stored, () => residency.now());
residency.start();
patterns.start();
