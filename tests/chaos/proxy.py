"""A proxy that misbehaves, in front of a stand-in for an AWS service.

    async with fronting(kinesis_url, seed=7) as proxy:
        proxy.rates = {"GetRecords": {Fault.THROTTLE: 0.2}, ANY: {Fault.LOST_REPLY: 0.02}}
        …                                  # AWS_ENDPOINT_URL_KINESIS=proxy.url
        proxy.heal()

Each operation has dice of its own, made from the seed, so its n-th request always meets the same fate, whatever the
other operations do meanwhile. What meets none is passed on as it comes, both ways: a GetRecords answer of 10 MiB and
the endless answer of SubscribeToShard are not collected first. The Host header, which is signed, is passed on as well.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum

import aiohttp
import msgspec
from aiohttp import hdrs, web

ANY = "*"
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
# What belongs to one connection, not to the message. aiohttp frames each side anew.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"})


class Fault(StrEnum):
    """What can happen to a request."""

    THROTTLE = "throttle"  # refused for now, with the code of the service
    ERROR = "error"  # 500, with the code of the service
    UNAVAILABLE = "unavailable"  # 503 from a load balancer: not even JSON
    HANG = "hang"  # never forwarded, never answered
    LOST_REQUEST = "lost_request"  # the connection breaks before anything is done
    LOST_REPLY = "lost_reply"  # it is done, and the connection breaks before the first byte of the answer
    TORN_REPLY = "torn_reply"  # it is done, and the connection breaks in the middle of the answer
    LATE = "late"  # forwarded after the client gave up on it
    SLOW = "slow"  # forwarded after a wait that the client should bear


_DATA_OPERATIONS = frozenset(
    {"GetItem", "GetRecords", "GetShardIterator", "PutItem", "PutRecord", "PutRecords", "Query", "Scan", "UpdateItem"}
)


class FaultProxy:
    """`rates` may be set at any time: by operation (or ANY for the others), the probability of each fault.

    counts   faults done, by operation and fault
    passed   requests forwarded without a fault, by operation
    """

    def __init__(self, upstream: str, session: aiohttp.ClientSession, group: asyncio.TaskGroup, seed: int) -> None:
        self.url = ""
        self.rates: Mapping[str, Mapping[Fault, float]] = {}
        self.counts: Counter[tuple[str, Fault]] = Counter()
        self.passed: Counter[str] = Counter()
        self.slow_s = 0.3
        self.late_s = 3.0
        self.hang_s = 60.0
        self._upstream = upstream
        self._session = session
        self._group = group
        self._late: set[asyncio.Task[None]] = set()
        self._seed = seed
        self._dice: dict[str, random.Random] = {}

    def heal(self) -> None:
        """From now on everything is passed on. A late request may still arrive."""
        self.rates = {}

    def forget_late(self) -> None:
        """What is still on its way never arrives."""
        for task in self._late:
            task.cancel()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        service, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
        fault = self._draw(operation)
        if fault is None:
            self.passed[operation] += 1
            return await self._pass_on(request, await request.read())
        self.counts[operation, fault] += 1
        if fault in _ANSWERS:
            return _refusal(fault, service, operation)
        if fault is Fault.LOST_REQUEST:
            return _break(request)
        body = await request.read()
        match fault:
            case Fault.SLOW:
                await asyncio.sleep(self.slow_s)
                return await self._pass_on(request, body)
            case Fault.LOST_REPLY | Fault.TORN_REPLY:
                return await self._pass_on(request, body, fault)
            case Fault.LATE:
                self._send_late(request.method, request.path_qs, _headers(request), body)
        # The client gives up first, and that cancels us; or else the connection breaks.
        await asyncio.sleep(self.hang_s)
        return _break(request)

    def _draw(self, operation: str) -> Fault | None:
        dice = self._dice.setdefault(operation, random.Random(f"{self._seed} {operation}"))
        drawn = dice.random()
        for fault, rate in self.rates.get(operation, self.rates.get(ANY, {})).items():
            drawn -= rate
            if drawn < 0:
                return fault
        return None

    async def _pass_on(self, request: web.Request, body: bytes, fault: Fault | None = None) -> web.StreamResponse:
        """Forward, and answer with what comes back, chunk by chunk."""
        async with self._send(request.method, request.path_qs, _headers(request), body) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    response.headers.add(name, value)
            if hdrs.CONTENT_LENGTH not in answer.headers:
                response.enable_chunked_encoding()
            chunk = await answer.content.readany()
            if fault is Fault.LOST_REPLY:
                return _break(request)
            try:
                await response.prepare(request)
                if fault is Fault.TORN_REPLY:
                    await response.write(chunk[: len(chunk) // 2])
                    return _break(request, at_once=False)
                while chunk:
                    await response.write(chunk)
                    chunk = await answer.content.readany()
                await response.write_eof()
            except ConnectionError:
                # The client has gone away.
                return response
            return response

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> aiohttp.client._RequestContextManager:
        return self._session.request(
            method, self._upstream + path, headers=headers, data=io.BytesIO(body), allow_redirects=False,
            skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT, hdrs.CONTENT_TYPE),
        )  # fmt: skip

    def _send_late(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        task = self._group.create_task(self._forward_late(method, path, headers, body))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _forward_late(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        await asyncio.sleep(self.late_s)
        try:
            async with self._send(method, path, headers, body) as answer:
                await answer.content.readany()
        except aiohttp.ClientError:
            # The stand-in is gone, and nobody waits for this answer.
            return


def _headers(request: web.Request) -> dict[str, str]:
    gone = _HOP_BY_HOP | {"content-length"}
    return {name: value for name, value in request.headers.items() if name.lower() not in gone}


def _break(request: web.Request, *, at_once: bool = True) -> web.Response:
    """Break the connection, at once or after what was sent already. The answer goes nowhere."""
    if request.transport is not None:
        if at_once:
            request.transport.abort()
        else:
            request.transport.close()
    return web.Response()


_ANSWERS = {Fault.THROTTLE: 400, Fault.ERROR: 500, Fault.UNAVAILABLE: 503}


def _refusal(fault: Fault, service: str, operation: str) -> web.Response:
    if fault is Fault.UNAVAILABLE:
        return web.Response(status=503, text="<html><body>503 Service Temporarily Unavailable</body></html>")
    is_dynamodb = service.startswith("DynamoDB")
    if fault is Fault.ERROR:
        code = "InternalServerError" if is_dynamodb else "InternalFailureException"
    else:
        is_limited = operation in _DATA_OPERATIONS
        code = "ProvisionedThroughputExceededException" if is_limited else "LimitExceededException"
    body = msgspec.json.encode({"__type": code, "message": f"{fault} by the fault proxy"})
    version = "1.0" if is_dynamodb else "1.1"
    return web.Response(status=_ANSWERS[fault], body=body, content_type=f"application/x-amz-json-{version}")


@asynccontextmanager
async def fronting(upstream: str, seed: int) -> AsyncIterator[FaultProxy]:
    """A proxy in front of `upstream` (http://host:port) for the block, on a port of 127.0.0.1; no faults at first."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
        asyncio.TaskGroup() as group,
    ):
        proxy = FaultProxy(upstream, session, group, seed)
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        # A handler whose client gave up is cancelled: nothing hangs longer than somebody waits.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy
        finally:
            await runner.cleanup()
            proxy.forget_late()
