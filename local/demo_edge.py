"""The edge of the demo: one event and one attribute go in through the API, and are looked for where they should be."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import msgspec

from local.stack import Stack
from tidegate.errors import Fatal

FILED_WITHIN_S = 20.0


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from the request to the row in tidegate.inbound (None: the bubble has no inbound event), and whether
    a user's attribute came back as it went in."""

    event_ms: int | None
    is_kept: bool


async def check_edge(stack: Stack) -> Edge:
    """Send what the demo declares, as its first user. Raises Fatal when it is refused or does not arrive."""
    user = stack.demo.users[0]
    tokens = await stack.sign_in(user.username, stack.password(user))
    bearer = {"Authorization": f"Bearer {tokens.access_token}"}
    event_ms = None if stack.demo.event is None else await _event(stack, bearer)
    return Edge(event_ms=event_ms, is_kept=await _attribute(stack, bearer))


async def _event(stack: Stack, bearer: dict[str, str]) -> int:
    stack.say("sending an event, and looking for it in the database")
    event_id = uuid.uuid4().hex
    body = {"specversion": "1.0", "id": event_id, **(stack.demo.event or {})}
    started = time.monotonic()
    url = f"{stack.deployment.api_url}/v1/events"
    async with stack.session.post(url, json=body, headers=bearer) as answer:
        if answer.status != 202:
            raise Fatal(f"an event was answered {answer.status}: {await answer.text()}; see {stack.child('aws').log}")
    connection = await asyncpg.connect(stack.database("operator_login"), timeout=5)
    try:
        while not await connection.fetchval("SELECT 1 FROM tidegate.inbound WHERE event_id = $1", event_id):
            if time.monotonic() - started > FILED_WITHIN_S:
                raise Fatal(f"an event did not arrive within {FILED_WITHIN_S:g} s; see {stack.child('arrivals').log}")
            await asyncio.sleep(0.05)
    finally:
        await connection.close()
    return round((time.monotonic() - started) * 1000)


async def _attribute(stack: Stack, bearer: dict[str, str]) -> bool:
    stack.say("keeping a user's own attribute")
    url = f"{stack.deployment.api_url}/v1/user"
    wanted = {"language": "de", "seen": uuid.uuid4().hex}
    async with stack.session.get(url, headers=bearer) as answer:
        how = {"If-Match": answer.headers["ETag"]} if answer.status == 200 else {"If-None-Match": "*"}
    async with stack.session.put(url, json=wanted, headers={**bearer, **how}) as answer:
        if answer.status not in (200, 201):
            raise Fatal(f"an attribute was answered {answer.status}: {await answer.text()}")
    async with stack.session.get(url, headers=bearer) as answer:
        return bool(await answer.json(content_type=None) == wanted)
