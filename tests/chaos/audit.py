"""Witnesses that the fleet does not know of: triggers in its database, and a watcher of its lease table.

The triggers write in the transactions that they observe, so a rolled back write leaves no trace and a committed one
always does. Every process logs in under a name of its own, which tells who wrote.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.integration.worker_stack import Stack, query
from tidegate.database import DRIVER_ERRORS
from tidegate.leases import DynamoLeaseStore, Lease
from tidegate.tables import VERSION_COLUMNS

# Numbers from here on are written once in the life of the stream: if one is missing, no later version hides it.
ONCE = 1_000_000


def _version(row: str) -> str:
    return "ARRAY[" + ", ".join(f'{row}."{name}"' for name in VERSION_COLUMNS) + "]"


_TRIGGERS = f"""
CREATE SCHEMA chaos;

CREATE TABLE chaos.change (id bigserial PRIMARY KEY, number bigint, before bigint[], after bigint[]);
CREATE FUNCTION chaos.note_inserts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.change (number, after) SELECT number, {_version("now")} FROM new_rows AS now;
    RETURN NULL;
END $$;
CREATE FUNCTION chaos.note_updates() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.change (number, before, after)
    SELECT now.number, {_version("past")}, {_version("now")}
    FROM new_rows AS now LEFT JOIN old_rows AS past USING (number);
    RETURN NULL;
END $$;
CREATE TRIGGER note_inserts AFTER INSERT ON counters REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.note_inserts();
CREATE TRIGGER note_updates AFTER UPDATE ON counters REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.note_updates();

-- Fires for every row that is proposed, also when it turns out to be there already.
CREATE TABLE chaos.delivery (number bigint, who text DEFAULT session_user, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION chaos.note_delivery() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.delivery (number) VALUES (NEW.number);
    RETURN NEW;
END $$;
CREATE TRIGGER note_delivery BEFORE INSERT ON counters FOR EACH ROW WHEN (NEW.number >= {ONCE})
    EXECUTE FUNCTION chaos.note_delivery();

CREATE TABLE chaos.step (
    id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), who text DEFAULT session_user, shard_id text,
    counter_before bigint, counter bigint, sequence_before numeric, sequence numeric);
CREATE FUNCTION chaos.note_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.step (shard_id, counter_before, counter, sequence_before, sequence)
    VALUES (NEW.shard_id, OLD.lease_counter, NEW.lease_counter, OLD.sequence_number, NEW.sequence_number);
    RETURN NULL;
