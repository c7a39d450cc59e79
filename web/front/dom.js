// The page's elements, and the one way to make new ones. Text only, never markup from outside.

export const $ = (id) => document.getElementById(id);

/** element("td", {class: "x", data: {key: "1"}, on: {click}}, "text", child, …) */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  const { class: names, data, on, ...attributes } = options;
  if (names) made.className = names;
  Object.assign(made.dataset, data ?? {});
  for (const [event, handler] of Object.entries(on ?? {})) made.addEventListener(event, handler);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Runs a CSS animation again by its class. */
export function flash(target, name) {
  target.classList.remove(name);
  void target.offsetWidth;
  target.classList.add(name);
}
