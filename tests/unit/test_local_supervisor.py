"""The supervisor with real, tiny children: readiness, restart, order of stopping, nothing left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local.supervisor import Program, StartFailed, Supervisor, ending, line_ready

_ENV = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


def python(name: str, code: str, log: Path, **options: object) -> Program:
    ready = line_ready(log / f"{name}.log", "ready")
    return Program(name, [sys.executable, "-c", code], env=_ENV, ready=ready, **options)  # type: ignore[arg-type]


SLEEPER = "import time; print('ready'); time.sleep(60)"


async def run(logs: Path, program: Program) -> None:
    """Start the program and stay until the supervisor gives up."""
    async with Supervisor(logs, print) as supervisor:
        await supervisor.start(program)
        await asyncio.Event().wait()


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose parent is not ours is dead enough.
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


async def test_a_killed_child_is_restarted_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    async with Supervisor(tmp_path, said.append) as supervisor:
        child = await supervisor.start(python("sleeper", SLEEPER, tmp_path))
        first = child.pid
        child.kill()
        await until(lambda: child.restarts == 1 and child.pid != first and child.exit_code is None)
        assert "SIGKILL" in said[0]
        second = child.pid
    assert not alive(first)
    assert not alive(second)


async def test_a_child_that_ends_before_it_is_ready_shows_its_last_lines(tmp_path: Path) -> None:
    program = python("broken", "print('the reason'); raise SystemExit(3)", tmp_path)
    with pytest.raises(StartFailed, match=r"could not start broken: it ended with code 3; see .*broken.log\n.*reason"):
        await run(tmp_path, program)


async def test_a_child_that_is_never_ready_is_said_and_stopped(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(StartFailed, match="not ready within 1 s"):
        await run(tmp_path, python("silent", code, tmp_path, ready_s=1.0))
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open({order!r}, 'a').write({name!r}); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready'); time.sleep(60)"
    )
    async with Supervisor(tmp_path, print) as supervisor:
        for name in "abc":
            await supervisor.start(python(name, code.format(order=str(order), name=name), tmp_path))
    assert order.read_text() == "cba"


async def test_a_deaf_child_and_its_own_child_are_killed(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(grandchild.pid); print('ready'); time.sleep(60)"
    )
    async with Supervisor(tmp_path, print) as supervisor:
        child = await supervisor.start(python("deaf", code, tmp_path, stop_s=0.3))
        grandchild = int((tmp_path / "deaf.log").read_text().split()[0])
        assert alive(grandchild)
    assert child.exit_code == -signal.SIGKILL
    await until(lambda: not alive(grandchild))


async def test_a_child_that_keeps_dying_ends_the_stack(tmp_path: Path) -> None:
    program = python("dying", "import time; print('ready'); time.sleep(0.3); exit(4)", tmp_path, restarts_most=1)
    with pytest.raises(StartFailed, match="ended 2 times in a row, last with code 4"):
        await run(tmp_path, program)


async def test_an_essential_child_is_not_restarted(tmp_path: Path) -> None:
    program = python("essential", "import time; print('ready'); time.sleep(0.3)", tmp_path, restart=False)
    with pytest.raises(StartFailed, match="cannot come back alone"):
        await run(tmp_path, program)


@pytest.mark.parametrize(("code", "words"), [(0, "code 0"), (1, "code 1"), (-9, "SIGKILL"), (-15, "SIGTERM")])
def test_endings_in_words(code: int, words: str) -> None:
    assert ending(code) == words


async def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: nobody is left to stop them."""
    parent = (
        "import asyncio, pathlib, os\n"
        "from local.supervisor import Program, Supervisor, line_ready\n"
        "import sys\n"
        f"logs = pathlib.Path({str(tmp_path)!r})\n"
        "async def main():\n"
        "    async with Supervisor(logs, print) as supervisor:\n"
        f"        program = Program('child', [sys.executable, '-uc', {SLEEPER!r}], env=dict(os.environ),\n"
        "                          ready=line_ready(logs / 'child.log', 'ready'))\n"
        "        print((await supervisor.start(program)).pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    child = int(await asyncio.wait_for(process.stdout.readline(), 10))
    assert alive(child)
    process.kill()
    await process.wait()
    await until(lambda: not alive(child))
