// What an answer says of itself: decision, task, score, what was kept and what was moved.
import { element } from "./element.js";
import { bytes, counted, milliseconds, percent } from "./figures.js";

export function record(said, usage) {
  const swap = said.swap.blobs_loaded
    ? `${counted(said.swap.blobs_loaded, "expert")}, ${bytes(said.swap.bytes_loaded)}, ${milliseconds(said.swap.milliseconds)}`
    : `nothing moved, ${milliseconds(said.swap.milliseconds)}`;
  const known = [
    ["decision", said.decision],
    ["task", said.task || "none"],
    ["score", said.score === null ? "you named it" : said.score.toFixed(3)],
    ["retained mass", percent(said.retained_mass, 1)],
    ["swap", swap],
    ["first token", milliseconds(said.first_token_ms)],
  ];
  if (said.probe_ms !== null) known.splice(5, 0, ["recognised in", milliseconds(said.probe_ms + said.retrieve_ms)]);
  if (usage?.completion_tokens > 1 && said.decode_ms > 0) {
    known.push(["speed", `${Math.round(1000 * (usage.completion_tokens - 1) / said.decode_ms)} tokens/s`]);
  }
  const list = element("dl", { className: `record ${said.decision}` }, ...known.map(([name, text]) => (
    element("div", { "data-name": name }, element("dt", { text: name }), element("dd", { text }))
  )));
  return element("div", {}, list, element("p", { className: "hint reason", text: said.reason }));
}
