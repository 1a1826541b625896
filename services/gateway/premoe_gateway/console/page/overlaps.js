// How much of each pattern the others keep, too: a table that can be read as well as seen.
import { element } from "./element.js";

export function overlapTable(tasks, shares) {
  const head = element("tr", {}, element("td"), ...tasks.map((task) => (
    element("th", { scope: "col" }, element("span", { text: task, title: task }))
  )));
  const rows = shares.map((row, index) => element(
    "tr", {}, element("th", { scope: "row", text: tasks[index], title: tasks[index] }), ...row.map(cell),
  ));
  return element("table", { className: "overlaps" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

function cell(share) {
  const made = element("td", { text: Math.round(100 * share) });
  made.style.setProperty("--share", `${Math.round(100 * share)}%`);
  made.classList.toggle("high", share > 0.6);
  return made;
}
