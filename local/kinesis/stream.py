"""One stream: its shards with their logs and budgets, its consumers, and how they change."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.kinesis import manifest as manifests
from local.kinesis import model
from local.kinesis.errors import Refused, in_use, invalid_argument, limit_exceeded, not_found
from local.kinesis.limits import ShardLimits
from local.kinesis.log import ShardLog
from local.kinesis.manifest import ConsumerRow, Manifest, ShardRow
from local.kinesis.model import Router, Shard
from local.kinesis.settings import ACCOUNT_ID, Settings

MS_PER_HOUR = 3_600_000
TRIM_EVERY_MS = 1_000
MAX_CONSUMERS = 20


@dataclass(eq=False, slots=True)
class Subscription:
    """One open SubscribeToShard answer. `wake` is set when there may be news, `ended` by whoever ends it."""

    consumer: str
    shard_id: str
    began_s: float
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: Refused | None = None

    def end(self, reason: Refused) -> None:
        self.ended = reason
        self.wake.set()


@dataclass(slots=True)
class ShardState:
    """A shard as the server holds it."""

    shard: Shard
    log: ShardLog
    limits: ShardLimits = field(default_factory=ShardLimits)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)

    def wake(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.wake.set()

    def position_of(self, sequence: str, *, after: bool) -> int:
        """The position of the first record at (or after) a sequence number. Raises ValueError for a foreign one."""
        parts = model.parse_sequence(sequence)
        ours = (parts.created_s, parts.shard_index) == (self.shard.created_s, self.shard.index)
        if not ours or parts.position > self.log.next_position:
            raise ValueError("it did not come from this shard")
        if not self.log.first_position <= parts.position < self.log.next_position:
            return max(1, parts.position + 1 if after else parts.position)
        arrival_s = self.log.arrival_ms(parts.position) // 1000
        if arrival_s < parts.arrival_s or (after and arrival_s == parts.arrival_s):
            return parts.position + 1
        return parts.position

    def sequence_before(self, position: int) -> str:
        """A sequence number from which AFTER_SEQUENCE_NUMBER goes on at `position`."""
        known = position - 1 >= self.log.first_position
        arrival_s = self.log.arrival_ms(position - 1) // 1000 if known else self.shard.created_s
        return str(model.sequence_number(self.shard.base, position - 1, arrival_s))

    def millis_behind(self, position: int, now_ms: int) -> int:
        """How long the next unread record has been waiting; 0 at the tip."""
        position = max(position, self.log.first_position)
        if position >= self.log.next_position:
            return 0
        return max(1, now_ms - self.log.arrival_ms(position))


class Stream:
    """Opened from its directory by `open`, or made by `create`. Every change is on disk before the method returns."""

    def __init__(self, settings: Settings, directory: Path, saved: Manifest) -> None:
        self.settings = settings
        self.directory = directory
        self.name = saved.name
        self.created_ms = saved.created_ms
        self.retention_hours = saved.retention_hours
        self.mode = saved.mode
        self.next_index = saved.next_index
        self.consumers = {row.name: row for row in saved.consumers}
        self.states: dict[str, ShardState] = {}
        for row in saved.shards:
            self._add(row.shard())
        self.busy_until_ms = 0
        self._trimmed_ms = 0
        self._route()

    @classmethod
    def create(cls, settings: Settings, name: str, shards: Sequence[Shard], mode: str, now_ms: int) -> Stream:
        directory = settings.data / f"stream-{name}"
        directory.mkdir()
        rows = [ShardRow.of(shard) for shard in shards]
        stream = cls(settings, directory, Manifest(name, now_ms, 24, mode, len(rows), rows, []))
        stream.save()
        stream.be_busy(now_ms)
        return stream

    @property
    def arn(self) -> str:
        return f"arn:aws:kinesis:{self.settings.region}:{ACCOUNT_ID}:stream/{self.name}"

    @property
    def shards(self) -> list[Shard]:
        return [state.shard for state in self.states.values()]

    @property
    def open_shards(self) -> list[Shard]:
        return [state.shard for state in self.states.values() if state.shard.is_open]

    def status(self, now_ms: int) -> str:
        if now_ms >= self.busy_until_ms:
            return "ACTIVE"
        return "CREATING" if self.next_index == len(self.open_shards) else "UPDATING"

    def be_busy(self, now_ms: int) -> None:
        self.busy_until_ms = now_ms + round(self.settings.transition_s * 1000)

    def require_active(self, now_ms: int) -> None:
        status = self.status(now_ms)
        if status != "ACTIVE":
            raise in_use(f"Stream {self.name} under account {ACCOUNT_ID} not ACTIVE, instead in state {status}")

    def horizon_ms(self, now_ms: int) -> int:
        """The trim horizon, or the creation of the stream if that is later."""
        return max(self.created_ms, now_ms - self.retention_hours * MS_PER_HOUR)

    def state(self, shard_id: str) -> ShardState:
        state = self.states.get(shard_id)
        if state is None:
            raise not_found(f"Could not find shard {shard_id} in stream {self.name} under account {ACCOUNT_ID}.")
        return state

    def state_of_key(self, key: int) -> ShardState:
        return self.states[self._router.shard_id_of(key)]

    def save(self) -> None:
        rows = [ShardRow.of(shard) for shard in self.shards]
        saved = Manifest(
            name=self.name,
            created_ms=self.created_ms,
            retention_hours=self.retention_hours,
            mode=self.mode,
            next_index=self.next_index,
            shards=rows,
            consumers=list(self.consumers.values()),
        )
        manifests.save(self.directory / "stream.json", saved)

    def trim(self, now_ms: int) -> None:
        """Forget what is older than the retention, and the shards that ended before it; once a second at most."""
        if abs(now_ms - self._trimmed_ms) < TRIM_EVERY_MS:
            return
        self._trimmed_ms = now_ms
        horizon_ms = now_ms - self.retention_hours * MS_PER_HOUR
        gone = []
        for state in self.states.values():
            state.log.trim(horizon_ms)
            if state.shard.closed_ms is not None and state.shard.closed_ms < horizon_ms:
                gone.append(state)
        for state in gone:
            del self.states[state.shard.id]
        if gone:
            self.save()
            for state in gone:
                state.log.remove()

    def set_retention(self, hours: int, now_ms: int) -> None:
        self.retention_hours = hours
        self.save()
        self._trimmed_ms = 0
        self.trim(now_ms)

    def split(self, shard_id: str, at: int, now_ms: int) -> None:
        parent = self._open_shard(shard_id)
        try:
            children = model.split(parent, at, self.next_index, now_ms)
        except ValueError:
            raise invalid_argument(
                f"NewStartingHashKey {at} used in SplitShard() on shard {shard_id} in stream {self.name} under account "
                f"{ACCOUNT_ID} is not both greater than one plus the shard's StartingHashKey "
                f"{parent.hash_range.start} and less than the shard's EndingHashKey {parent.hash_range.end}."
            ) from None
        self._replace([parent], children, now_ms)

    def merge(self, shard_id: str, adjacent_id: str, now_ms: int) -> None:
        one, other = self._open_shard(shard_id), self._open_shard(adjacent_id)
        try:
            child = model.merge(one, other, self.next_index, now_ms)
        except ValueError:
            raise invalid_argument(
                f"Shards {shard_id} and {adjacent_id} in stream {self.name} under account {ACCOUNT_ID} "
                "are not an adjacent pair of shards eligible for merging"
            ) from None
        self._replace([one, other], [child], now_ms)

    def rescale(self, target: int, now_ms: int) -> None:
        """Split and merge until `target` even shards are open; the short-lived ones in between stay as parents."""
        while (step := model.rescale_step(self.open_shards, target)) is not None:
            match step:
                case model.Split(shard, at):
                    self.split(shard.id, at, now_ms)
                case model.Merge(one, other):
                    self.merge(one.id, other.id, now_ms)

    def register(self, name: str, now_ms: int) -> ConsumerRow:
        if name in self.consumers:
            raise in_use(f"Consumer {name} of stream {self.name} under account {ACCOUNT_ID} already exists.")
        if len(self.consumers) >= MAX_CONSUMERS:
            raise limit_exceeded(f"Stream {self.name} has its {MAX_CONSUMERS} consumers already.")
        row = ConsumerRow(name, now_ms)
        self.consumers[name] = row
        self.save()
        return row

    def deregister(self, name: str) -> None:
        del self.consumers[name]
        self.save()
        self._end_subscriptions(not_found(f"Consumer {name} is deregistered."), consumer=name)

    def children(self, shard: Shard) -> list[Shard]:
        return [child for child in self.shards if shard.id in child.parent_ids]

    def close(self, reason: Refused) -> None:
        """End the subscriptions and release the files."""
        self._end_subscriptions(reason)
        for state in self.states.values():
            state.log.close()

    def remove(self, reason: Refused) -> None:
        """Delete the stream. The directory is renamed first, so a half-done removal is not taken for a stream."""
        self.close(reason)
        shutil.rmtree(self.directory.rename(self.directory.with_name(f"deleted-{self.name}-{self.created_ms}")))

    def _end_subscriptions(self, reason: Refused, consumer: str | None = None) -> None:
        for state in self.states.values():
            for subscription in state.subscriptions.values():
                if consumer in (None, subscription.consumer):
                    subscription.end(reason)

    def _open_shard(self, shard_id: str) -> Shard:
        shard = self.state(shard_id).shard
        if not shard.is_open:
            raise invalid_argument(
                f"Shard {shard_id} in stream {self.name} under account {ACCOUNT_ID} is closed already."
            )
        return shard

    def _replace(self, parents: Sequence[Shard], children: Iterable[Shard], now_ms: int) -> None:
        for parent in parents:
            state = self.states[parent.id]
            state.shard = model.closed(parent, state.log.next_position, now_ms)
            state.log.close()
        for child in children:
            self._add(child)
            self.next_index = child.index + 1
        self._route()
        self.save()
        for parent in parents:
            self.states[parent.id].wake()

    def _add(self, shard: Shard) -> None:
        log = ShardLog(self.directory, shard.id, self.settings.segment_bytes)
        self.states[shard.id] = ShardState(shard, log)

    def _route(self) -> None:
        self._router = Router(self.open_shards)
