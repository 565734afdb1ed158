// The model's card: what it is, how it learnt, what it is good at and where it errs. All of it as the server tells it.

import { button, h, openDialog } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

/** `card`: `{facts: {name: value}, loss: [[step, loss]], samples: [text], skills: [{name, score, mistakes: [{question, answer, expected}]}]}`. */
export function openCard(card, facts, ask) {
  const { loss = [], samples = [], skills = [] } = card ?? {};
  const rows = Object.entries({ Model: facts.model, Context: facts.context && `${facts.context} tokens`, ...card?.facts, Running: facts.running, Waiting: facts.waiting });
  const list = h("dl", {}, rows.filter(([, value]) => value !== undefined && value !== null).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
  const dialog = openDialog("The model", h("div.card", { tabIndex: 0, role: "region", "aria-label": "The model's card" }, list,
    loss.length > 1 && [h("h3", {}, "Loss while it learnt"), curve(loss)],
    skills.length > 0 && [h("h3", {}, "Skills"), h("ul.skills", {}, skills.map((skill) => skillRow(skill, (question) => { dialog.close(); ask(question); })))],
    samples.length > 0 && [h("h3", {}, "Samples"), samples.map((sample) => h("blockquote", { dir: "auto" }, sample))]));
}

function skillRow({ name, score, mistakes = [] }, ask) {
  return h("li", {}, h("span", {}, name), h("meter", { min: 0, max: 1, value: score, "aria-label": `${name}, ${Math.round(100 * score)}%` }), h("span", {}, `${Math.round(100 * score)}%`),
    mistakes.length > 0 && h("details", {}, h("summary", {}, `Mistakes in ${name}`),
      mistakes.map(({ question, answer, expected }) => h("p", {}, button(question, () => ask(question), { name: `Ask again: ${question}` }), ` said ${answer}, right is ${expected}`))));
}

// Steps along, loss up; both axes from the least to the greatest.
function curve(points) {
  const [steps, losses] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const scale = (value, values, length) => (length * (value - Math.min(...values))) / (Math.max(...values) - Math.min(...values) || 1);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "-4 -4 408 108");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `From ${losses[0].toFixed(2)} at step ${steps[0]} to ${losses.at(-1).toFixed(2)} at step ${steps.at(-1)}`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.map(([step, value]) => `${scale(step, steps, 400).toFixed(1)},${(100 - scale(value, losses, 100)).toFixed(1)}`).join(" "));
  svg.append(line);
  return h("figure", {}, svg, h("figcaption", {}, svg.getAttribute("aria-label")));
}
