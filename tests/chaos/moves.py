"""What the world does to a fleet: a deck of moves, shuffled by a seed, dealt one after the other.

The same seed deals the same moves with the same pauses. What a real machine makes of them differs a little each time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from botocore.exceptions import ClientError

from tests.chaos.audit import LeaseWatch
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import ANY, Fault, FaultProxy

Say = Callable[[str], None]


class Move(Protocol):
    """One thing that is done to the world, with dice of its own."""

    __name__: str

    def __call__(self, dice: random.Random) -> Awaitable[None]: ...


_MOST_SHARDS = 16
_FEWEST_SHARDS = 4
# Always a little of everything, as in a bad week.
_DRIZZLE = {fault: 0.004 for fault in Fault}
_STORMS: tuple[dict[Fault, float], ...] = (
    {Fault.THROTTLE: 0.7},
    {Fault.ERROR: 0.3, Fault.UNAVAILABLE: 0.3},
    {Fault.LOST_REQUEST: 0.25, Fault.LOST_REPLY: 0.25, Fault.TORN_REPLY: 0.1},
    {Fault.HANG: 0.2, Fault.LATE: 0.2, Fault.SLOW: 0.2},
    {Fault.HANG: 1.0},
    {Fault.LOST_REPLY: 1.0},
)


@dataclass(slots=True)
class Kill:
    """A process that was killed: when, and with which leases (epoch by key)."""

    at_s: float
    epochs: dict[str, int]


@dataclass(slots=True)
class World:
    """Everything that a move may touch."""

    fleet: Fleet
    watch: LeaseWatch
    kinesis: FaultProxy
    dynamodb: FaultProxy
    dice: random.Random
    expiry_s: float
    say: Say
    moves: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)

    def deck(self) -> list[Move]:
        return [
            self.kill, self.suspend, self.terminate, self.split, self.merge, self.rescale, self.restart_database,
            self.storm_on_kinesis, self.storm_on_dynamodb,
        ]  # fmt: skip

    async def deal(self, pause_s: float) -> None:
        """Every move of the deck once, in a new order; at the end every process runs again, and nothing is broken.

        They overlap: the next one is dealt after a pause, whether the one before has come to its end or not.
        """
        deck = self.deck()
        self.dice.shuffle(deck)
        self.kinesis.rates = self.dynamodb.rates = {ANY: _DRIZZLE}
        async with asyncio.TaskGroup() as group:
            for move in deck:
                # Each has dice of its own: how long one takes must not change what is dealt next.
                group.create_task(self._make(move, random.Random(self.dice.getrandbits(32))))
                await asyncio.sleep(self.dice.uniform(0.5, 1.5) * pause_s)
        self.kinesis.heal()
        self.dynamodb.heal()

    async def _make(self, move: Move, dice: random.Random) -> None:
        await move(dice)
        self.moves[move.__name__] += 1

    async def kill(self, dice: random.Random) -> None:
        async with self.fleet.take(dice) as slot:
            epochs = {key: self.watch.leases[key].epoch for key in self.watch.held_by(slot.name)}
            self.say(f"SIGKILL {slot.name} with {len(epochs)} leases")
            self.kills.append(Kill(asyncio.get_running_loop().time(), epochs))
            await self.fleet.kill(slot)
            await asyncio.sleep(dice.uniform(0, self.expiry_s))
            await self.fleet.start(slot)

    async def suspend(self, dice: random.Random) -> None:
        async with self.fleet.take(dice) as slot:
            seconds = self.expiry_s + dice.uniform(0.5, 2.0)
            self.say(f"SIGSTOP {slot.name} for {seconds:.1f} s")
            await self.fleet.suspend(slot, seconds)
            # Time to find out, before anything else is done to it.
            await asyncio.sleep(0.5)

    async def terminate(self, dice: random.Random) -> None:
        async with self.fleet.take(dice) as slot:
            self.say(f"SIGTERM {slot.name}")
            await self.fleet.terminate(slot)
            await asyncio.sleep(dice.uniform(0, 1))
            await self.fleet.start(slot)

    async def split(self, dice: random.Random) -> None:
        shards = await self.fleet.stack.open_shards()
        if len(shards) >= _MOST_SHARDS:
            return
        shard = dice.choice(shards)
        first, last = (int(shard["HashKeyRange"][end]) for end in ("StartingHashKey", "EndingHashKey"))
        middle = first + int((last - first) * dice.uniform(0.3, 0.7))
        self.say(f"split {shard['ShardId'][-3:]}")
        await self._reshard("split_shard", ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))

    async def merge(self, dice: random.Random) -> None:
        shards = sorted(
            await self.fleet.stack.open_shards(), key=lambda each: int(each["HashKeyRange"]["EndingHashKey"])
        )
        if len(shards) <= _FEWEST_SHARDS:
            return
        first = dice.randrange(len(shards) - 1)
        one, other = shards[first]["ShardId"], shards[first + 1]["ShardId"]
        self.say(f"merge {one[-3:]} and {other[-3:]}")
        await self._reshard("merge_shards", ShardToMerge=one, AdjacentShardToMerge=other)

    async def rescale(self, dice: random.Random) -> None:
        """Double the stream, or halve it when it is large."""
        count = len(await self.fleet.stack.open_shards())
        target = count * 2 if count * 2 <= _MOST_SHARDS else -(-count // 2)
        self.say(f"rescale {count} → {target} shards")
        await self._reshard("update_shard_count", TargetShardCount=target, ScalingType="UNIFORM_SCALING")

    async def _reshard(self, operation: str, **request: object) -> None:
        # Two moves may choose the same shard; then the second one finds it closed.
        with suppress(ClientError):
            await getattr(self.fleet.stack.kinesis, operation)(StreamName=self.fleet.stack.stream, **request)

    async def restart_database(self, dice: random.Random) -> None:
        self.say("SIGKILL PostgreSQL")
        await self.fleet.stack.postgres.kill()
        await asyncio.sleep(dice.uniform(0, 1))
        await self.fleet.stack.postgres.start()

    async def storm_on_kinesis(self, dice: random.Random) -> None:
        await self._storm("Kinesis", self.kinesis, dice)

    async def storm_on_dynamodb(self, dice: random.Random) -> None:
        await self._storm("DynamoDB", self.dynamodb, dice)

    async def _storm(self, name: str, proxy: FaultProxy, dice: random.Random) -> None:
        rates = dice.choice(_STORMS)
        seconds = dice.uniform(1.0, self.expiry_s * 1.3)
        self.say(
            f"storm on {name} for {seconds:.1f} s: {', '.join(f'{fault} {rate:.0%}' for fault, rate in rates.items())}"
        )
        proxy.rates = {ANY: rates}
        await asyncio.sleep(seconds)
        proxy.rates = {ANY: _DRIZZLE}
