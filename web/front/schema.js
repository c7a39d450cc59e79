// From the API's OpenAPI document to what the page shows: collections, fields, formats. Knows no bubble by name.

const MOST_COLUMNS = 7;
const RECENT = ["changed_at", "updated_at", "modified_at", "revision"];

const TONES = {
  good: ["delivered", "arrived", "active", "open", "paid", "done", "ready", "returned_in_time", "available", "ok"],
  moving: ["in_transit", "out_for_delivery", "departed", "accepted", "on_loan", "shipped", "running", "sorting_centre"],
  warn: ["delayed", "late", "overdue", "pending", "waiting", "on_hold"],
  bad: ["cancelled", "canceled", "returned", "lost", "failed", "refused", "rejected", "blocked"],
};

/** [{name, title, key, fields: [{name, title, kind, choices, isNullable}], columns}] */
export function collectionsOf(specification) {
  const found = [];
  const paths = Object.keys(specification.paths);
  for (const path of paths) {
    const name = /^\/v1\/([^/{}]+)$/.exec(path)?.[1];
    const key = paths.map((other) => /^(.*)\/\{([^/{}]+)\}$/.exec(other)).find((match) => match?.[1] === path)?.[2];
    if (!name || !key) continue;
    const item = specification.paths[path];
    const content = resolved(specification, item.get.responses["200"]).content?.["application/json"];
    const list = resolved(specification, content?.schema);
    const row = resolved(specification, list?.properties?.items?.items);
    if (row?.properties) found.push(collection(specification, name, key, row));
  }
  return found;
}

function collection(specification, name, key, row) {
  // What is embedded is shown on request only, and this page does not ask.
  const own = Object.entries(row.properties).filter(([, schema]) => !schema["x-embed"]);
  const fields = own.map(([field, schema]) => fieldOf(specification, field, schema));
  // What tells the latest change, so that what just happened can stand first.
  const recent = RECENT.map((one) => fields.find((field) => field.name === one)).find(Boolean) ?? null;
  const columns = columnsOf(fields, key, recent);
  return { name, title: words(name), summary: row.description ?? "", key, fields, columns, recent };
}

function fieldOf(specification, name, raw) {
  let schema = resolved(specification, raw);
  const variants = (schema.anyOf ?? schema.oneOf ?? []).map((variant) => resolved(specification, variant));
  const types = [schema.type ?? variants.map((variant) => variant.type)].flat(2);
  schema = variants.find((variant) => variant.type !== "null") ?? schema;
  return {
    name,
    title: words(name),
    kind: kindOf(schema, [...types, schema.type].flat()),
    choices: (schema.enum ?? []).filter((choice) => choice !== null),
  };
}

function kindOf(schema, types) {
  if (schema.enum) return "choice";
  if (schema.format === "date-time") return "time";
  if (schema.format === "date") return "date";
  if (schema.format === "decimal" || types.includes("number")) return "number";
  if (types.includes("integer")) return "integer";
  if (types.includes("boolean")) return "flag";
  return "text";
}

function resolved(specification, schema) {
  let current = schema;
  while (current?.$ref) {
    current = current.$ref.slice(2).split("/").reduce((place, part) => place[part.replaceAll("~1", "/")], specification);
  }
  return current;
}

/** The key, the choice people look for, the rest as long as there is room, and when it changed. */
function columnsOf(fields, key, recent) {
  const first = fields.filter((field) => field.name === key);
  const choices = fields.filter((field) => field.name !== key && field.kind === "choice").slice(0, 1);
  const last = recent?.kind === "time" ? [recent] : [];
  const rest = fields.filter((field) => ![...first, ...choices, recent].includes(field));
  return [...[...first, ...choices, ...rest].slice(0, MOST_COLUMNS - last.length), ...last];
}

export function words(name) {
  const text = name.replaceAll("_", " ").replaceAll("-", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function toneOf(value) {
  return Object.keys(TONES).find((tone) => TONES[tone].includes(value)) ?? "calm";
}

const times = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeZone: "UTC" });

/** Orders two values of a field; none comes first. */
export function compared(field, one, other) {
  if (one === other) return 0;
  if (one === null || other === null) return one === null ? -1 : 1;
  if (field.kind === "number" || field.kind === "integer") return Number(one) - Number(other);
  return String(one) < String(other) ? -1 : 1;
}

const hours = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const days = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** A time for a narrow column: today's without the day. */
export function briefly(value) {
  const time = new Date(value);
  return (time.toDateString() === new Date().toDateString() ? hours : days).format(time);
}

/** The text of one value, as people read it; an en dash for none. */
export function shown(field, value) {
  if (value === null || value === undefined || value === "") return "–";
  switch (field.kind) {
    case "time":
      return times.format(new Date(value));
    case "date":
      return dates.format(new Date(`${value}T00:00:00Z`));
    case "flag":
      return value ? "Yes" : "No";
    case "choice":
      return words(String(value));
    default:
      return String(value);
  }
}
