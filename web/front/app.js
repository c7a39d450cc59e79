// The front office: sign in, see one's rows, watch them change. Knows the bubble only through its OpenAPI document.

import { Reader, SignedOut, about, signIn, specification } from "/api.js";
import { difference, telling } from "/changes.js";
import { $, element } from "/dom.js";
import { ago, judged } from "/freshness.js";
import { Table, valueNode } from "/rows.js";
import { collectionsOf, shown } from "/schema.js";

const POLL_MS = 1000;
const SLOWEST_POLL_MS = 10_000;
const FEED_LENGTH = 30;
const SESSION = "tidegate-session";

const desk = {
  reader: null, collections: [], current: null, rows: new Map(), freshness: null, isReachable: true,
  changes: 0, lastChange: null, opened: null, pending: null, round: 0, waitMs: 0,
};
const table = new Table(openDetail);
let site = { title: "Front office", users: [], back_offices: [] };

await start();

async function start() {
  try {
    site = await about();
  } catch (error) {
    $("sign-in-error").textContent = `The page's server does not answer: ${error.message}`;
  }
  document.title = `${site.title} – front office`;
  for (const node of document.querySelectorAll('[data-text="title"]')) node.textContent = site.title;
  drawPeople();
  drawLinks();
  $("sign-in").addEventListener("submit", submitted);
  $("sign-out").addEventListener("click", () => signOut(""));
  $("search").addEventListener("input", () => redraw([]));
  $("detail-close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("close", () => { desk.opened = null; });
  $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) pollSoon(0); });
  setInterval(drawGauge, 250);
  const kept = JSON.parse(sessionStorage.getItem(SESSION) ?? "null");
  if (kept) await enter(kept);
  else welcome("");
}

function drawPeople() {
  $("people").replaceChildren(...site.users.map((person) =>
    element("button", { type: "button", class: "person", data: { username: person.username }, on: { click: () => signInAs(person.username, person.password, person.title) } },
      element("span", { class: "avatar", "aria-hidden": "true" }, initials(person.title)),
      element("span", { class: "person-text" }, element("strong", {}, person.title), element("span", { class: "faint" }, person.username)))));
}

function drawLinks() {
  const link = (office) => element("a", { href: office.url, target: "_blank", rel: "noopener" }, office.title);
  $("links").replaceChildren(...site.back_offices.map(link));
  if (site.back_offices.length > 0) {
    $("feed-link").replaceChildren(element("a", { href: site.back_offices[0].url, target: "_blank", rel: "noopener" }, "back office"));
  }
}

function submitted(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  signInAs(form.get("username"), form.get("password"), form.get("username"));
}

async function signInAs(username, password, title) {
  $("sign-in-error").textContent = "";
  try {
    const token = await signIn(username, password);
    sessionStorage.setItem(SESSION, JSON.stringify({ token, username, title }));
    await enter({ token, username, title });
  } catch (error) {
    $("sign-in-error").textContent = error instanceof SignedOut ? "That user name or password is wrong." : `Signing in failed: ${error.message}`;
  }
}

async function enter(session) {
  desk.reader = new Reader(session.token);
  desk.collections = collectionsOf(await specification());
  Object.assign(desk, { rows: new Map(), freshness: null, isReachable: true, changes: 0, lastChange: null, round: 0 });
  $("who-title").textContent = session.title;
  $("who-name").textContent = session.username;
  $("avatar").textContent = initials(session.title);
  $("feed").replaceChildren();
  $("feed-empty").hidden = false;
  $("figure-changes").textContent = "0";
  $("figure-last").textContent = "–";
  $("welcome").hidden = true;
  $("top").hidden = $("desk").hidden = false;
  drawTabs();
  turnTo(desk.collections[0]);
  $("content").focus({ preventScroll: true });
}

function welcome(reason) {
  $("top").hidden = $("desk").hidden = true;
  $("welcome").hidden = false;
  $("sign-in-error").textContent = reason;
}

function signOut(reason) {
  clearTimeout(desk.pending);
  desk.reader = null;
  sessionStorage.removeItem(SESSION);
  if ($("detail").open) $("detail").close();
  welcome(reason);
  $("people").querySelector("button")?.focus();
}

// --- collections ----------------------------------------------------------------------------------

function drawTabs() {
  $("tabs").replaceChildren(...desk.collections.map((collection) =>
    element("button", { type: "button", role: "tab", id: `tab-${collection.name}`, "aria-controls": "tab-panel", data: { name: collection.name },
      on: { click: () => turnTo(collection), keydown: moveTab } }, collection.title, element("span", { class: "count" }, ""))));
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const all = desk.collections;
  const next = all[(all.indexOf(desk.current) + step + all.length) % all.length];
  turnTo(next);
  $(`tab-${next.name}`).focus();
}

function turnTo(collection) {
  desk.current = collection;
  for (const tab of $("tabs").children) {
    const isOn = tab.dataset.name === collection.name;
    tab.setAttribute("aria-selected", String(isOn));
    tab.tabIndex = isOn ? 0 : -1;
  }
  $("tab-panel").setAttribute("aria-labelledby", `tab-${collection.name}`);
  $("search").value = "";
  table.turnTo(collection);
  redraw([]);
  pollSoon(0);
}

function redraw(changes) {
  const rows = desk.rows.get(desk.current.name);
  if (!rows) {
    $("empty").hidden = false;
    $("empty").textContent = "Loading…";
    return;
  }
  table.draw(rows, $("search").value.trim(), changes, () => redraw([]));
}

