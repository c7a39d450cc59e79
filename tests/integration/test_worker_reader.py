"""The reader against a Kinesis server: resuming, aggregates, the end of a shard, gaps, throttles, old iterators."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from local.kinesis.server import serving
from local.kinesis.settings import Clock, Settings
from tests.unit.test_worker_kpl import aggregate
from tidegate import aws
from tidegate.errors import Fatal, Transient
from tidegate.leases import LATEST, TRIM_HORIZON, Checkpoint, at
from worker.batch import Position
from worker.ports import Delivery, Record
from worker.reader import KinesisReader
from worker.settings import ReadSettings

STREAM = "read"
QUICK = ReadSettings(tip_wait_ms=1, tip_wait_max_ms=2, retry_max_ms=50)
SHARD = "shardId-000000000000"


class Server:
    """One stream with one shard, its reader, and a clock that can be moved."""

    def __init__(self, client: Any, clock: MovableClock) -> None:
        self.client = client
        self.clock = clock
        self.reader = KinesisReader(client, STREAM, QUICK)

    async def put(self, *texts: str | bytes) -> list[int]:
        """Returns the sequence numbers."""
        found = []
        for text in texts:
            body = text.encode() if isinstance(text, str) else text
            answer = await self.client.put_record(StreamName=STREAM, Data=body, PartitionKey="k")
            found.append(int(answer["SequenceNumber"]))
        return found

    async def read(self, start: Checkpoint, *, least: int = 0, reader: KinesisReader | None = None) -> list[Delivery]:
        """Deliveries until `least` records came and the tip or the end is reached."""
        found: list[Delivery] = []
        async with asyncio.timeout(10), aclosing((reader or self.reader).read(SHARD, start)) as deliveries:
            async for delivery in deliveries:
                found.append(delivery)
                if len(records(found)) >= least and delivery.millis_behind == 0:
                    break
        return found


class MovableClock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return Clock().now_ms() + self.ahead_ms


def records(deliveries: list[Delivery]) -> list[Record]:
    return [record for delivery in deliveries for record in delivery.records]


def texts(deliveries: list[Delivery]) -> list[str]:
    return [record.data.decode() for record in records(deliveries)]


@asynccontextmanager
async def server(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[Server]:
    clock = MovableClock()
    options = {"port": 0, "enforce_limits": False, **settings}
    async with serving(Settings(folder, **options), Clock(now_ms=clock.now_ms)) as url:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in (
            ("AWS_ENDPOINT_URL_KINESIS", url), ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        async with aws.client("kinesis") as client:
            await client.create_stream(StreamName=STREAM, ShardCount=1)
            yield Server(client, clock)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_everything_is_read_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        put = await kinesis.put("a", "b", "c")
        found = await kinesis.read(TRIM_HORIZON, least=3)
        assert texts(found) == ["a", "b", "c"]
        assert [record.position for record in records(found)] == [Position(sequence, 0) for sequence in put]
        assert all(delivery.gap is None and not delivery.is_end for delivery in found)


async def test_resuming_drops_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        put = await kinesis.put("a", "b", "c")
        found = await kinesis.read(at(str(put[1])), least=1)
        assert texts(found) == ["c"]
        assert found[0].gap is None
        assert texts(await kinesis.read(at(str(put[2])))) == []


async def test_a_half_done_aggregate_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        [before, inside, _] = await kinesis.put(
            "x", aggregate([("p", None, b"0"), ("q", 7, b"1"), ("p", None, b"2")]), "y"
        )
        whole = await kinesis.read(at(str(before)), least=4)
        assert [(record.position.sub, record.data) for record in records(whole)] == [
            (0, b"0"), (1, b"1"), (2, b"2"), (0, b"y"),
        ]  # fmt: skip
        assert texts(await kinesis.read(at(str(inside), 0), least=3)) == ["1", "2", "y"]
        assert texts(await kinesis.read(at(str(inside), 2), least=1)) == ["y"]


async def test_the_end_of_a_shard_brings_its_last_records_and_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        await kinesis.put("a", "b")
        await kinesis.client.split_shard(StreamName=STREAM, ShardToSplit=SHARD, NewStartingHashKey=str(1 << 127))
        found = await kinesis.read(TRIM_HORIZON, least=2)
        assert texts(found) == ["a", "b"]
        assert found[-1].is_end
        assert found[-1].child_ids == ("shardId-000000000001", "shardId-000000000002")
        shards = {shard.id: shard for shard in await kinesis.reader.list_shards()}
        assert shards[SHARD].is_closed
        assert shards["shardId-000000000002"].parent_ids == (SHARD,)


async def test_records_outside_of_the_hash_range_are_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        await kinesis.client.split_shard(StreamName=STREAM, ShardToSplit=SHARD, NewStartingHashKey="100")
        await kinesis.client.put_record(
            StreamName=STREAM, PartitionKey="k", ExplicitHashKey="5",
            Data=aggregate([("p", 5, b"mine"), ("p", 2**127, b"my sister's")]),
        )  # fmt: skip
        await kinesis.reader.list_shards()
        before = metric("tidegate_records_outside_total")
        async with aclosing(kinesis.reader.read("shardId-000000000001", TRIM_HORIZON)) as deliveries:
            found = [await anext(deliveries)]
        assert texts(found) == ["mine", "my sister's"]
        assert metric("tidegate_records_outside_total") == before + 1


@pytest.mark.parametrize("start", [TRIM_HORIZON, LATEST], ids=str)
async def test_an_expired_iterator_is_renewed_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Checkpoint
) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        before = metric("tidegate_iterators_expired_total")
        seen: list[Delivery] = []
        async with asyncio.timeout(10), aclosing(kinesis.reader.read(SHARD, start)) as deliveries:
            seen.append(await anext(deliveries))
            await kinesis.put("a", "b")
            kinesis.clock.ahead_ms += 301_000
            while len(records(seen)) < 2:
                seen.append(await anext(deliveries))
            await kinesis.put("c")
            while len(records(seen)) < 3:
                seen.append(await anext(deliveries))
        assert texts(seen) == ["a", "b", "c"]
        assert metric("tidegate_iterators_expired_total") == before + 1


@pytest.mark.parametrize("comes_later", [True, False])
async def test_a_trimmed_checkpoint_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, comes_later: bool
) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        [done, *_] = await kinesis.put("done", "never read")
        kinesis.clock.ahead_ms = 25 * 3600 * 1000
        if comes_later:
            await kinesis.put("later")
        found = await kinesis.read(at(str(done)), least=int(comes_later))
        gaps = [delivery.gap for delivery in found if delivery.gap]
        assert len(gaps) == 1
        assert str(done) in gaps[0]
        assert texts(found) == (["later"] if comes_later else [])


@pytest.mark.parametrize("is_trimmed", [True, False])
async def test_an_expired_iterator_at_a_trimmed_position_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_trimmed: bool
) -> None:
    """The database kept the reader waiting for longer than the stream keeps its records."""
    async with server(tmp_path, monkeypatch) as kinesis:
        [first, *_] = await kinesis.put("first")
        seen: list[Delivery] = []
        async with asyncio.timeout(10), aclosing(kinesis.reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            while not records(seen):
                seen.append(await anext(deliveries))
            await kinesis.put("between")
            kinesis.clock.ahead_ms = (25 if is_trimmed else 1) * 3600 * 1000
            await kinesis.put("later")
            while texts(seen)[-1] != "later":
                seen.append(await anext(deliveries))
        gaps = [delivery.gap for delivery in seen if delivery.gap]
        assert texts(seen) == (["first", "later"] if is_trimmed else ["first", "between", "later"])
        assert len(gaps) == int(is_trimmed)
        assert all(str(first) in gap for gap in gaps)


async def test_a_shard_that_the_stream_forgot_ends_with_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        async with asyncio.timeout(5):
            deliveries = [each async for each in kinesis.reader.read("shardId-000000000099", TRIM_HORIZON)]
        assert len(deliveries) == 1
        assert deliveries[0].is_end
        assert "shardId-000000000099" in (deliveries[0].gap or "")


async def test_a_missing_stream_and_a_foreign_position_need_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, monkeypatch) as kinesis:
        with pytest.raises(Fatal):
            await kinesis.read(TRIM_HORIZON, reader=KinesisReader(kinesis.client, "nowhere", QUICK))
        with pytest.raises(Fatal, match="created anew"):
            await kinesis.read(at("49590338271490256608559692538361571095921575989136588898"))


async def test_while_behind_there_is_no_waiting_and_five_calls_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, monkeypatch, enforce_limits=True) as kinesis:
        await kinesis.put(*(str(number) for number in range(8)))
        slow_at_the_tip = ReadSettings(limit_records=1, tip_wait_ms=60_000, tip_wait_max_ms=60_000, attempts=1)
        reader = KinesisReader(kinesis.client, STREAM, slow_at_the_tip)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        # One try a read: a throttled call would raise.
        found = await kinesis.read(TRIM_HORIZON, least=8, reader=reader)
        assert texts(found) == [str(number) for number in range(8)]
        assert 1.0 <= loop.time() - began_s < 3.0


async def test_throttles_are_waited_out_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path, monkeypatch, enforce_limits=True) as kinesis:
        await kinesis.put("a")
        answer = await kinesis.client.get_shard_iterator(
            StreamName=STREAM, ShardId=SHARD, ShardIteratorType="TRIM_HORIZON"
        )
        for _ in range(5):
            await kinesis.client.get_records(ShardIterator=answer["ShardIterator"], Limit=1)
        code = "ProvisionedThroughputExceededException"
        before = metric("tidegate_reads_retried_total", code=code)
        found = await kinesis.read(TRIM_HORIZON, least=1)
        assert texts(found) == ["a"]
        monkeypatch.setattr(kinesis.client, "get_records", _always_throttled(kinesis.client))
        with pytest.raises(Transient):
            await kinesis.read(TRIM_HORIZON, least=1, reader=KinesisReader(kinesis.client, STREAM, QUICK))
        assert metric("tidegate_reads_retried_total", code=code) >= before + QUICK.attempts


def _always_throttled(client: Any) -> Any:
    async def get_records(**_: object) -> None:
        raise client.exceptions.ProvisionedThroughputExceededException(
            {"Error": {"Code": "ProvisionedThroughputExceededException", "Message": "slow down"}}, "GetRecords"
        )

    return get_records
