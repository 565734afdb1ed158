// Markdown to DOM nodes. All text goes in as text: whatever a model or a person writes, nothing of it becomes markup or code.

const FENCE = /(^|\n)```([^\n]*)\n([\s\S]*?)(?:\n?```(?=\n|$)|$)/g;
const SPANS = /(`[^`\n]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]\n]+\]\(https?:\/\/[^\s()]+\))/;

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function button(label, act, name) {
  const made = element("button", "", label);
  made.type = "button";
  if (name) made.setAttribute("aria-label", name);
  made.addEventListener("click", act);
  return made;
}

export function copyButton(text, name) {
  const made = button("Copy", async () => {
    made.removeAttribute("aria-label"); // so that what happened is read out
    made.textContent = (await copy(text())) ? "Copied" : "Could not copy";
    setTimeout(() => {
      made.textContent = "Copy";
      made.setAttribute("aria-label", name);
    }, 1500);
  }, name);
  return made;
}

// A page that came over plain HTTP has no clipboard; there the old command still works.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

export function renderMarkdown(text) {
  const body = element("div", "body");
  let end = 0;
  for (const fence of text.matchAll(FENCE)) {
    appendBlocks(body, text.slice(end, fence.index));
    body.append(renderCode(fence[2].trim(), fence[3]));
    end = fence.index + fence[0].length;
  }
  appendBlocks(body, text.slice(end));
  return body;
}

function renderCode(language, code) {
  const box = element("div", "code");
  const head = element("div", "code-head");
  head.append(element("span", "", language || "code"), copyButton(() => code, "Copy code"));
  const pre = element("pre");
  pre.tabIndex = 0; // long lines can be scrolled with the keyboard
  pre.append(element("code", "", code));
  box.append(head, pre);
  return box;
}

// Paragraphs, headings, quotes and lists, line by line; a list goes on as long as its lines do.
function appendBlocks(body, text) {
  let open = null;
  for (const line of text.split("\n")) {
    const heading = line.match(/^(#{1,6})\s+(.*)/);
    const quote = line.match(/^>\s?(.*)/);
    const item = line.match(/^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)/);
    if (!line.trim()) {
      open = null;
    } else if (heading) {
      body.append(withSpans(element("h3"), heading[2]));
      open = null;
    } else if (quote) {
      if (open?.tagName !== "BLOCKQUOTE") {
        open = element("blockquote");
        body.append(open);
      } else open.append(element("br"));
      withSpans(open, quote[1]);
    } else if (item) {
      const tag = item[1] ? "OL" : "UL";
      if (open?.tagName !== tag) {
        open = element(tag);
        if (item[1]) open.start = Number(item[1]);
        body.append(open);
      }
      open.append(withSpans(element("li"), item[2]));
    } else if (open?.tagName === "P") {
      open.append(element("br"));
      withSpans(open, line);
    } else {
      open = withSpans(element("p"), line);
      body.append(open);
    }
  }
}

function withSpans(parent, text) {
  for (const span of text.split(SPANS)) {
    if (/^`[^`]+`$/.test(span)) parent.append(element("code", "", span.slice(1, -1)));
    else if (/^\*\*[^*]+\*\*$/.test(span)) parent.append(element("strong", "", span.slice(2, -2)));
    else if (/^\*[^*\s][^*]*\*$/.test(span)) parent.append(element("em", "", span.slice(1, -1)));
    else parent.append(renderLink(span) ?? span);
  }
  return parent;
}

function renderLink(span) {
  const parts = span.match(/^\[([^\]]+)\]\((https?:[^\s()]+)\)$/);
  if (!parts) return null;
  const link = element("a", "", parts[1]);
  link.href = parts[2];
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
  link.title = parts[2];
  return link;
}
