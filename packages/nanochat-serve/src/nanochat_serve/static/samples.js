// One question asked several times, or of several models: answers side by side, the same ones counted.

import { button, h, openDialog } from "./dom.js";
import { askJson } from "./wire.js";

const NUM_SAMPLES = 8;

/** Asks eight times; `keep(text)` makes an answer part of the chat. */
export async function openSamples(request, key, keep) {
  const grid = gridOf(NUM_SAMPLES);
  const counts = h("p.note", { role: "status" }, "Asking eight times…");
  const dialog = openDialog("Asked eight times", counts, grid);
  try {
    const { choices } = await askJson("v1/chat/completions", { key, body: { ...request, n: NUM_SAMPLES } });
    const texts = choices.map((choice) => choice.message.content.trim());
    counts.textContent = countsOf(texts);
    grid.replaceChildren(...texts.map((text) => cell(text, text, dialog, keep)));
  } catch (error) {
    counts.textContent = error.message;
    grid.remove();
  }
}

/** Asks each model, with one seed; a slider walks through their answers. */
export async function openComparison(request, models, key, keep) {
  const grid = gridOf(models.length);
  const slider = h("input", { type: "range", min: "0", max: String(models.length - 1), value: String(models.length - 1), "aria-label": "Model" });
  const name = h("output", {}, models.at(-1));
  const dialog = openDialog("Compare models", h("div.row", {}, slider, name), grid);
  const select = () => {
    const at = Number(slider.value);
    name.textContent = models[at];
    slider.setAttribute("aria-valuetext", models[at]);
    [...grid.children].forEach((child, index) => child.classList.toggle("chosen", index === at));
    grid.children[at].scrollIntoView({ block: "nearest" });
  };
  slider.addEventListener("input", select);
  select();
  await Promise.all(models.map(async (model, index) => {
    let made;
    try {
      const { choices } = await askJson("v1/chat/completions", { key, body: { ...request, model } });
      made = cell(model, choices[0].message.content.trim(), dialog, keep);
    } catch (error) {
      made = h("div.cell", {}, h("strong", {}, model), h("p", {}, error.message));
    }
    grid.children[index].replaceWith(made);
    select();
  }));
}

const gridOf = (count) => h("div.grid", { tabIndex: 0, role: "region", "aria-label": "Answers" }, Array.from({ length: count }, () => h("div.cell.busy", {}, "…")));

function cell(head, text, dialog, keep) {
  const use = button("Use it", () => { dialog.close(); keep(text); }, { name: `Use this answer: ${text.slice(0, 40)}` });
  return h("div.cell", {}, head === text ? null : h("strong", {}, head), h("p", { dir: "auto" }, text || "(nothing)"), use);
}

// "42: 6 times; 41: once"
function countsOf(texts) {
  const counts = new Map();
  for (const text of texts) counts.set(text, (counts.get(text) ?? 0) + 1);
  const most = [...counts].sort((a, b) => b[1] - a[1]).filter(([, count]) => count > 1);
  const shown = most.map(([text, count]) => `“${text.slice(0, 60)}” ${count} times`);
  return `${counts.size} different answers in ${texts.length}${shown.length ? `: ${shown.join(", ")}` : ""}.`;
}
