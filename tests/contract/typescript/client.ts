// A front office written against the specification: what it may do compiles, and what it may not does not.

import createClient from "openapi-fetch";

import type { components, paths } from "./schema";

type Ship = components["schemas"]["Ship"];

const client = createClient<paths>({ baseUrl: "https://api.example.com" });

export async function arrivals(): Promise<string[]> {
  const { data, error, response } = await client.GET("/v1/ships", {
    params: {
      query: { flag: "ch", "quay.in": [1, 2], "eta.gte": "2026-11-21T06:00:00Z", sort: ["-eta", "name"], embed: ["berth"], limit: 20 },
    },
  });
  if (error) throw new Error(`${error.type}: ${error.detail} (${error.where?.name ?? "?"}), ${response.headers.get("Retry-After")}`);
  const next: string | null = data.next_cursor;
  return data.items.map((ship) => `${ship.imo} ${ship.name ?? ""} ${ship.berth?.name ?? "at sea"} ${next ?? ""}`);
}

export async function one(imo: string): Promise<Ship["flag"] | undefined> {
  const { data } = await client.GET("/v1/ships/{imo}", { params: { path: { imo }, query: { embed: ["visits"] } } });
  const paid: string[] = data?.visits?.map((visit) => visit.paid) ?? [];
  return paid.length > 0 ? data?.flag : undefined;
}

export async function follow(known: Map<string, components["schemas"]["ShipShown"]>, cursor: string): Promise<string> {
  const { data, response } = await client.GET("/v1/ships/changes", { params: { query: { cursor } } });
  if (response.status === 304 || !data) return response.headers.get("Next-Cursor") ?? cursor;
  for (const change of data.changes) {
    if (change.change === "shown") known.set(change.key, change.row);
    else known.delete(change.key);
  }
  return data.next_cursor;
}

export async function dues(): Promise<number> {
  const { data } = await client.GET("/v1/reports/dues", { params: { query: { "at.gte": "2026-01-01T00:00:00Z" } } });
  return data?.rows.reduce((sum, row) => sum + row.visits, 0) ?? 0;
}

export async function mistakes(): Promise<void> {
  // @ts-expect-error: there is no such flag
  await client.GET("/v1/ships", { params: { query: { flag: "de" } } });
  // @ts-expect-error: a choice has no order
  await client.GET("/v1/ships", { params: { query: { "flag.gt": "ch" } } });
  // @ts-expect-error: ships are not sorted by their owner
  await client.GET("/v1/ships", { params: { query: { sort: ["owner"] } } });
  // @ts-expect-error: a number is a number
  await client.GET("/v1/ships", { params: { query: { "tonnage.gte": "many" } } });
  // @ts-expect-error: rows are read, not written
  await client.POST("/v1/ships", { body: {} });
  // @ts-expect-error: there is no such report
  await client.GET("/v1/reports/profits");
  const { data } = await client.GET("/v1/quays/{number}", { params: { path: { number: 1 } } });
  // @ts-expect-error: the number of a quay is none of its text
  const text: string | undefined = data?.number;
  console.log(text);
}
