// Talks to the server of this page: sign-in, the rows once, and then only what changed.

const LARGEST_LIMIT = 200;
export const MOST_PAGES = 5;

export class SignedOut extends Error {}

export class Unreachable extends Error {}

export class CursorGone extends Unreachable {}

export async function about() {
  return (await answered(await fetch("/demo.json"))).json();
}

/** Raises SignedOut for a wrong name or password. Answers the access token. */
export async function signIn(username, password) {
  const answer = await fetch("/sign-in", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ username, password }),
  });
  return (await (await answered(answer)).json()).access_token;
}

export async function specification() {
  return (await answered(await fetch("/v1/openapi.json"))).json();
}

/** Follows collections as one user: reads each once, and from then on what changed in it. */
export class Reader {
  #token;
  #followed = new Map();

  constructor(token) {
    this.#token = token;
  }

  /** {rows, isChanged, hasMore, freshness, waitMs} of a collection; `waitMs` is when the API wants to be asked again. */
  async collection(name, key) {
    const followed = this.#followed.get(name) ?? (await this.#begin(name, key));
    const { isChanged, freshness, waitMs } = followed.isNew ? followed : await this.#follow(name, followed);
    followed.isNew = false;
    return { rows: [...followed.rows.values()], isChanged, hasMore: followed.hasMore, freshness, waitMs };
  }

  /** The cursor first, then the rows: what changes in between is told afterwards. */
  async #begin(name, key) {
    const beginning = await this.#ask(`/v1/${encodeURIComponent(name)}/changes`);
    const rows = new Map();
    let freshness = null;
    let cursor = null;
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const query = new URLSearchParams({ limit: String(LARGEST_LIMIT), ...(cursor === null ? {} : { cursor }) });
      const answer = await this.#ask(`/v1/${encodeURIComponent(name)}?${query}`);
      const body = await answer.json();
      for (const row of body.items) rows.set(String(row[key]), row);
      freshness = older(freshness, freshnessOf(answer));
      cursor = body.next_cursor;
      if (cursor === null) break;
    }
    const next = (await beginning.json()).next_cursor;
    const followed = { rows, next, hasMore: cursor !== null, isNew: true, isChanged: true, freshness, waitMs: 0 };
    this.#followed.set(name, followed);
    return followed;
  }

  async #follow(name, followed) {
    let isChanged = false;
    for (;;) {
      const query = new URLSearchParams({ limit: String(LARGEST_LIMIT), cursor: followed.next });
      let answer;
      try {
        answer = await this.#ask(`/v1/${encodeURIComponent(name)}/changes?${query}`);
      } catch (error) {
        // The cursor can be followed no longer: the next look reads everything anew.
        if (error instanceof CursorGone) this.#followed.delete(name);
        throw error;
      }
      const told = { freshness: freshnessOf(answer), waitMs: 1000 * Number(answer.headers.get("Retry-After") ?? 1) };
      followed.next = answer.headers.get("Next-Cursor") ?? followed.next;
      if (answer.status === 304) return { isChanged, ...told };
      const body = await answer.json();
      for (const change of body.changes) {
        isChanged = true;
        if (change.change === "removed") followed.rows.delete(change.key);
        else followed.rows.set(change.key, change.row);
      }
      if (!body.has_more) return { isChanged, ...told };
    }
  }

  async #ask(address) {
    let answer;
    try {
      // The browser's own cache would hide the 304 from us.
      answer = await fetch(address, { headers: { Authorization: `Bearer ${this.#token}` }, cache: "no-store" });
    } catch (error) {
      throw new Unreachable(error.message);
    }
    return answer.status === 304 ? answer : answered(answer);
  }
}

/** Server time instead of the browser's: the two clocks may differ. */
function freshnessOf(answer) {
  const asOf = answer.headers.get("Data-As-Of");
  const serverNow = answer.headers.get("Date");
  return {
    asOf: asOf === null ? null : Date.parse(asOf),
    clockOffset: serverNow === null ? 0 : Math.min(0, Date.parse(serverNow) + 999 - Date.now()),
    incomplete: answer.headers.get("Data-Incomplete"),
    stale: answer.headers.get("Data-Stale"),
    unwatermarked: answer.headers.get("Data-Unwatermarked"),
  };
}

function older(one, other) {
  if (one === null) return other;
  if (one.asOf === null || other.asOf === null) return { ...one, asOf: null, incomplete: one.incomplete ?? other.incomplete };
  return one.asOf <= other.asOf ? one : other;
}

async function answered(answer) {
  if (answer.ok) return answer;
  if (answer.status === 401) throw new SignedOut("not signed in");
  let text = `status ${answer.status}`;
  try {
    const body = await answer.json();
    text = body.detail ?? body.error ?? body.message ?? text;
  } catch {
    // An answer without a JSON body: the status has to do.
  }
  throw answer.status === 410 || answer.status === 400 ? new CursorGone(text) : new Unreachable(text);
}
