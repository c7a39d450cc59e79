"""SubscribeToShard: records are pushed until the shard ends, the time is up, or the subscription is taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from local.kinesis import eventstream
from local.kinesis.catalogue import Catalogue
from local.kinesis.errors import in_use
from local.kinesis.limits import READ_BYTES_PER_S, Budget
from local.kinesis.operations_consumers import find_consumer
from local.kinesis.operations_records import child_shards
from local.kinesis.positions import starting_position
from local.kinesis.shapes import SubscribeInput
from local.kinesis.stream import ShardState, Subscription

MAX_EVENT_BYTES = 1024 * 1024
MAX_EVENT_RECORDS = 10_000
RESUBSCRIBE_AFTER_S = 5.0


class Push:
    """One subscription. Building it checks the call (raises Refused); `frames` yields what to send."""

    def __init__(self, catalogue: Catalogue, given: SubscribeInput) -> None:
        self._settings = catalogue.settings
        self._clock = catalogue.clock
        self._stream, consumer = find_consumer(catalogue, given.consumer_arn)
        self._state: ShardState = self._stream.state(given.shard_id)
        self._position = starting_position(self._stream, self._state, given.starting_position, self._clock.now_ms())
        self._began_s = self._clock.monotonic_s()
        self._subscription = self._take_over(consumer.name)
        self._budget = Budget(READ_BYTES_PER_S)

    def _take_over(self, consumer: str) -> Subscription:
        before = self._state.subscriptions.get(consumer)
        if before is not None:
            if self._settings.enforce_limits and self._began_s - before.began_s < RESUBSCRIBE_AFTER_S:
                raise in_use(f"Another active subscription exists for this consumer and {self._state.shard.id}.")
            before.end(in_use(f"Another subscription of this consumer took over {self._state.shard.id}."))
        subscription = Subscription(consumer, self._state.shard.id, self._began_s)
        self._state.subscriptions[consumer] = subscription
        return subscription

    async def frames(self) -> AsyncIterator[bytes]:
        """The frames in order, `initial-response` first. Ends by itself."""
        subscription = self._subscription
        yield eventstream.event("initial-response", b"{}")
        yield self._next_event()
        ends_s = self._began_s + self._settings.subscription_s
        while subscription.ended is None and not self._at_end:
            left_s = ends_s - self._clock.monotonic_s()
            if left_s <= 0:
                return
            await self._wait(min(left_s, self._settings.heartbeat_s))
            if subscription.ended is None:
                yield self._next_event()
        if subscription.ended is not None:
            reason = subscription.ended
            yield eventstream.exception(reason.code, msgspec.json.encode({"message": reason.text}))

    def close(self) -> None:
        """Forget the subscription, unless another one has its place. The 5 s between two of them still count."""
        if not self._settings.enforce_limits and self._is_current:
            del self._state.subscriptions[self._subscription.consumer]

    @property
    def _is_current(self) -> bool:
        return self._state.subscriptions.get(self._subscription.consumer) is self._subscription

    @property
    def _at_end(self) -> bool:
        end = self._state.shard.end_position
        return end is not None and self._position >= end

    async def _wait(self, timeout_s: float) -> None:
        """Until there is something to send and the budget allows it, the subscription ends, or the time is over."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while self._subscription.ended is None:
            now_s = self._clock.monotonic_s()
            owed_s = self._budget.ready_in_s(now_s) if self._settings.enforce_limits else 0.0
            news = self._position < self._state.log.next_position or self._at_end
            if now_s >= deadline_s or (news and owed_s <= 0):
                return
            self._subscription.wake.clear()
            pause_s = min(deadline_s - now_s, owed_s) if news else deadline_s - now_s
            try:
                await asyncio.wait_for(self._subscription.wake.wait(), pause_s)
            except TimeoutError:
                continue

    def _next_event(self) -> bytes:
        state, now_ms = self._state, self._clock.now_ms()
        now_s = self._clock.monotonic_s()
        if self._settings.enforce_limits and self._budget.ready_in_s(now_s) > 0:
            return self._event(b"", now_ms)
        run = state.log.read(self._position, MAX_EVENT_RECORDS, MAX_EVENT_BYTES)
        self._budget.charge(run.size_bytes, now_s)
        self._position = run.next_position
        return self._event(run.records, now_ms)

    def _event(self, records: bytes, now_ms: int) -> bytes:
        state = self._state
        if self._at_end:
            children = msgspec.json.encode(child_shards(self._stream, state.shard))
            rest = b'"ContinuationSequenceNumber":null,"ChildShards":' + children
        else:
            rest = b'"ContinuationSequenceNumber":"%b"' % state.sequence_before(self._position).encode()
        behind_ms = state.millis_behind(self._position, now_ms)
        payload = b'{"Records":[%b],"MillisBehindLatest":%d,%b}' % (records, behind_ms, rest)
        return eventstream.event("SubscribeToShardEvent", payload)
