"""`tidegate leases …` over the wire: a lease table on DynamoDB's stand-in, a stream on ours, and live holders."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from local.kinesis.server import serving
from local.kinesis.settings import Clock, Settings
from tests.contract.kinesis_peers import start_ministack
from tests.integration.lease_bench import LEADER, WATCH, Bench
from tidegate import aws
from tidegate.cli.leases_plan import Write, normal
from tidegate.cli.leases_table import LeaseTable
from tidegate.leases import SHARD_END, DynamoLeaseStore, Lease, at, plain_leases
from tidegate.leases.items import item_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dynamodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_ministack(tmp_path_factory.mktemp("tools"))
    yield server.url
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(dynamodb_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    # What a person must wait for in life, a clock of our own passes here.
    now_ms = [1_700_000_000_000]
    settings = Settings(tmp_path_factory.mktemp("kinesis"), port=0)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }.items():
            environment.setenv(name, value)
        async with serving(settings, Clock(now_ms=lambda: now_ms[0])) as kinesis_url:
            environment.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
            async with aws.client("dynamodb") as dynamodb, aws.client("kinesis") as kinesis:
                yield {"dynamodb": dynamodb, "kinesis": kinesis, "clock": now_ms}


@pytest_asyncio.fixture(loop_scope="module")
async def bench(
    servers: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    name = f"t{uuid4().hex[:8]}"
    made = Bench(**servers, capsys=capsys, table=f"{name}-leases", stream=name)
    await made.store.ensure_table()
    monkeypatch.setenv("TIDEGATE_LEASE_TABLE", made.table)
    monkeypatch.setenv("TIDEGATE_STREAM", made.stream)
    yield made


# ---------------------------------------------------------------- list, show


async def test_list_tells_the_living_from_the_dead(bench: Bench) -> None:
    await bench.put(Lease(key="still", owner="gone", counter=9, checkpoint=at("77", 2)), Lease(key="free"), LEADER)
    async with bench.holder("busy"):
        answer = await bench.run("list", "--json", *WATCH)
        shown = await bench.run("list", *WATCH)
    assert answer.code == 0
    rows = {row["key"]: row for row in answer.json["leases"]}
    assert {key: row["live"] for key, row in rows.items()} == {"busy": True, "still": False, "free": None}
    assert rows["busy"]["age_s"] < rows["still"]["age_s"]
    assert rows["still"]["age_s"] >= 1.2
    assert rows["still"]["age_is_least"]
    assert (rows["still"]["checkpoint"], rows["still"]["sub_sequence"]) == ("77", 2)
    assert answer.json["other_items"] == {"Leader": "LEADER"}
    assert "3 leases: 0 finished, 1 free, 1 without a sign of life" in shown.out
    assert shown.err == "", "progress is for terminals"


async def test_an_empty_table_and_one_look_are_quick_and_clear(bench: Bench) -> None:
    assert "0 leases: 0 finished" in (await bench.run("list")).out
    await bench.put(Lease(key="still", owner="gone"))
    [row] = (await bench.run("list", "--json", "--watch-s", "0")).json["leases"]
    assert (row["live"], row["age_s"]) == (None, None)


async def test_show_gives_an_item_whole(bench: Bench) -> None:
    await bench.put(Lease(key="a", owner="w1", checkpoint=at("5")), LEADER)
    answer = await bench.run("show", "Leader", "a", "--json")
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert lines == [LEADER, normal(item_of(Lease(key="a", owner="w1", checkpoint=at("5"))))]
    assert "leaseOwner" in (await bench.run("show", "a")).out
    assert (await bench.run("show", "b")).code == 1


# ---------------------------------------------------------------- who may be disturbed


async def test_a_live_lease_is_not_touched_without_force(bench: Bench) -> None:
    await bench.put(Lease(key="dead", owner="gone", checkpoint=at("5")))
    async with bench.holder("busy") as [hold]:
        answer = await bench.run("release", "--all", *WATCH)
        assert answer.code == 1
        assert answer.err.startswith(
            "tidegate: nothing was written: 1 leases are held by live workers (busy by holder)"
        )
        assert (await bench.leases())["dead"].owner == "gone"
        assert hold.is_valid()

        forced = await bench.run("release", "busy", "--force")
        assert (forced.code, forced.out) == (0, "wrote busy: given up by holder\n")
        await asyncio.wait_for(hold.lost.wait(), 5)
    assert (await bench.run("release", "--owner", "gone", "--watch-s", "0.1")).code == 0
    assert (await bench.leases())["dead"].owner is None


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(bench: Bench) -> None:
    await bench.put(Lease(key="a", owner="gone", checkpoint=at("5")), Lease(key="b"), LEADER)
    before = await bench.items()
    for verb in (["release"], ["reset"], ["rewind", "--to", "TRIM_HORIZON"]):
        answer = await bench.run(*verb, "--all", "--dry-run", "--force")
        assert answer.code == 0
        assert "would write a: " in answer.out
    assert await bench.items() == before


async def test_what_changes_at_the_same_moment_is_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the lease between our look and our write."""
    await bench.put(Lease(key="a", owner="gone", checkpoint=at("5")))
    write, store = LeaseTable.write, bench.store
    stolen: list[Lease] = []

    async def steal() -> None:
        [lease] = await store.scan()
        taken = await store.take(lease, "quicker")
        assert taken is not None
        stolen.append(taken)

    async def overtaken(table: LeaseTable, what: Write) -> bool:
        if not stolen:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(steal(), loop))
        return await write(table, what)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(LeaseTable, "write", overtaken)
    answer = await bench.run("rewind", "--all", "--to", "TRIM_HORIZON", "--watch-s", "0.1")
    assert answer.code == 1
    assert answer.err == "not written a: it changed at the same moment; look at it and try again\n"
    assert (await bench.leases())["a"] == stolen[0]
    stolen.clear()
    assert (await bench.run("rewind", "--all", "--to", "TRIM_HORIZON", "--force")).code == 0, "force tries again"
    assert (await bench.leases())["a"].owner is None


