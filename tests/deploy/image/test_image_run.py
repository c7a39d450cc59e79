"""The image, built from the lock and run as in production: no root, no capabilities, nothing to write to but /tmp.

Where there is no engine this is told as skipped; `make image` fails there. The first build takes a minute or two, for it makes
the base as well; IMAGE_STORE or .data/image keeps it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.deploy.image.engine import ROOT, Engine, why_not

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def engine() -> Engine:
    asked = os.environ.get("IMAGE_STORE")
    if why := why_not():
        assert not asked, why
        pytest.skip(f"NO ENGINE: the image was not built and not run; {why}")
    folder = Path(asked or ROOT / ".data" / "image").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    made = Engine(folder)
    made.build()
    return made


def test_every_program_starts_and_says_what_it_needs(engine: Engine) -> None:
    assert re.match(r"tidegate \d", engine.run("tidegate.cli", "--version").stdout)
    for program in ("poller", "worker"):
        done = engine.run(program)
        assert done.returncode == 1, done.stderr
        assert "TIDEGATE_STREAM is missing" in done.stdout + done.stderr
    assert engine.run("-c", "import api.handler", options=("--entrypoint=python",)).returncode == 0


def test_it_may_do_nothing(engine: Engine) -> None:
    status = engine.run("/proc/self/status", options=("--entrypoint=cat",)).stdout
    assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert "Read-only file system" in engine.run("/opt/app/x", options=("--entrypoint=touch",)).stderr
    assert engine.run("/tmp/x", options=("--entrypoint=touch",)).returncode == 0
    owned = engine.run("/opt", "!", "-user", "0", options=("--entrypoint=find",))
    assert owned.stdout == ""


def test_it_says_what_is_in_it(engine: Engine) -> None:
    bill = json.loads(engine.run("/opt/app/sbom.cdx.json", options=("--entrypoint=cat",)).stdout)
    script = "import importlib.metadata as m; print(*(d.name + '==' + d.version for d in m.distributions()))"
    listed = engine.run("-c", script, options=("--entrypoint=python",)).stdout.split()
    installed = {re.sub(r"[-_.]+", "-", each).lower() for each in listed}
    known = {f"{each['name']}=={each['version']}".replace(".", "-").replace("_", "-") for each in bill["components"]}
    assert installed - {each for each in installed if each.startswith("setuptools")} <= known


AGAIN = """
python -m compileall -q --invalidation-mode unchecked-hash /opt/app
cd /tmp/again/opt/app
find . -name '*.pyc' | while read -r made; do
  cmp "$made" "/opt/app/$(dirname "$made")/__pycache__/$(basename "$made")" || exit 1
  echo "$made"
done
"""


def test_its_bytecode_is_what_its_sources_make_again(engine: Engine) -> None:
    """So that it is the same when it is built twice: all else comes from the lock and from the sources, at time 0."""
    timed = "import pathlib; print(*(f for f in pathlib.Path('/opt').rglob('*.pyc') if f.read_bytes()[4:8] != b'\\1\\0\\0\\0'))"
    assert engine.run("-c", timed, options=("--entrypoint=python",)).stdout == "\n", (
        "bytecode with the time of the build in it"
    )
    variables = {"PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": "/tmp/again"}
    options = ["--entrypoint=sh", *(f"--env={name}={value}" for name, value in variables.items())]
    done = engine.run("-ec", AGAIN, options=options)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 150


async def test_sigterm_ends_it_in_order_as_the_first_process(engine: Engine) -> None:
    """The worker waits for a database and tables that are not there; that is reason enough to drain nothing."""
    variables = {
        "TIDEGATE_STREAM": "s", "TIDEGATE_BUBBLE": "bubble", "TIDEGATE_LEASE_TABLE": "t", "AWS_REGION": "eu-central-1",
        "TIDEGATE_DATABASE_URL": "postgresql://worker:x@127.0.0.1:9/tidegate", "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "TIDEGATE_HEALTH_PORT": "0",
    }  # fmt: skip
    script = (
        "import pathlib; pathlib.Path('/tmp/bubble.py').write_text("
        "'from tidegate.bubble import Bubble\\nbubble = Bubble(name=\"b\", entities=(), sources=())'); "
        "import os, sys; os.execv(sys.executable, ['python', '-m', 'worker'])"
    )
    options = ["--entrypoint=python", "--env=PYTHONPATH=/opt/app:/tmp"]
    options += [f"--env={name}={value}" for name, value in variables.items()]
    argv = engine.command("-c", script, options=options)
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(120):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if "worker_waits" in line:
                process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0, "".join(lines)
    assert '"exit_code": 0' in lines[-1]
