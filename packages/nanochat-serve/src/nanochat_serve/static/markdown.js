// Markdown to DOM nodes, by markdown-it's tokens. All text goes in as text: whatever a model or a person writes, nothing becomes code.

import { copyButton, h } from "./dom.js";
import MarkdownIt from "./vendor/markdown-it.js";

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.validateLink = (url) => /^https?:/i.test(url);

// `5*6*7` is a product: between letters or digits a star marks nothing.
const scan = markdown.inline.State.prototype.scanDelims;
markdown.inline.State.prototype.scanDelims = function scanDelims(start, canSplitWord) {
  let end = start;
  while (this.src[end] === this.src[start]) end += 1;
  const inWord = /[A-Za-z0-9)]/.test(this.src[start - 1] ?? "") && /[A-Za-z0-9(]/.test(this.src[end] ?? "");
  return scan.call(this, start, canSplitWord && !inWord);
};

// Mathematics stays as it was written, so that its stars, lines and backslashes mean what they mean there.
const MATHS = /\$\$[^$]+\$\$|\$(?![\s\d.,]+\s)[^\s$](?:[^$\n]*[^\s$\\])?\$(?!\d)|\\\([^\n]+?\\\)|\\\[[^]+?\\\]/y;
markdown.inline.ruler.before("escape", "maths", (state, silent) => {
  MATHS.lastIndex = state.pos;
  const [text] = MATHS.exec(state.src) ?? [];
  if (!text) return false;
  if (!silent) state.push("maths", "code", 0).content = text;
  state.pos += text.length;
  return true;
});

const LEAVES = {
  text: (token) => token.content,
  text_special: (token) => token.content,
  code_inline: (token) => h("code", {}, token.content),
  maths: (token) => h("code.maths", {}, token.content),
  softbreak: () => h("br"),
  hardbreak: () => h("br"),
  hr: () => h("hr"),
  image: imageLink,
  fence: (token) => codeBox(token.info.trim().split(/\s+/)[0], token.content.replace(/\n$/, "")),
  code_block: (token) => codeBox("", token.content.replace(/\n$/, "")),
};

// Nothing is loaded from elsewhere: an image is a link to it.
function imageLink(token) {
  const url = token.attrGet("src");
  return /^https?:/i.test(url) ? link(url, token.content || url) : token.content;
}

const link = (href, text) => h("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" }, text);

function append(tokens, parent) {
  const open = [parent];
  for (const token of tokens) {
    const top = open.at(-1);
    if (token.type === "inline") append(token.children, top);
    else if (token.nesting === 1) {
      const node = token.hidden ? top : elementFor(token);
      if (node !== top) top.append(node);
      open.push(node.querySelector?.("table") ?? node);
    } else if (token.nesting === -1) open.pop();
    else top.append(LEAVES[token.type]?.(token) ?? token.content);
  }
  return parent;
}

function elementFor(token) {
  if (token.type === "link_open") return link(token.attrGet("href"), "");
  if (token.type === "heading_open") return h(`h3.${token.tag}`);
  if (token.type === "table_open") return h("div.wide", { tabIndex: 0, role: "region", "aria-label": "Table" }, h("table"));
  const node = h(token.tag);
  if (token.attrGet("start")) node.start = Number(token.attrGet("start"));
  if (/center|right/.test(token.attrGet("style") ?? "")) node.style.textAlign = token.attrGet("style").split(":")[1];
  return node;
}

function codeBox(language, code) {
  const head = h("div.code-head", {}, h("span", {}, language || "code"), copyButton(() => code, "Copy code"));
  const text = h("code", {}, code);
  if (language) text.dataset.language = language;
  return h("div.code", {}, head, h("pre", { tabIndex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, text)); // long lines can be scrolled with the keyboard
}

// What is shown of a text so far: all but its last block is settled, and neither parsed nor made again while the text grows.
const shown = new WeakMap();

/** Makes `body` show `text`; `whole` if nothing will follow. */
export function updateMarkdown(body, text, whole) {
  let state = shown.get(body);
  if (!state || !text.startsWith(state.text)) {
    body.replaceChildren();
    state = { text: "", offset: 0, settled: 0, env: {} };
    shown.set(body, state);
  }
  if (text !== state.text || !body.childNodes.length) {
    const rest = text.slice(state.offset);
    const tokens = markdown.parse(rest, state.env);
    const starts = tokens.flatMap((token, index) => (token.level === 0 && token.nesting >= 0 ? [index] : []));
    const last = starts.at(-1) ?? 0;
    while (body.childNodes.length > state.settled) body.lastChild.remove();
    append(tokens.slice(0, last), body);
    state.settled = body.childNodes.length;
    append(tokens.slice(last), body);
    if (last) state.offset += lineOffset(rest, tokens[last].map[0]);
    state.text = text;
  }
  const code = [...body.querySelectorAll("code[data-language]:not(.lit)")];
  if (!whole && code.length && body.lastChild?.contains(code.at(-1))) code.pop(); // it still grows
  for (const block of code) highlight(block);
}

function lineOffset(text, line) {
  let offset = 0;
  for (let n = 0; n < line; n += 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

let highlighter = null;

async function highlight(block) {
  block.classList.add("lit");
  try {
    highlighter ??= import("./vendor/highlight.js");
    const { default: hljs } = await highlighter;
    const language = block.dataset.language.toLowerCase();
    if (!hljs.getLanguage(language)) return;
    const { _emitter: tree } = hljs.highlight(block.textContent, { language, ignoreIllegals: true });
    block.replaceChildren(...tree.rootNode.children.map(colored));
  } catch { /* without colours it reads as well */ }
}

function colored(node) {
  return typeof node === "string" ? node : h(`span.hljs-${(node.scope ?? "").replaceAll(".", "-")}`, {}, ...node.children.map(colored));
}
