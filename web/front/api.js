// Talks to the server of this page: sign-in, and reads with ETags so that an unchanged page costs nothing.

const LARGEST_LIMIT = 200;
export const MOST_PAGES = 5;

export class SignedOut extends Error {}

export class Unreachable extends Error {}

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

/** Reads collections as one user; remembers each page's ETag and rows. */
export class Reader {
  #token;
  #pages = new Map();

  constructor(token) {
    this.#token = token;
  }

  /** {rows, isChanged, hasMore, freshness} of a collection; `isChanged` is false when every page was a 304. */
  async collection(name) {
    const rows = [];
    let cursor = null;
    let isChanged = false;
    let freshness = null;
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const query = new URLSearchParams({ limit: String(LARGEST_LIMIT), ...(cursor === null ? {} : { cursor }) });
      const got = await this.#page(`/v1/${encodeURIComponent(name)}?${query}`);
      rows.push(...got.items);
      isChanged ||= got.isChanged;
      freshness = older(freshness, got.freshness);
      cursor = got.cursor;
      if (cursor === null) break;
    }
    return { rows, isChanged, hasMore: cursor !== null, freshness };
  }

  async #page(address) {
    const known = this.#pages.get(address);
    const headers = { Authorization: `Bearer ${this.#token}` };
    if (known) headers["If-None-Match"] = known.etag;
    let answer;
    try {
      // The browser's own cache would hide the 304 from us.
      answer = await fetch(address, { headers, cache: "no-store" });
    } catch (error) {
      throw new Unreachable(error.message);
    }
    const freshness = freshnessOf(answer);
    if (answer.status === 304 && known) return { ...known, isChanged: false, freshness };
    const body = await (await answered(answer)).json();
    const page = { items: body.items, cursor: body.next_cursor, etag: answer.headers.get("ETag") };
    this.#pages.set(address, page);
    return { ...page, isChanged: true, freshness };
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
  throw new Unreachable(text);
}
