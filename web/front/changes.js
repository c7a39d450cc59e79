// What differs between two readings of a collection.

/** [{kind: "new" | "changed" | "gone", key, row, fields: [{name, before, after}]}] in the order of the rows. */
export function difference(before, after, key) {
  const changes = [];
  const known = new Map(before.map((row) => [String(row[key]), row]));
  for (const row of after) {
    const old = known.get(String(row[key]));
    known.delete(String(row[key]));
    if (!old) changes.push({ kind: "new", key: String(row[key]), row, fields: [] });
    else {
      const fields = Object.keys(row)
        .filter((name) => row[name] !== old[name])
        .map((name) => ({ name, before: old[name], after: row[name] }));
      if (fields.length > 0) changes.push({ kind: "changed", key: String(row[key]), row, fields });
    }
  }
  for (const [gone, row] of known) changes.push({ kind: "gone", key: gone, row, fields: [] });
  return changes;
}

/** The one field worth a line in the feed: a choice (a status) before all else. */
export function telling(change, fields) {
  const named = change.fields.map((changed) => ({ ...changed, field: fields.find((field) => field.name === changed.name) }));
  const dull = (one) => one.field?.kind === "time" || one.name === "revision";
  return named.find((one) => one.field?.kind === "choice") ?? named.find((one) => !dull(one)) ?? named[0] ?? null;
}