# ---------------------------------------------------------------- reset


async def test_a_reset_leaves_no_lease_behind(bench: Bench) -> None:
    await bench.put(Lease(key="one", owner="gone", counter=50, checkpoint=at("5"), epoch=9), LEADER)
    answer = await bench.run("reset", "--all", "--force")
    assert answer.code == 0
    assert "wrote one: removed, was at 5" in answer.out
    assert "DELETE FROM tidegate.shard" in answer.out
    assert await bench.items() == {"Leader": LEADER}, "so that discovery finds no lease, and makes it"


async def test_handed_back_the_table_holds_free_leases_and_nothing_of_ours(bench: Bench) -> None:
    own = {"leaseKey": {"S": "tidegate#stream"}, "entityType": {"S": "TIDEGATE_STREAM"}}
    await bench.put(Lease(key="a", owner="gone", counter=3, checkpoint=at("5", 2)), LEADER, own)
    answer = await bench.run("hand-back", "--force")
    assert (answer.code, answer.out.splitlines()) == (
        0, ["wrote a: given up by gone", "wrote tidegate#stream: removed, it is tidegate's own"],
    )  # fmt: skip
    assert await bench.items() == {"Leader": LEADER, "a": item_of(Lease(key="a", counter=4, checkpoint=at("5", 2)))}


