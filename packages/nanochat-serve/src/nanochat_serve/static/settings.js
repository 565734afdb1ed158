// A chat's settings: fields as the server allows them, checked before they are sent; empty is the server's own value.

import { $, h } from "./dom.js";

/** Name, label, least, greatest, step. @type {[string, string, number, number, number][]} */
const FIELDS = [
  ["temperature", "Temperature", 0, 2, 0.1], ["top_k", "Top-k", 0, 200, 1], ["top_p", "Top-p", 0.01, 1, 0.01], ["max_tokens", "Max tokens", 1, 4096, 1],
  ["seed", "Seed", 0, 2 ** 53 - 1, 1], ["min_p", "Min-p", 0, 1, 0.01], ["repetition_penalty", "Repetition penalty", 0.1, 2, 0.05],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1], ["frequency_penalty", "Frequency penalty", -2, 2, 0.1],
];
const ALWAYS = ["temperature", "top_k", "top_p", "max_tokens", "seed"];
const idOf = (name) => name.replaceAll("_", "-");

/** The fields, made once for what the server knows; `change()` is called after each valid change. */
export function makeSettings(facts, chat, change) {
  const known = FIELDS.filter(([name]) => ALWAYS.includes(name) || facts.fields?.[name]);
  const fields = known.map(([name, label, ...fallback]) => {
    const schema = facts.fields?.[name] ?? {};
    const [least, greatest, step] = [schema.minimum ?? fallback[0], Math.min(schema.maximum ?? fallback[1], 2 ** 53 - 1), fallback[2]];
    const note = h("small", { id: `${idOf(name)}-note` });
    const input = h("input", { id: idOf(name), type: "number", min: least, max: greatest, step: step === 1 ? 1 : "any", inputMode: "decimal", "aria-describedby": note.id });
    input.addEventListener("change", () => {
      if (!showFault(input, note, label)) return;
      if (input.value === "") delete chat().settings[name];
      else chat().settings[name] = Number(input.value);
      change();
      showSettings(facts, chat());
    });
    return h("label", {}, label, input, note);
  });
  $("fields").replaceChildren(...fields);
  showSettings(facts, chat());
}

function showFault(input, note, label) {
  const valid = input.checkValidity();
  input.setAttribute("aria-invalid", String(!valid));
  if (!valid) note.textContent = `${label} must be ${input.step === "1" ? "a whole number " : ""}between ${input.min} and ${input.max}; not used`;
  return valid;
}

/** Shows a chat's values; what is set looks different from what is the server's. */
export function showSettings(facts, chat) {
  for (const [name] of FIELDS) {
    const input = $(idOf(name));
    if (!input) continue;
    const value = chat.settings[name];
    input.value = value ?? "";
    input.setAttribute("aria-invalid", "false");
    input.classList.toggle("set", value !== undefined);
    const served = facts.defaults?.[name] ?? facts.fields?.[name]?.default;
    $(`${idOf(name)}-note`).textContent = name === "seed" ? "empty: another each time" : served === undefined || served === null ? "empty: the server's" : `server's: ${served}`;
  }
  $("system").value = chat.system;
  $("show-tokens").checked = Boolean(chat.settings.logprobs);
  const several = facts.models?.length > 1;
  $("model-field").hidden = !several;
  if (several) {
    const chosen = chat.settings.model ?? facts.model;
    $("model-choice").replaceChildren(...facts.models.map((model) => h("option", { value: model, selected: model === chosen }, model)));
  }
}
