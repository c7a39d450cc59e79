// The back office's own screen. It talks to /_sim/* of the process that serves it.
const PAGE = 50, STATS_MS = 1000, ROWS_MS = 2000;
const at = (id) => document.getElementById(id);
const view = { entity: null, editing: null, offset: 0, seen: new Map(), stats: null, asked: 0, busy: null };

async function ask(path, body) {
  const request = body === undefined
    ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(`_sim/${path}`, request);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `HTTP ${response.status}`);
  return answer;
}

// Runs what a button asks for; says below the table when it does not work.
function doing(button, action) {
  button.addEventListener("click", async () => {
    view.busy = button.id;
    button.disabled = true;
    try {
      say(await action());
    } catch (failed) {
      say(`Not done: ${failed.message}`);
    }
    view.busy = null;
    button.disabled = false;
    await Promise.all([showStats(), showRows()]);
  });
}

function say(text) { if (text) at("note").textContent = text; }

function make(tag, fields = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

async function showStats() {
  try {
    const stats = await ask("stats");
    view.stats = stats;
    at("state").textContent = stats.outage ? "stopped: the legacy API answers 503" : "running";
    at("state").className = `state ${stats.outage ? "stopped" : "running"}`;
    at("outage").textContent = stats.outage ? "Start back office" : "Stop back office";
    at("life").textContent = stats.life ? "Switch off" : "Switch on";
    for (const id of ["outage", "life", "burst"]) at(id).disabled = view.busy === id;
    const counters = {
      ...Object.fromEntries(Object.entries(stats.rows).map(([entity, count]) => [`${entity} rows`, count])),
      changes: stats.changes, life: stats.life ? `${stats.changes_per_s}/s` : "off",
      ...Object.fromEntries(Object.entries(stats.requests).map(([name, count]) => [`API ${name}`, count])),
    };
    at("counters").replaceChildren(...Object.entries(counters).map(([name, value]) => make("div", {},
      make("dt", { textContent: name }), make("dd", { textContent: value.toLocaleString("en") }))));
  } catch {
    at("state").textContent = "no connection to this back office";
    at("state").className = "state stopped";
  }
}

async function showRows() {
  if (!view.entity || at("editor").open) return;
  const asked = ++view.asked;
  const query = new URLSearchParams({
    entity: view.entity.name, offset: view.offset, limit: PAGE, q: at("search").value.trim(), order: at("order").value,
  });
  let answer;
  try {
    answer = await ask(`rows?${query}`);
  } catch (failed) {
    return say(`Rows not loaded: ${failed.message}`);
  }
  if (asked !== view.asked || at("editor").open) return;
  const last = Math.min(view.offset + PAGE, answer.total);
  at("place").textContent = answer.total ? `${view.offset + 1}–${last} of ${answer.total.toLocaleString("en")}` : "none";
  at("back").disabled = view.offset === 0;
  at("forth").disabled = last >= answer.total;
  const seen = new Map();
  const focused = document.activeElement?.dataset?.key;
  at("rows").replaceChildren(...answer.rows.map(({ key, row }) => line(key, row, seen)));
  view.seen = seen;
  if (focused) at("rows").querySelector(`button[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function line(key, row, seen) {
  const text = JSON.stringify(row);
  seen.set(key, text);
  const edit = make("button", { type: "button", textContent: "Edit", ariaLabel: `Edit ${key}` });
  edit.dataset.key = key;
  edit.addEventListener("click", () => openEditor(key, row));
  const cells = view.entity.columns.map((name) => make("td", {
    textContent: row[name] === null ? "–" : String(row[name]), className: row[name] === null ? "none" : "",
  }));
  const fresh = view.seen.size > 0 && view.seen.get(key) !== text;
  return make("tr", { className: fresh ? "fresh" : "" }, make("td", {}, edit), ...cells);
}

function showEntity(entity) {
  Object.assign(view, { entity, offset: 0, seen: new Map() });
  for (const tab of at("tabs").children) tab.setAttribute("aria-selected", String(tab.dataset.name === entity.name));
  const names = ["", ...entity.columns];
  at("head").replaceChildren(make("tr", {}, ...names.map((name) => make("th", { textContent: name, scope: "col" }))));
  showRows();
}

function input(shape, value) {
  if (shape.type === "flag") return make("input", { type: "checkbox", name: shape.name, checked: value === true });
  if (shape.type === "choice") {
    const none = shape.nullable ? [make("option", { value: "", textContent: "–" })] : [];
    const choices = shape.choices.map((text) => make("option", { value: text, textContent: text }));
    const select = make("select", { name: shape.name }, ...none, ...choices);
    select.value = value ?? "";
    return select;
  }
  const type = shape.type === "number" ? "number" : shape.type === "date" ? "date" : "text";
  return make("input", { type, name: shape.name, value: value ?? "", step: "any" });
}

function openEditor(key, row) {
  view.editing = { key, row };
  at("editing").textContent = `${view.entity.name} ${key}`;
  at("refused").textContent = "";
  at("fields").replaceChildren(...view.entity.editable.map((shape) =>
    make("label", {}, make("span", { textContent: shape.name }), input(shape, row[shape.name]))));
  at("editor").showModal();
}

function changedFields() {
  const fields = {};
  for (const shape of view.entity.editable) {
    const field = at("fields").querySelector(`[name="${shape.name}"]`);
    let value = shape.type === "flag" ? field.checked : field.value;
    if (value === "" && shape.nullable) value = null;
    else if (shape.type === "number") value = Number(value);
    if (value !== view.editing.row[shape.name]) fields[shape.name] = value;
  }
  return fields;
}

async function leaveEditor(action, told) {
  try {
    await action();
    at("editor").close();
    say(told);
    await Promise.all([showStats(), showRows()]);
  } catch (failed) {
    at("refused").textContent = failed.message;
  }
}

function saveEditor(event) {
  event.preventDefault();
  const named = { entity: view.entity.name, key: view.editing.key };
  const fields = changedFields();
  if (Object.keys(fields).length === 0) return at("editor").close();
  leaveEditor(() => ask("edit", { ...named, fields }), `${named.entity} ${named.key} saved.`);
}

function wire() {
  doing(at("outage"), () => ask("outage", { on: !view.stats.outage }).then(({ on }) => (on ? "Stopped." : "Started.")));
  doing(at("life"), () => ask("life", { on: !view.stats.life, changes_per_s: Number(at("rate").value) })
    .then(({ on }) => (on ? "Life is on." : "Life is off.")));
  doing(at("create"), () => ask("burst", { creates: 1 }).then(({ applied }) => (applied.creates ? "Booked." : "Nothing to book.")));
  doing(at("burst"), async () => {
    const names = ["creates", "updates", "corrections", "deletes"];
    const started = performance.now();
    const { applied } = await ask("burst", Object.fromEntries(names.map((name) => [name, Number(at(name).value)])));
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    return `Burst: ${names.map((name) => `${applied[name]} ${name}`).join(", ")} in ${seconds} s.`;
  });
  at("rate").addEventListener("change", () => {
    if (view.stats?.life) ask("life", { on: true, changes_per_s: Number(at("rate").value) }).catch((failed) => say(failed.message));
  });
  for (const id of ["search", "order"]) at(id).addEventListener("input", () => { view.offset = 0; view.seen = new Map(); showRows(); });
  at("back").addEventListener("click", () => turn(-PAGE));
  at("forth").addEventListener("click", () => turn(PAGE));
  at("editor").querySelector("form").addEventListener("submit", saveEditor);
  at("cancel").addEventListener("click", () => at("editor").close());
  at("remove").addEventListener("click", () => {
    const named = { entity: view.entity.name, key: view.editing.key };
    leaveEditor(() => ask("delete", named), `${named.entity} ${named.key} deleted.`);
  });
}

function turn(by) {
  view.offset = Math.max(0, view.offset + by);
  view.seen = new Map();
  showRows();
}

async function describe() {
  const { title, kind, entities } = await ask("describe");
  at("title").textContent = document.title = `${title} · ${kind}`;
  at("tabs").replaceChildren(...entities.map((entity) => {
    const tab = make("button", { type: "button", textContent: entity.name, role: "tab" });
    tab.dataset.name = entity.name;
    tab.addEventListener("click", () => showEntity(entity));
    return tab;
  }));
  showEntity(entities.at(0));
}

async function keep(action, pause) {
  for (;;) {
    if (!document.hidden) await action();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

wire();
await showStats();
await describe();
keep(showStats, STATS_MS);
keep(showRows, ROWS_MS);