async def test_another_region_has_other_tables(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert "there is no table" in (await bench.run("list", "--region", "eu-central-1")).err
    assert os.environ["AWS_REGION"] == "eu-central-1", "as every client of the process reads it"


async def test_the_pollers_leases_are_served_by_their_own_variable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_POLLER_LEASE_TABLE", bench.table)
    monkeypatch.delenv("TIDEGATE_LEASE_TABLE")
    await bench.put(*plain_leases(["parcels"], epoch=1_700_000_000))
    assert (await bench.run("list", "--poller", "--json", "--watch-s", "0")).json["leases"][0]["key"] == "parcels"
    refused = await bench.run("rewind", "--poller", "--all", "--to", "TRIM_HORIZON")
    assert refused.code == 1
    assert "TIDEGATE_REPUBLISH" in refused.err
    assert (await bench.run("reset", "--poller", "parcels")).out == "wrote parcels: removed, was at TRIM_HORIZON\n"


# ---------------------------------------------------------------- rewind by time


async def _records(bench: Bench, *texts: str) -> list[str]:
    """Put one after the other, an hour apart; their sequence numbers."""
    numbers = []
    for each in texts:
        bench.clock[0] += 3_600_000
        put = await bench.kinesis.put_record(StreamName=bench.stream, Data=each.encode(), PartitionKey="k")
        numbers.append(put["SequenceNumber"])
    return numbers


async def _stream(bench: Bench) -> str:
    await bench.kinesis.create_stream(StreamName=bench.stream, ShardCount=1)
    [shard] = (await bench.kinesis.list_shards(StreamName=bench.stream))["Shards"]
    return str(shard["ShardId"])


async def test_a_time_becomes_the_place_right_before_the_first_record_since(bench: Bench) -> None:
    key = await _stream(bench)
    numbers = await _records(bench, "one", "two", "three")
    await bench.put(Lease(key=key, checkpoint=at(numbers[2])))
    second = datetime.fromtimestamp(bench.clock[0] / 1000 - 3600, UTC)
    for asked, first_read in ((second, 1), (second + timedelta(minutes=1), 2), (second - timedelta(days=3), 0)):
        answer = await bench.run("rewind", key, "--to", asked.isoformat(), "--force")
        assert answer.code == 0, answer.err
        assert (await bench.leases())[key].checkpoint == at(numbers[first_read], -1)
        await bench.put(Lease(key=key, checkpoint=at(numbers[2])))
    bench.clock[0] += 7_200_000
    later = await bench.run("rewind", key, "--to", (second + timedelta(hours=2)).isoformat())
    assert later.out == f"left {key}: its shard has no record that is so young\n"


async def test_lag_is_asked_of_the_stream(bench: Bench) -> None:
    key = await _stream(bench)
    numbers = await _records(bench, "one", "two", "three")
    await bench.put(Lease(key=key, checkpoint=at(numbers[2])), Lease(key="elsewhere", checkpoint=at("5")))
    rows = (await bench.run("list", "--lag", "--json", "--watch-s", "0")).json["leases"]
    assert {row["key"]: row["lag_ms"] for row in rows} == {key: 0, "elsewhere": None}
    await bench.put(Lease(key=key, checkpoint=at(numbers[0])))
    bench.clock[0] += 3_600_000
    rows = (await bench.run("list", "--lag", "--json", "--watch-s", "0")).json["leases"]
    assert {row["key"]: row["lag_ms"] for row in rows}[key] >= 3_600_000


async def test_a_split_shard_is_rewound_with_its_children(bench: Bench) -> None:
    parent = await _stream(bench)
    numbers = await _records(bench, "one", "two")
    middle = str(1 << 127)
    await bench.kinesis.split_shard(StreamName=bench.stream, ShardToSplit=parent, NewStartingHashKey=middle)
    await _records(bench, "three")
    children = sorted(
        shard["ShardId"] for shard in (await bench.kinesis.list_shards(StreamName=bench.stream))["Shards"]
    )
    children.remove(parent)
    await bench.put(
        Lease(key=parent, checkpoint=SHARD_END, child_keys=frozenset(children)),
        *(Lease(key=child, checkpoint=at("1" * 56), parent_keys=frozenset({parent})) for child in children),
    )
    refused = await bench.run("rewind", parent, "--to", "TRIM_HORIZON")
    assert refused.code == 1
    assert "Name the children too" in refused.err
    since_two = datetime.fromtimestamp(bench.clock[0] / 1000 - 3600, UTC).isoformat()
    done = await bench.run("rewind", "--all", "--to", since_two, "--forward")
    assert done.code == 0
    named = ", ".join(f"'{key}'" for key in sorted([parent, *children]))
    assert f"DELETE FROM tidegate.shard WHERE stream = '…' AND shard_id IN ({named});" in done.err
    leases = await bench.leases()
    assert str(leases[parent].checkpoint) == "TRIM_HORIZON"
    assert {leases[child].checkpoint.sub_sequence for child in children} == {0, -1}, "one child has a record since"
    assert int(numbers[1]) < max(int(leases[child].checkpoint.position) for child in children)


# ---------------------------------------------------------------- export, import

STRANGE = {
    **item_of(Lease(key="s-1", owner="w1", counter=12, checkpoint=at("495", 3), parent_keys=frozenset({"s-0", "x"}))),
    "entityType": {"S": "LEASE"}, "throughputKBps": {"N": "12.5"}, "pendingCheckpoint": {"S": "500"},
    "pendingCheckpointState": {"B": b"\x00\xffstate"}, "later": {"L": [{"NULL": True}, {"M": {"a": {"BS": [b"1"]}}}]},
}  # fmt: skip


async def test_what_was_exported_comes_back_item_by_item(bench: Bench, tmp_path: Path) -> None:
    await bench.put(STRANGE, Lease(key="s-0", checkpoint=SHARD_END), LEADER)
    before = await bench.items()
    path = tmp_path / "leases.jsonl"
    assert (await bench.run("export", "--file", str(path))).out == f"wrote 3 items to {path}\n"
    assert (await bench.run("export")).out == path.read_text()
    other = f"{bench.table}-other"
    await DynamoLeaseStore(bench.dynamodb, other).ensure_table()
    assert (await bench.run("import", str(path), "--table", other)).code == 0
    assert await bench.items(other) == before
    again = await bench.run("import", str(path), "--table", other)
    assert again.out == "".join(f"left {key}: is the same\n" for key in ("Leader", "s-0", "s-1"))


async def test_import_shows_differences_and_spares_the_living(bench: Bench, tmp_path: Path) -> None:
    await bench.put(STRANGE)
    path = tmp_path / "leases.jsonl"
    await bench.run("export", "--file", str(path))
    later = {
        **STRANGE,
        "checkpoint": {"S": "900"},
        "leaseCounter": {"N": "40"},
        "newer": {"N": "1"},
        "leaseOwner": {"S": "x"},
    }
    await bench.put(later)
    dry = await bench.run("import", str(path), "--dry-run", *WATCH)
    assert dry.out == "would write s-1: checkpoint: 900 → 495\n"
    assert await bench.items() == {"s-1": normal(later)}
    assert (await bench.run("import", str(path), *WATCH)).code == 0
    restored = {**STRANGE, "newer": {"N": "1"}, "leaseCounter": {"N": "41"}}
    del restored["leaseOwner"]
    assert await bench.items() == {"s-1": normal(restored)}

    async with bench.holder("s-1") as [hold]:
        await hold.checkpoint(at("950"))
        refused = await bench.run("import", str(path), *WATCH)
        assert refused.code == 1
        assert "held by live workers (s-1 by holder)" in refused.err
        assert (await bench.leases())["s-1"].checkpoint == at("950")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list", "--table", "nowhere"], "there is no table 'nowhere' in this account and region"),
        (["release", "x"], "there is no lease 'x' in the table"),
        (["release", "--owner", "x"], "no lease is in the hands of 'x'"),
        (["rewind", "a", "--to", "2025-01-01T00:00:00Z", "--stream", "nowhere"], "there is no stream 'nowhere'"),
        (["rewind", "a", "--to", "2025-01-01T00:00:00Z", "--stream", "arn:x"], "STREAM is neither a name nor"),
        (["import", "nowhere.jsonl"], "could not read nowhere.jsonl"),
    ],
)
async def test_a_mistake_is_one_clear_line(bench: Bench, arguments: list[str], text: str) -> None:
    await bench.put(Lease(key="a"))
    answer = await bench.run(*arguments)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("tidegate: ")
    assert text in answer.err
    assert answer.err.count("\n") == 1


