// The table of one collection: on a narrow screen the style sheet makes each row a card.

import { $, element, flash } from "/dom.js";
import { briefly, compared, shown, toneOf, words } from "/schema.js";

const MOST_DRAWN = 300;

/** The content of a cell, also used by the row's detail. */
export function valueNode(field, value) {
  const text = shown(field, value);
  if (field.kind === "choice" && value) return element("span", { class: "badge", data: { tone: toneOf(value) } }, text);
  if (field.kind === "time" && value) return element("time", { datetime: value }, text);
  if (field.kind === "flag") return element("span", { class: value ? "flag on" : "flag" }, text);
  return document.createTextNode(text);
}

export class Table {
  #collection = null;
  #drawn = new Map();
  #open;
  #choice = null;
  #order = { field: null, isDown: false };
  #again = () => {};

  constructor(open) {
    this.#open = open;
  }

  /** Show another collection. */
  turnTo(collection) {
    this.#collection = collection;
    this.#drawn.clear();
    this.#choice = null;
    const byKey = { field: collection.fields.find((field) => field.name === collection.key), isDown: false };
    this.#order = collection.recent ? { field: collection.recent, isDown: true } : byKey;
    const heads = collection.columns.map((field) => this.#head(field));
    $("table").replaceChildren(
      element("caption", { class: "visually-hidden" }, collection.summary || collection.title),
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody"),
    );
    $("rows-title").textContent = collection.title;
    this.#markOrder();
  }

  #head(field) {
    const sort = () => {
      this.#order = { field, isDown: this.#order.field === field ? !this.#order.isDown : field.kind === "time" };
      this.#markOrder();
      this.#again();
    };
    return element("th", { scope: "col", class: `kind-${field.kind}`, data: { name: field.name } },
      element("button", { type: "button", class: "sort", on: { click: sort } }, field.title));
  }

  #markOrder() {
    for (const head of $("table").tHead.rows[0].cells) {
      if (head.dataset.name !== this.#order.field.name) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.#order.isDown ? "descending" : "ascending");
    }
  }

  #ordered(rows) {
    const { field, isDown } = this.#order;
    const key = this.#collection.key;
    const direction = isDown ? -1 : 1;
    return rows.toSorted((one, other) =>
      direction * compared(field, one[field.name], other[field.name]) || (String(one[key]) < String(other[key]) ? -1 : 1));
  }

  /** Draw the rows that match the search and the chip; `changes` are made visible. */
  draw(rows, search, changes, again) {
    this.#again = again;
    this.#drawChips(rows, again);
    const wanted = this.#ordered(rows.filter((row) => this.#matches(row, search)));
    const body = $("table").tBodies[0];
    const changed = new Map(changes.map((change) => [change.key, change]));
    const keep = new Map();
    const nodes = wanted.slice(0, MOST_DRAWN).map((row) => {
      const key = String(row[this.#collection.key]);
      const node = this.#row(key, row, changed.get(key));
      keep.set(key, { node, row });
      return node;
    });
    this.#drawn = keep;
    arrange(body, nodes);
    $("empty").hidden = wanted.length > 0;
    $("empty").textContent = rows.length === 0 ? "There is nothing here for you yet." : "Nothing here matches.";
    $("more").hidden = wanted.length <= MOST_DRAWN;
    $("more").textContent = `The first ${MOST_DRAWN} of ${wanted.length} are shown; use the search to find others.`;
    return wanted.length;
  }

  #matches(row, search) {
    const chip = this.#chipField();
    if (this.#choice !== null && chip && row[chip.name] !== this.#choice) return false;
    if (!search) return true;
    const words_ = search.toLowerCase().split(/\s+/).filter(Boolean);
    const text = this.#collection.fields.map((field) => shown(field, row[field.name])).join(" ").toLowerCase();
    return words_.every((word) => text.includes(word));
  }

  #row(key, row, change) {
    const known = this.#drawn.get(key);
    if (known && !change) return known.node;
    const node = known?.node ?? element("tr", { data: { key }, on: { click: () => this.#open(key) } });
    // Only the cells that changed are made anew, so that a focused button keeps its focus.
    this.#collection.columns.forEach((field, place) => {
      const old = node.cells[place];
      if (old && known.row[field.name] === row[field.name]) return;
      const cell = this.#cell(field, row, key);
      if (old) old.replaceWith(cell);
      else node.append(cell);
      if (old) flash(cell, "cell-changed");
    });
    if (change) flash(node, change.kind === "new" ? "row-new" : "row-changed");
    return node;
  }

  #cell(field, row, key) {
    const value = row[field.name];
    const data = { label: field.title };
    if (field.name !== this.#collection.key) {
      const node = valueNode(field, value);
      if (field.kind === "time" && value) node.textContent = briefly(value);
      return element("td", { class: `kind-${field.kind}`, data }, node);
    }
    const open = (event) => {
      event.stopPropagation();
      this.#open(key);
    };
    return element("th", { scope: "row", data }, element("button", { type: "button", class: "row-key", on: { click: open } }, String(value)));
  }

  #chipField() {
    return this.#collection.fields.find((field) => field.kind === "choice");
  }

  #drawChips(rows, again) {
    const field = this.#chipField();
    const counts = new Map();
    if (field) for (const row of rows) counts.set(row[field.name], (counts.get(row[field.name]) ?? 0) + 1);
    const focused = document.activeElement?.dataset?.chip;
    const chip = (label, choice, count) => {
      const choose = () => {
        this.#choice = choice;
        again();
      };
      const isOn = String(this.#choice === choice);
      const data = { chip: choice ?? "", tone: choice ? toneOf(choice) : "calm" };
      return element("button", { type: "button", class: "chip", "aria-pressed": isOn, data, on: { click: choose } },
        label, element("span", { class: "count" }, String(count)));
    };
    const present = field ? field.choices.filter((choice) => counts.has(choice) || choice === this.#choice) : [];
    $("chips").hidden = present.length < 2;
    $("chips").replaceChildren(chip("All", null, rows.length), ...present.map((one) => chip(words(one), one, counts.get(one) ?? 0)));
    if (focused !== undefined) $("chips").querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus();
  }
}

/** Make `body` hold exactly `nodes` in that order, moving as little as possible. */
function arrange(body, nodes) {
  const wanted = new Set(nodes);
  for (const node of [...body.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, place) => {
    if (body.children[place] !== node) body.insertBefore(node, body.children[place] ?? null);
  });
}
