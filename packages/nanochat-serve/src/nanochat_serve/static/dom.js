// Elements, lists that keep their nodes, copying, and what is said to a screen reader.

/** @returns {any} */
export const $ = (id) => document.getElementById(id);

export const on = (id, type, act) => $(id).addEventListener(type, act);

// h("p.note", {onclick, "aria-label": ...}, "text", child): null and false are left out.
/** @returns {any} */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function button(label, act, { name, ...props } = /** @type {any} */ ({})) {
  return h("button", { type: "button", onclick: act, "aria-label": name, title: name, ...props }, label);
}

// Makes the children those of the items. A node stays while its key does: focus, selection and scrolling with it.
export function keyed(parent, items, keyOf, make, update) {
  const focused = /** @type {HTMLElement} */ (document.activeElement);
  const keys = new Set(items.map(keyOf));
  const nodes = new Map();
  for (const node of [...parent.children]) {
    if (keys.has(node.dataset.key)) nodes.set(node.dataset.key, node);
    else node.remove();
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const node = nodes.get(keyOf(item)) ?? make(item);
    node.dataset.key = keyOf(item);
    update?.(node, item);
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (parent.contains(focused) && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

export function copyButton(text, name) {
  const made = button("Copy", async () => {
    const copied = text() && (await copy(text()));
    made.removeAttribute("aria-label"); // so that what happened is read out
    made.textContent = copied ? "Copied" : text() ? "Could not copy" : "Nothing to copy";
    setTimeout(() => {
      made.textContent = "Copy";
      made.setAttribute("aria-label", name);
    }, 1500);
  }, { name });
  return made;
}

// A page that came over plain HTTP has no clipboard; there the old command still works.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

export function download(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// What is new, once: the log itself is silent, so that nothing is read twice.
export function announce(text) {
  $("announce").append(h("p", {}, text));
  while ($("announce").children.length > 3) $("announce").firstChild.remove();
}

// A dialog with a heading; closed by Escape, its button or `close()`, it is gone, and focus is where it was.
export function openDialog(title, ...content) {
  const close = button("Close", () => dialog.close());
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove() }, h("header", {}, h("h2", {}, title), close), ...content);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
