"""The embedded stack as a whole: the unattended demo of both samples, and an end without warning."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


async def demo(*arguments: str, data: Path) -> Process:
    argv = [sys.executable, "-m", "local.demo", *arguments, "--data", str(data)]
    return await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE, stdin=DEVNULL, cwd=ROOT)


@pytest.mark.timeout(240)
async def test_the_unattended_demo_with_kills_ends_equal(tmp_path: Path) -> None:
    process = await demo("--once", "--chaos", "--json", data=tmp_path)
    output, progress = await process.communicate()
    assert process.returncode == 0, progress.decode()
    report = json.loads(output)
    assert (report["missing"], report["stale"], report["ghosts"]) == (0, 0, 0)
    assert report["api_mismatches"] == []
    assert report["rows_back_office"] == report["rows_front_office"] >= 5000
    assert report["deletions"] >= 200
    assert report["freshness_ms"]["samples"] > 20
    assert report["chaos"]["poller"] == 1
    assert report["chaos"]["api"] >= 1
    assert_no_secret_in_logs(tmp_path / "parcels")


@pytest.mark.timeout(240)
async def test_the_unattended_demo_on_real_data_ends_equal(tmp_path: Path) -> None:
    process = await demo("--bubble", "flights", "--once", "--json", data=tmp_path)
    output, progress = await process.communicate()
    assert process.returncode == 0, progress.decode()
    report = json.loads(output)
    assert (report["missing"], report["stale"], report["ghosts"]) == (0, 0, 0)
    assert report["api_mismatches"] == []
    assert report["rows_back_office"] == report["rows_front_office"] >= 5000
    assert report["deletions"] >= 200


async def test_nothing_is_left_behind_by_a_kill_and_the_next_start_works(tmp_path: Path) -> None:
    first = await demo(data=tmp_path)
    await welcomed(first)
    children = children_of(first.pid)
    assert len(children) >= 7
    first.kill()
    await first.wait()
    deadline = asyncio.get_running_loop().time() + 20
    while survivors := [command_of(child) for child in children if is_alive(child)]:
        assert asyncio.get_running_loop().time() < deadline, f"programs outlive the demo: {survivors}"
        await asyncio.sleep(0.1)
    assert not (tmp_path / "parcels" / "in-order").exists()
    second = await demo(data=tmp_path)
    await welcomed(second)
    second.terminate()
    await second.communicate()
    assert second.returncode == 0
    assert (tmp_path / "parcels" / "in-order").exists()


async def test_two_demos_on_one_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    first = await demo("--bubble", "parcels", data=tmp_path)
    try:
        while not (tmp_path / "parcels" / "logs").exists():
            assert first.returncode is None
            await asyncio.sleep(0.02)
        second = await demo(data=tmp_path)
        _, errors = await second.communicate()
        assert second.returncode == 1
        assert errors.decode().startswith("tidegate: ")
        assert "in use by another demo" in errors.decode()
    finally:
        first.terminate()
        await first.communicate()


async def welcomed(process: Process) -> None:
    """Until the addresses are printed; what was printed before is on standard error."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"Ctrl-C stops" not in (line := await process.stdout.readline()):
            assert line or process.returncode is None, "the demo ended while starting"


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[-80:]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def assert_no_secret_in_logs(folder: Path) -> None:
    secrets = list(json.loads((folder / "secrets.json").read_text()).values())
    secrets.append((folder / "front" / "postgres" / "password").read_text())
    for log in (folder / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), f"{log.name} holds a secret"
    assert (folder / "secrets.json").stat().st_mode & 0o077 == 0
