// A look at tokens: an answer's by probability with what else was likely, a question's with their ids, all that the model reads.

import { $, button, h, openDialog } from "./dom.js";
import { askJson } from "./wire.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(Math.exp(logprob) < 0.1 ? 1 : 0)}%`;
const visible = (text) => text.replaceAll("\n", "↵") || "·";

/** The answer as tokens, five shades from sure to unlikely. `take(index, text)` continues from another choice. */
export function showTokens(content, message, take) {
  const state = `tokens ${message.tokens.length}`;
  if (content.dataset.state === state) return;
  content.dataset.state = state;
  const tokens = message.tokens.map((token, index) => {
    const shade = Math.min(4, Math.floor(-token.logprob / 0.6));
    return h(`button.token.p${shade}`, { type: "button", onclick: (event) => openChoices(event.currentTarget, token, (text) => take(index, text)), title: percent(token.logprob), "aria-label": `${visible(token.text)}, ${percent(token.logprob)}` }, token.text.replaceAll("\n", "↵\n"));
  });
  content.replaceChildren(h("div.body.tokens", { role: "group", "aria-label": "Tokens by probability" }, tokens));
}

function openChoices(anchor, token, take) {
  document.querySelector(".choices")?.remove();
  const choices = h("div.choices", { popover: "auto", role: "group", "aria-label": `Instead of ${visible(token.text)}` });
  choices.append(h("p.note", {}, "Continue from another token"), ...token.top.map(([text, logprob]) =>
    button(h("span", {}, h("code", {}, visible(text)), ` ${percent(logprob)}`), () => { choices.hidePopover(); take(text); }, { disabled: text === token.text })));
  choices.addEventListener("toggle", (event) => { if (event.newState === "closed") { choices.remove(); anchor.focus({ preventScroll: true }); } });
  document.querySelector("main").append(choices); // content belongs to a landmark
  choices.showPopover();
  const { left, bottom } = anchor.getBoundingClientRect();
  choices.style.left = `${Math.max(8, Math.min(left, innerWidth - choices.offsetWidth - 8))}px`;
  choices.style.top = `${Math.max(8, Math.min(bottom + 4, innerHeight - choices.offsetHeight - 8))}px`;
  choices.querySelector("button:enabled")?.focus();
}

/** `{ids, texts}` of a text or of messages as the server's tokenizer splits them. */
async function tokenize(body, key) {
  const answer = await askJson("tokenize", { key, body: { ...body, return_token_strs: true } });
  return { ids: answer.tokens, texts: answer.token_strs ?? answer.tokens.map(String) };
}

const chips = ({ ids, texts }) => ids.map((id, index) => h(`span.chip${/^<\|.*\|>$/.test(texts[index]) ? ".special" : ""}`, {}, h("code", {}, visible(texts[index])), h("small", {}, String(id))));

let asked = 0;

/** The tokens of what is being typed, under it. An answer that comes after a later question is dropped. */
export async function updateRibbon(text, key) {
  const mine = (asked += 1);
  try {
    const tokens = text ? await tokenize({ prompt: text, add_special_tokens: false }, key) : { ids: [], texts: [] };
    if (mine === asked) $("ribbon").replaceChildren(h("span.note", {}, `${tokens.ids.length} tokens`), ...chips(tokens));
  } catch (error) {
    if (mine === asked) $("ribbon").replaceChildren(h("span.note", {}, `The server does not show its tokens: ${error.message}`));
  }
}

/** All that the model reads before it answers, special tokens too. */
export async function openPrompt(messages, key) {
  const list = h("div.chips", { tabIndex: 0, role: "region", "aria-label": "Tokens" }, h("p.note", {}, "Asking the server…"));
  openDialog("What the model really sees", list);
  try {
    const tokens = await tokenize({ messages, add_generation_prompt: true }, key);
    list.replaceChildren(h("p.note", {}, `${tokens.ids.length} tokens`), ...chips(tokens));
  } catch (error) {
    list.replaceChildren(h("p.note", {}, `The server does not show its tokens: ${error.message}`));
  }
}