// --- polling --------------------------------------------------------------------------------------

function pollSoon(wait) {
  clearTimeout(desk.pending);
  desk.pending = setTimeout(poll, wait);
}

let failures = 0;

async function poll() {
  const reader = desk.reader;
  if (reader === null || document.hidden) return;
  try {
    await readOne(reader, desk.current);
    // The other collections are looked at in turn, now and then, for their counts and the feed.
    desk.round += 1;
    if (desk.round % 5 === 1) for (const other of desk.collections) if (other !== desk.current) await readOne(reader, other);
    failures = 0;
    desk.isReachable = true;
  } catch (error) {
    if (error instanceof SignedOut) {
      signOut("Your sign-in has ended. Sign in again.");
      return;
    }
    failures += 1;
    desk.isReachable = failures < 2;
  }
  const waitMs = Math.max(POLL_MS, failures === 0 ? desk.waitMs : 0);
  if (reader === desk.reader) pollSoon(Math.min(SLOWEST_POLL_MS, waitMs * 2 ** Math.min(failures, 4)));
}

async function readOne(reader, collection) {
  const got = await reader.collection(collection.name, collection.key);
  if (reader !== desk.reader) return;
  if (collection === desk.current) {
    desk.freshness = got.freshness;
    desk.waitMs = got.waitMs;
  }
  const before = desk.rows.get(collection.name);
  desk.rows.set(collection.name, got.rows);
  const changes = before && got.isChanged ? difference(before, got.rows, collection.key) : [];
  $(`tab-${collection.name}`).querySelector(".count").textContent = got.hasMore ? `${got.rows.length}+` : got.rows.length;
  if (changes.length > 0) tell(collection, changes);
  if (collection === desk.current) {
    $("figure-rows").textContent = got.hasMore ? `${got.rows.length}+` : got.rows.length;
    if (!before || changes.length > 0) redraw(changes);
    drawGauge();
  }
  if (desk.opened?.collection === collection) drawDetail(changes);
}

// --- what changed ---------------------------------------------------------------------------------

function tell(collection, changes) {
  desk.changes += changes.length;
  desk.lastChange = Date.now();
  $("figure-changes").textContent = desk.changes;
  $("feed-empty").hidden = true;
  const lines = changes.slice(0, FEED_LENGTH).map((change) => feedLine(collection, change));
  $("feed").prepend(...lines);
  while ($("feed").children.length > FEED_LENGTH) $("feed").lastElementChild.remove();
  const first = changes[0];
  $("changes-said").textContent = changes.length > 3 ? `${changes.length} changes in ${collection.title}` : `${collection.title} ${first.key} ${spoken(first)}`;
}

const spoken = (change) => ({ new: "is new", gone: "was deleted", changed: "changed" })[change.kind];

function feedLine(collection, change) {
  const told = telling(change, collection.fields);
  const what = told?.field
    ? element("span", { class: "feed-what" }, `${told.field.title} `, element("s", {}, shown(told.field, told.before)), " → ", valueNode(told.field, told.after))
    : element("span", { class: "feed-what" }, spoken(change));
  return element("li", { class: `feed-${change.kind}` },
    element("div", { class: "feed-head" },
      element("button", { type: "button", class: "row-key", on: { click: () => openDetail(change.key, collection) } }, change.key),
      element("time", { class: "faint", data: { at: String(Date.now()) } }, "now")),
    what);
}

// --- the gauge ------------------------------------------------------------------------------------

let saidLevel = "unknown";

function drawGauge() {
  if (desk.reader === null) return;
  const { level, age, why, fill } = judged(desk.freshness, desk.isReachable);
  $("gauge").dataset.level = level;
  if ($("age").textContent !== age) $("age").textContent = age;
  if ($("age-why").textContent !== why) $("age-why").textContent = why;
  $("gauge-fill").style.inlineSize = `${Math.max(2, fill * 100)}%`;
  if (level !== saidLevel) {
    // Spoken when its meaning changes, not every second.
    $("freshness-said").textContent = why;
    saidLevel = level;
  }
  if (desk.lastChange !== null) $("figure-last").textContent = ago((Date.now() - desk.lastChange) / 1000);
  for (const time of $("feed").querySelectorAll("time[data-at]")) time.textContent = ago((Date.now() - Number(time.dataset.at)) / 1000);
}

// --- one row --------------------------------------------------------------------------------------

function openDetail(key, collection = desk.current) {
  desk.opened = { key, collection };
  drawDetail([]);
  if (!$("detail").open) $("detail").showModal();
}

function drawDetail(changes) {
  const { key, collection } = desk.opened;
  const row = (desk.rows.get(collection.name) ?? []).find((one) => String(one[collection.key]) === key);
  const changed = new Set(changes.find((change) => change.key === key)?.fields.map((field) => field.name) ?? []);
  $("detail-kind").textContent = collection.title;
  $("detail-title").textContent = key;
  $("detail-gone").hidden = row !== undefined;
  if (!row) return;
  $("detail-fields").replaceChildren(...collection.fields.map((field) =>
    element("div", { class: changed.has(field.name) ? "cell-changed" : "" }, element("dt", {}, field.title), element("dd", {}, valueNode(field, row[field.name])))));
}

function initials(title) {
  const words = title.split(/\s+/).filter(Boolean);
  const last = words.at(-1) ?? "";
  return `${words[0]?.[0] ?? ""}${words.length > 1 ? (/\d$/.test(last) ? last.at(-1) : last[0]) : ""}`.toUpperCase();
}
