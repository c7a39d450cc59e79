"""Whole fleets on virtual time: the invariants hold, faults are truly injected, and a broken fence is caught."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
from msgspec.structs import force_setattr, replace

from local.fleet import command
from local.fleet.faults import Faults
from local.fleet.report import Report
from local.fleet.simulation import Plan, simulate
from local.fleet.table import Table
from tidegate.cli import main
from tidegate.errors import Fatal
from tidegate.leases import TRIM_HORIZON, Coordinator, Lease
from tidegate.settings import LeaseSettings

# Small fleets see more trouble in a short time than large ones do in an hour.
ROUGH = Faults(short_per_worker_hour=60.0, long_per_worker_hour=12.0, throttle_every_s=15.0)
KINDS = {
    "late_reply",
    "late_request",
    "long_cut",
    "long_stall",
    "lost_reply",
    "lost_request",
    "short_cut",
    "short_stall",
    "throttled",
}


# The weather of the command line.
USUAL = Faults()
NONE = Faults(
    lost_request=0,
    lost_reply=0,
    late_request=0,
    late_reply=0,
    throttle_every_s=1e9,
    short_per_worker_hour=0,
    long_per_worker_hour=0,
)


def small(seed: int, *, shards: int = 24, workers: int = 5, minutes: float = 3.0, faults: Faults = USUAL) -> Report:
    return simulate(Plan(shards=shards, workers=workers, seed=seed, minutes=minutes, faults=faults))


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(("shards", "workers"), [(24, 5), (7, 7), (60, 3), (3, 4)])
def test_whatever_happens_every_lease_has_one_believer(shards: int, workers: int, seed: int) -> None:
    report = small(seed, shards=shards, workers=workers, faults=ROUGH)
    assert report.two_believers == 0, report.failures
    assert report.checkpoints_back == 0, report.failures
    assert (report.unowned, report.left_held) == (0, 0)
    assert report.takeover_s.max <= 25, "an expiry, a look at the table, and a little for the weather"


@pytest.mark.parametrize("seed", range(1, 5))
def test_nothing_moves_without_a_reason(seed: int) -> None:
    report = small(seed, shards=100, workers=8)
    assert (report.moves_after_converged, report.moves_after_kill) == (0, 0), report.failures
    assert report.is_sound
    assert report.forced_moves > 0, "long stalls and cuts cost leases"


def test_all_kinds_of_faults_occur() -> None:
    assert set(small(1, shards=100, workers=8, faults=ROUGH).faults) == KINDS


def test_without_faults_there_is_nothing_to_force() -> None:
    report = small(1, faults=NONE)
    assert (report.faults, report.forced_moves, report.moves_after_converged) == ({}, 0, 0)


# ---------------------------------------------------------------- what must be caught


def test_two_believers_are_caught_where_the_patience_exceeds_the_expiry() -> None:
    settings = LeaseSettings()
    force_setattr(settings, "patience_s", 3 * settings.expiry_s)  # its own check forbids this
    report = simulate(Plan(shards=24, workers=5, seed=1, minutes=3.0, faults=ROUGH, settings=settings))
    assert report.two_believers > 0
    assert not report.is_sound
    assert any("both work on" in failure for failure in report.failures)


def test_a_checkpoint_that_falls_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = Table.swap

    def forgetful(table: Table, before: Lease, after: Lease) -> Lease:
        return swap(table, before, replace(after, checkpoint=TRIM_HORIZON) if after.counter == 20 else after)

    monkeypatch.setattr(Table, "swap", forgetful)
    report = small(1)
    assert report.checkpoints_back > 0
    assert not report.is_sound
    assert any("the checkpoint fell" in failure for failure in report.failures)


def test_a_process_that_crashes_ends_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(coordinator: Coordinator, stop: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Coordinator, "run", run)
    with pytest.raises(Fatal, match=r"seed 1: worker-.* ended"):
        small(1)


# ---------------------------------------------------------------- same seed, same result


def figures(text: str) -> dict[str, object]:
    """All but the real time."""
    report: dict[str, object] = msgspec.json.decode(text)
    del report["real_s"]
    return report


def run_with_hash_seed(hash_seed: str) -> dict[str, object]:
    arguments = ("--shards", "40", "--workers", "6", "--seed", "3", "--minutes", "2", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "tidegate.cli", "simulate", "leases", *arguments],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return figures(done.stdout)


def test_the_same_seed_gives_the_same_result_whatever_the_order_of_sets() -> None:
    assert run_with_hash_seed("1") == run_with_hash_seed("2")


def test_another_seed_gives_another_result() -> None:
    one, other = small(1), small(2)
    assert replace(one, seed=0, real_s=0) != replace(other, seed=0, real_s=0)


# ---------------------------------------------------------------- the command


def test_people_get_lines_and_progress_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "leases", "--shards", "12", "--workers", "3", "--minutes", "1"]) == 0
    out, err = capsys.readouterr()
    assert "12 leases, 3 workers, seed 1" in out
    assert "two believers          0" in out
    assert "converged after" in err


def test_an_unsound_run_exits_with_1_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(small(1, minutes=0.5), two_believers=3, failures=("1.000 s: a and b",))
    monkeypatch.setattr(command, "simulate", lambda plan, say: broken)
    assert main(["simulate", "leases"]) == 1
    assert "1.000 s: a and b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("leases", "--workers", "1"), "--workers"),
        (("leases", "--shards", "0"), "--shards"),
        (("leases", "--shards", "many"), "whole number"),
        (("leases", "--minutes", "nan"), "--minutes"),
        (("leases", "--minutes", "0"), "--minutes"),
        (("leases", "--sharks", "5"), "unrecognized"),
        (("shards",), "invalid choice"),
        ((), "WHAT"),
    ],
)
def test_a_wrong_flag_is_named_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, complaint in err) == ("", True), err