END $$;
CREATE TRIGGER note_step AFTER UPDATE ON tidegate.shard FOR EACH ROW EXECUTE FUNCTION chaos.note_step();
"""

_BACKWARDS = {
    "a row's version fell": "SELECT number, before, after FROM chaos.change WHERE after <= before",
    "a row changed behind the audit": """
        SELECT number, before, expected FROM (
            SELECT number, before, lag(after) OVER (PARTITION BY number ORDER BY id) AS expected FROM chaos.change) AS c
        WHERE before IS DISTINCT FROM expected""",
    "a row is not what the audit saw last": f"""
        SELECT stored.number, {_version("stored")}, seen.after FROM counters AS stored
        FULL JOIN (SELECT DISTINCT ON (number) number, after FROM chaos.change ORDER BY number, id DESC) AS seen
            USING (number)
        WHERE {_version("stored")} IS DISTINCT FROM seen.after""",
    "a shard's position in the database fell": """
        SELECT shard_id, who, sequence_before, sequence FROM chaos.step
        WHERE sequence < sequence_before OR (sequence IS NULL AND sequence_before IS NOT NULL)""",
    "a shard's fence fell": "SELECT shard_id, who, counter_before, counter FROM chaos.step WHERE counter < counter_before",
}


async def install(stack: Stack, logins: dict[str, str]) -> None:
    """The triggers, and a login for each process: name → password."""
    connection = await asyncpg.connect(stack.postgres.dsn)
    try:
        await connection.execute(_TRIGGERS)
        for name, password in logins.items():
            await connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'")
    finally:
        await connection.close()


async def clear(stack: Stack) -> None:
    """Forget the rows and the witnesses of an earlier test."""
    await query(stack, "TRUNCATE counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")
    await query(stack, "TRUNCATE chaos.change, chaos.delivery, chaos.step")


async def check_order(stack: Stack) -> None:
    """Nothing in the database ever moved backwards."""
    for what, text in _BACKWARDS.items():
        assert await query(stack, f"{text} LIMIT 5") == [], what


async def deliveries(stack: Stack) -> tuple[int, dict[int, int]]:
    """Deliveries of the numbers that were put once: how many, and how often each that came more than once."""
    [(count,)] = await query(stack, "SELECT count(*) FROM chaos.delivery")
    repeated = await query(stack, "SELECT number, count(*) FROM chaos.delivery GROUP BY number HAVING count(*) > 1")
    return int(count), dict(repeated)


@dataclass(slots=True)
class LeaseWatch:
    """Looks at the lease table again and again: no counter, epoch or checkpoint may fall, no finished lease return.

    history   (loop time, key, holder, epoch) whenever a lease was taken or given up
    """

    store: DynamoLeaseStore
    every_s: float
    leases: dict[str, Lease] = field(default_factory=dict)
    history: list[tuple[float, str, str | None, int]] = field(default_factory=list)
    looks: int = 0

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self.every_s)

    async def look(self) -> dict[str, Lease]:
        now_s = asyncio.get_running_loop().time()
        found = {lease.key: lease for lease in await self.store.scan()}
        gone = {key for key, lease in self.leases.items() if key not in found and not lease.is_ended}
        assert not gone, f"leases of unfinished shards are gone: {gone}"
        for key, lease in found.items():
            self._compare(now_s, self.leases.get(key), lease)
        # Those that are gone are remembered: a finished shard that came back would be read twice.
        self.leases.update(found)
        self.looks += 1
        return found

    def _compare(self, now_s: float, before: Lease | None, after: Lease) -> None:
        if before is not None:
            assert after.checkpoint >= before.checkpoint, f"a checkpoint fell: {before} → {after}"
            assert after.counter >= before.counter, f"a counter fell: {before} → {after}"
            assert after.epoch >= before.epoch, f"an epoch fell: {before} → {after}"
        if before is None or (before.holder, before.epoch) != (after.holder, after.epoch):
            self.history.append((now_s, after.key, after.holder, after.epoch))

    def held_by(self, name: str) -> set[str]:
        """Unfinished leases of the process with this name, as last seen."""
        return {key for key, lease in self.leases.items() if _is_of(lease.holder, name) and not lease.is_ended}

    def taken_after_s(self, since_s: float, epochs: dict[str, int]) -> dict[str, float]:
        """Of the leases that had these epochs at `since_s`: how long until somebody took each, if anybody did."""
        found: dict[str, float] = {}
        for at_s, key, holder, epoch in self.history:
            if at_s >= since_s and key in epochs and holder is not None and epoch > epochs[key]:
                found.setdefault(key, at_s - since_s)
        return found


@dataclass(slots=True)
class RowWatch:
    """Reads the rows that change, as any reader of the front office would: none may show an older version than before."""

    stack: Stack
    every_s: float
    versions: dict[int, int] = field(default_factory=dict)
    looks: int = 0

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except DRIVER_ERRORS:
                # The database was killed; another one will answer.
                self.looks -= 1
            await asyncio.sleep(self.every_s)

    async def look(self) -> None:
        self.looks += 1
        found = dict(await query(self.stack, "SELECT number, _source_version FROM counters WHERE number < $1", ONCE))
        fallen = {number: version for number, version in self.versions.items() if found.get(number, -1) < version}
        assert not fallen, f"rows show older versions than {fallen}"
        self.versions = found


def _is_of(holder: str | None, name: str) -> bool:
    return holder is not None and holder.startswith(f"{name}-")


async def resumed_after_s(stack: Stack, since: Any, shards: set[str], victim: str) -> dict[str, float]:
    """For each shard, when another than the victim first committed new records of it, in seconds after `since`."""
    rows = await query(
        stack,
        "SELECT shard_id, extract(epoch FROM min(at) - $1::timestamptz)::float FROM chaos.step "
        "WHERE shard_id = ANY ($2) AND who <> $3 AND at > $1 AND sequence IS DISTINCT FROM sequence_before "
        "GROUP BY shard_id",
        since, sorted(shards), victim,
    )  # fmt: skip
    return dict(rows)
