"""What every side of the `api` benchmark finds: parcels in PostgreSQL under their policies, a token, and events."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

import examples.parcels.bubble
from examples.parcels.bubble import bubble
from local.postgres import Postgres
from tests.fakes import issuer
from tidegate import migrate

PARCELS = 20_000
CUSTOMERS = 50
"""Each customer sees 800 parcels of the 20,000, as sender or recipient."""

CALLER = {"sub": "s-7", "username": "customer-7"}
KEY = "P0000007"
PAGE_ROWS = 100

_NAMES = (
    "number", "status", "origin_office", "current_office", "destination_office", "sender", "recipient", "partner_shop",
    "shipping_cost", "weight_kg", "express", "booked_at", "promised_on", "changed_at",
)  # fmt: skip


def _row(number: int) -> tuple[Any, ...]:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    office = str(101 + number % 40)
    return (
        f"P{number:07}", "in_transit", office, office, str(101 + (number + 7) % 40), str(number % CUSTOMERS),
        str((number + 1) % CUSTOMERS), None, number % 100, 2, number % 2 == 0, at, at.date(), at,
    )  # fmt: skip


async def make(postgres: Postgres) -> str:
    """Fill the database; returns the address of the API's login."""
    import asyncio  # noqa: PLC0415

    await asyncio.to_thread(
        migrate.upgrade, postgres.dsn, bubble, migrate.migrations_of(examples.parcels.bubble)
    )  # fmt: skip
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute("CREATE ROLE bench_reader LOGIN PASSWORD 'bench' IN ROLE tidegate_reader")
        places = ", ".join(f"${place}" for place in range(1, len(_NAMES) + 1))
        text = (
            f"INSERT INTO parcels ({', '.join(_NAMES)}, _generation, _source_version, _epoch, _read, _translation, _deleted,"
            f" _event_id, _occurred_at) VALUES ({places}, 0, 1, 1, 1, 1, false, 'e', now())"
        )
        await connection.executemany(text, [_row(number) for number in range(PARCELS)])
        await connection.execute("INSERT INTO tidegate.shard (stream, shard_id) VALUES ('s', 'a'), ('s', 'b')")
        await connection.execute(
            "INSERT INTO tidegate.watermark SELECT 's', shard_id, 'parcels', now() FROM tidegate.shard"
        )
        await connection.execute("VACUUM ANALYZE parcels")
    finally:
        await connection.close()
    return postgres.dsn_for("bench_reader", "bench")


def environment(database_url: str, aws_url: str) -> dict[str, str]:
    return {
        **issuer.environment(), "TIDEGATE_BUBBLE": "examples.parcels.bubble", "TIDEGATE_DATABASE_URL": database_url,
        "TIDEGATE_CURSOR_KEY": "k" * 32, "TIDEGATE_STATEMENT_CACHE_SIZE": "16", "TIDEGATE_INBOUND_STREAM": "arrivals",
        "TIDEGATE_USER_TABLE": "users", "AWS_ENDPOINT_URL": aws_url, "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }  # fmt: skip


def event(
    method: str, path: str, *, query: dict[str, str] | None = None, etag: str | None = None, body: object = None
) -> Any:
    """As API Gateway sends it; the claims are there too, for sides that take its word."""
    claims = issuer.claims(**CALLER)
    headers = {"authorization": f"Bearer {issuer.signed(claims)}", "content-type": "application/json", "host": "api"}
    if etag is not None:
        headers["if-none-match"] = etag
    pairs = "&".join(f"{name}={value}" for name, value in (query or {}).items())
    return {
        "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": pairs, "headers": headers,
        "queryStringParameters": query or {}, "isBase64Encoded": False, "body": json.dumps(body) if body else "",
        "requestContext": {
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "bench"},
            "requestId": "r", "stage": "$default", "authorizer": {"jwt": {"claims": claims, "scopes": None}},
        },
    }  # fmt: skip


EVENTS: dict[str, Any] = {
    "reads": lambda: event("GET", f"/v1/parcels/{KEY}"),
    "ingest": lambda: event(
        "POST",
        "/v1/events",
        body={
            "specversion": "1.0",
            "id": "1",
            "type": "parcels.delivery_wish",
            "data": {"parcel": "P1", "place": "door"},
        },
    ),
    "user": lambda: event("GET", "/v1/user"),
}
"""The first request of each function."""


@contextmanager
def aws() -> Iterator[str]:
    """As much of Kinesis and DynamoDB as one request of each needs; prepared answers."""
    answers = {
        "Kinesis": {"FailedRecordCount": 0, "Records": [{"SequenceNumber": "1", "ShardId": "s"}]},
        "DynamoDB": {"Item": {"subject": {"S": "s"}, "version": {"S": "v"}, "attributes": {"S": "{}"}}},
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(answers[self.headers["X-Amz-Target"].partition("_")[0]]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


ROOT = Path(__file__).parent.parent
