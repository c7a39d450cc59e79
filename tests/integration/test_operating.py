"""What an operator does, on a whole deployment: look at it, explain a row, restore the database, look again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.operating_stack import Deployment, deployed
from tests.integration.worker_rows import change
from tests.integration.worker_stack import wait_for

LIVE = "tidegate"
QUICK = ("--watch-s", "1.5")


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path) as made:
        yield made


async def status(deployment: Deployment, database: str, *arguments: str) -> dict[str, Any]:
    """The report, keyed by (section, subject)."""
    said = await deployment.tidegate(database, "status", "--json", *QUICK, *arguments)
    report = json.loads(said.out)
    assert said.code == (0 if report["ok"] else 1)
    return {f"{line['section']} {line['subject']}": line for line in report["lines"]}


async def until_well(deployment: Deployment, database: str) -> None:
    async def is_well() -> bool:
        return all(line["state"] == "ok" for line in (await status(deployment, database)).values())

    await wait_for(is_well, 40)


async def explained(deployment: Deployment, key: str, *arguments: str) -> dict[str, Any]:
    said = await deployment.tidegate(LIVE, "explain", "parcel", key, "--json", *arguments)
    answer: dict[str, Any] = json.loads(said.out)
    assert said.code == (1 if answer["facts"]["unknown"] else 0)
    return answer


async def servers_that_do_not_answer_are_named_one_by_one(deployment: Deployment) -> None:
    nowhere = "postgresql://operator:x@127.0.0.1:9/tidegate"
    said = await deployment.tidegate(LIVE, "status", *QUICK, TIDEGATE_DATABASE_URL=nowhere)
    assert said.code == 1
    wrong = [line for line in said.out.splitlines() if "BREACH" in line]
    assert [line.split()[0] for line in wrong] == ["freshness", "letters", "outbox", "shards", "sources"]
    assert "could not ask how fresh it is: ConnectionRefusedError" in wrong[0]
    assert "there is no table 'operating-leases'" in wrong[3], "no worker has ever run"
    asked = await deployment.tidegate(
        LIVE, "explain", "parcel", "x", TIDEGATE_DATABASE_URL=nowhere, TIDEGATE_STATE_BUCKET=""
    )
    assert asked.code == 1
    assert "not known     database: could not look at parcel: ConnectionRefusedError" in asked.out
    assert "not known     poller: TIDEGATE_STATE_BUCKET is not set" in asked.out


async def a_record_that_cannot_be_handled_is_told(deployment: Deployment) -> None:
    await deployment.stack.put([change("poison", 1, {"number": "poison"}, entity="parcel")])

    async def is_filed() -> bool:
        return await deployment.fetch(LIVE, "SELECT FROM tidegate.dead_letter WHERE resolved_at IS NULL") != []

    await wait_for(is_filed)
    found = await explained(deployment, "poison")
    assert (found["verdict"], found["facts"]["stored"], found["seen_by"]) == ("dead", None, [])
    [letter] = found["facts"]["letters"]
    quick = ("--skip", "shards", "--skip", "sources")
    [wrong] = [line for line in (await status(deployment, LIVE, *quick)).values() if line["section"] == "letters"]
    assert wrong["text"].startswith("1 dead letter of parcel open, decode: ")
    within = await status(deployment, LIVE, *quick, "--max-letters", "1")
    assert within[f"letters {wrong['subject']}"]["state"] == "note"
    assert (await deployment.tidegate(LIVE, "dead-letters", "drop", letter["id"], "--yes")).code == 0


@pytest.mark.timeout(120)
async def test_status_and_explain_say_what_is_so(deployment: Deployment) -> None:
    await servers_that_do_not_answer_are_named_one_by_one(deployment)
    await deployment.start_poller()
    await deployment.start_worker(LIVE)
    await deployment.until_equal(LIVE)
    await until_well(deployment, LIVE)
    rows = await deployment.truth("parcels", "parcel")
    number, row = next(iter(rows.items()))

    shown = await explained(deployment, number, "--ask", "--content")
    assert shown["verdict"] == "applied"
    assert shown["facts"]["observed"][0]["version"] == shown["facts"]["stored"]["version"]
    [asked] = shown["facts"]["at_source"]
    assert (asked["source"], asked["found"], asked["same"], asked["fault"]) == ("parcels", True, True, "")
    assert shown["facts"]["place"]["lag_ms"] < 60_000
    assert f"customer {row['sender']}, by sender (token: username = customer-{row['sender']})" in shown["seen_by"]
    text = await deployment.tidegate(LIVE, "explain", "parcel", number)
    assert text.out.startswith(f"parcel {number}: APPLIED: ")
    assert str(row["sender"]) in text.out, "who may see it is told"
    assert " = " not in text.out.replace("username = ", ""), "content is shown on request only"
    assert (await explained(deployment, "nowhere"))["verdict"] == "unknown"

    await deployment.session.post(f"{deployment.urls['parcels']}/_sim/delete", json={"entity": "parcel", "key": number})
    await deployment.until_equal(LIVE)
    gone = await explained(deployment, number, "--ask")
    assert (gone["verdict"], gone["seen_by"], gone["facts"]["at_source"][0]["found"]) == ("deleted", [], False)

    await a_record_that_cannot_be_handled_is_told(deployment)
    await deployment.kill_poller()
    await deployment.kill_worker()
    lines = await status(deployment, LIVE, "--max-age-s", "0")
    assert {line["state"] for name, line in lines.items() if not name.startswith(("letters", "outbox"))} == {"breach"}
    assert "shows no sign of life" in lines["sources parcels"]["text"]
    assert "more than 0.0 s" in lines["freshness parcels"]["text"]


@pytest.mark.timeout(240)
async def test_the_restore_drill(deployment: Deployment) -> None:
    """Twice: as it is most often, and with shards that ended since, which the restored database knows nothing of."""
    await deployment.start_poller()
    await deployment.start_worker(LIVE)
    await deployment.until_equal(LIVE)

    backed_up_at = await _back_up_and_go_on(deployment, LIVE, "restored")
    to = (backed_up_at - timedelta(seconds=5)).isoformat()
    await _restore(deployment, LIVE, "restored", "rewind", "--all", "--to", to)
    accepted = len(deployment.accepted)

    await _back_up_and_go_on(deployment, "restored", "again", reshard=True)
    assert len(deployment.accepted) > accepted, "what happens after the restore is told"
    await _restore(deployment, "restored", "again", "reset", "--all")
    assert deployment.repeated() == []


async def _back_up_and_go_on(deployment: Deployment, old: str, new: str, *, reshard: bool = False) -> datetime:
    """`new` is `old` as it was in the middle of this: some changes told, others waiting, and more to come."""
    deployment.refusing = True
    await deployment.burst()
    await deployment.until_equal(old)
    lines = await status(deployment, old, "--skip", "shards", "--skip", "sources", "--max-outbox-age-s", "0")
    assert "waiting, the oldest for" in lines["outbox partner"]["text"]
    assert lines["outbox partner"]["state"] == "breach"
    await deployment.stop_worker()
    backed_up_at = datetime.now(UTC)
    await deployment.copy(old, new)
    assert await deployment.fetch(new, "SELECT FROM tidegate.outbox WHERE state = 'waiting'") != []

    deployment.refusing = False
    await deployment.start_worker(old)
    if reshard:
        await deployment.stack.kinesis.update_shard_count(
            StreamName=deployment.stack.stream, TargetShardCount=4, ScalingType="UNIFORM_SCALING"
        )
    await deployment.burst()
    await deployment.until_equal(old)
    await deployment.until_told(old)
    if reshard:
        known = "SELECT shard_id FROM tidegate.shard ORDER BY 1"
        await wait_for(lambda: _differ(deployment, known, old, new))
    return backed_up_at


async def _differ(deployment: Deployment, text: str, old: str, new: str) -> bool:
    return await deployment.fetch(old, text) != await deployment.fetch(new, text)


async def _restore(deployment: Deployment, old: str, new: str, *leases: str) -> None:
    """The chapter of the runbook, step by step."""
    accepted = len(deployment.accepted)
    assert accepted > 0
    await deployment.kill_worker()
    left = deployment.database("operator_login", old)
    carry = ("outbox", "carry-over", "--json")
    dry = (
        await deployment.tidegate(new, *carry, "--dry-run", login="worker_login", TIDEGATE_LEFT_DATABASE_URL=left)
    ).json
    done = (await deployment.tidegate(new, *carry, login="worker_login", TIDEGATE_LEFT_DATABASE_URL=left)).json
    assert done == {**dry, "dry_run": False}
    assert done["added"] > 0
    assert done["settled"] > 0
    assert done["still_waiting"] == 0
    again = (await deployment.tidegate(new, *carry, login="worker_login", TIDEGATE_LEFT_DATABASE_URL=left)).json
    assert (again["added"], again["settled"]) == (0, 0)
    back = await deployment.tidegate(new, "leases", leases[0], *leases[1:], "--watch-s", "1.2")
    assert back.code == 0, back.err
    await deployment.start_worker(new)
    await deployment.until_equal(new)
    await deployment.until_told(new)
    await until_well(deployment, new)
    assert len(deployment.accepted) == accepted, "what was told before the restore is not told again"