async def test_a_table_that_is_no_lease_table_is_named(bench: Bench) -> None:
    name = f"{bench.table}-foreign"
    await bench.dynamodb.create_table(
        TableName=name, BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )  # fmt: skip
    await bench.dynamodb.put_item(TableName=name, Item={"id": {"S": "1"}})
    assert "is no lease table" in (await bench.run("list", "--table", name)).err


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"AWS_REGION": ""}, "You must specify a region"),
        ({"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1"}, "Could not connect to the endpoint URL"),
        ({"TIDEGATE_LEASE_TABLE": ""}, "no lease table named; pass --table NAME or set TIDEGATE_LEASE_TABLE"),
        ({"TIDEGATE_LEASES_EXPIRY_S": "soon"}, "TIDEGATE_LEASES_EXPIRY_S is 'soon', expected a number"),
    ],
)
async def test_a_missing_surrounding_is_one_clear_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], text: str
) -> None:
    for name, value in (changed | {"TIDEGATE_AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    answer = await bench.run("list")
    assert (answer.code, answer.out) == (1, "")
    assert text in answer.err
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("tidegate: ")


async def test_missing_credentials_are_one_clear_line(bench: Bench) -> None:
    """In a process of its own: they are looked for once in a process."""
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}
    environment = {name: value for name, value in os.environ.items() if "_KEY" not in name} | nowhere
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidegate.cli", "leases", "list",
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = (part.decode() for part in await process.communicate())
    assert (process.returncode, out) == (1, "")
    assert err.startswith("tidegate: ")
    assert "Unable to locate credentials" in err
    assert err.count("\n") == 1
