"""release.sh, verify.sh and deploy.sh, with an `aws` and a `tidegate` that write down how they were called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.ecs.templates import TEMPLATES, load, resources

NEW, OLD = f"acme/parcels@sha256:{'1' * 64}", f"acme/parcels@sha256:{'2' * 64}"
# Each is called with its own name first; what it answers is told by the environment.
FAKE = """\
#!{python}
import os, sys
name = os.path.basename(sys.argv[0])
words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    print(name, *words, file=calls)
line = " ".join(words)
if name == "sleep":
    raise SystemExit(0)
if os.environ.get("FAILS") and os.environ["FAILS"] in name + " " + line:
    raise SystemExit(1)
if "describe-stacks" in words and os.environ.get("BEFORE"):
    known = {{"Image": "{old}", "ReadsPackage": "reads/old.zip", "LiveVersion": "6"}}
    print(next(value for key, value in known.items() if f"'{{key}}'" in line))
elif "describe-stacks" in words:
    raise SystemExit(254)
elif "publish-version" in words:
    print("7")
elif "describe-alarms" in words:
    print(os.environ.get("RINGING", ""))
"""


class Desk:
    """A folder with the fakes, the settings and what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.settings = folder / "production.conf"
        self.settings.write_text((TEMPLATES / "project" / "production.conf").read_text(encoding="utf-8"))
        for name in ("aws", "tidegate", "sleep"):
            file = folder / name
            file.write_text(FAKE.format(python=sys.executable, old=OLD))
            file.chmod(0o755)

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        return subprocess.run(
            ["bash", str(TEMPLATES / script), str(self.settings), *words],
            check=False, capture_output=True, text=True,
            env={"PATH": f"{self.folder}:{os.environ['PATH']}", "CALLS": str(self.calls), **environment},
        )  # fmt: skip

    def said(self, *words: str) -> list[str]:
        """The calls that have all of the words."""
        return [call for call in self.calls.read_text().splitlines() if all(word in call for word in words)]

    def steps(self) -> list[str]:
        """Stacks that were deployed and verbs that were run, in order."""
        steps = []
        for call in self.calls.read_text().splitlines():
            words = call.split()
            if "deploy" in words:
                steps.append(words[words.index("--stack-name") + 1].removeprefix("parcels-"))
            elif words[0] == "tidegate":
                steps.append(words[words.index("--") + 1])
            elif "publish-version" in words:
                steps.append("publish")
        return steps


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_first_release(desk: Desk) -> None:
    answer = desk.run("release.sh", NEW, "2", "ReadsPackage=reads/new.zip")
    assert answer.returncode == 0, answer.stderr
    assert desk.steps() == ["ops", "migrate", "logins", "services", "api", "publish", "status", "api"]
    (first, last) = desk.said("deploy", "parcels-api")
    assert "LiveVersion=$LATEST" in first
    assert "LiveVersion=7" in last
    assert len(desk.said("describe-alarms")) == 2, "looked at once a minute"


def test_a_later_release_is_a_canary_first(desk: Desk) -> None:
    answer = desk.run("release.sh", NEW, "1", "ReadsPackage=reads/new.zip", BEFORE="1")
    assert answer.returncode == 0, answer.stderr
    asked = desk.said("deploy", "parcels-api")
    found = [[word for word in call.split() if "Version=" in word] for call in asked]
    assert found == [
        ["LiveVersion=6", "CanaryVersion="],
        ["LiveVersion=6", "CanaryVersion=7"],
        ["LiveVersion=7", "CanaryVersion="],
    ]
    assert all(OLD not in call for call in desk.said("deploy"))


@pytest.mark.parametrize(
    "what",
    [{"RINGING": "parcels-api-errors"}, {"FAILS": "-- status"}, {"FAILS": "publish-version"}],
    ids=["an alarm rings", "status finds a breach", "a step fails"],
)
def test_what_fails_is_taken_back(desk: Desk, what: dict[str, str]) -> None:
    answer = desk.run("release.sh", NEW, "1", "ReadsPackage=reads/new.zip", BEFORE="1", **what)
    assert answer.returncode == 1
    assert "going back to" in answer.stderr
    assert desk.steps()[-3:] == ["ops", "services", "api"]
    assert all(OLD in call for call in desk.said("deploy", "Image=")[-2:])
    last = desk.said("deploy", "parcels-api")[-1]
    assert all(word in last for word in ("ReadsPackage=reads/old.zip", "LiveVersion=6", "CanaryVersion="))


def test_a_migration_that_fails_changes_nothing_else(desk: Desk) -> None:
    answer = desk.run("release.sh", NEW, "1", "ReadsPackage=reads/new.zip", BEFORE="1", FAILS="-- migrate")
    assert answer.returncode != 0
    assert desk.steps() == ["ops", "migrate"]


def test_an_alarm_that_rang_before_does_not_count(desk: Desk) -> None:
    answer = desk.run("verify.sh", "1", RINGING="parcels-data-stale", RINGING_BEFORE="parcels-data-stale")
    assert (answer.returncode, "not counted" in answer.stdout) == (0, True)
    assert desk.run("verify.sh", "1", RINGING="parcels-data-stale").returncode == 1


def test_every_gate_is_an_alarm() -> None:
    named = set(re.findall(r'"\$name-([a-z-]+)"', (TEMPLATES / "verify.sh").read_text(encoding="utf-8")))
    alarms = resources(load(), "AWS::CloudWatch::Alarm")
    known = {properties["AlarmName"]["Fn::Sub"].removeprefix("${Name}-") for _, _, properties in alarms}
    assert len(named) >= 8
    assert named <= known


def test_a_stack_takes_what_its_template_knows_and_the_last_word_wins(desk: Desk) -> None:
    answer = desk.run("deploy.sh", "data", "edge", "MostAcu=64", "OriginKey=k")
    assert answer.returncode == 0, answer.stderr
    (data,) = desk.said("parcels-data")
    given = data.partition("--parameter-overrides ")[2].partition(" --tags")[0].split()
    assert given == ["Name=parcels", "Profile=small", "Shards=2", "MostAcu=64"]
    assert "--region eu-central-1" in data
    assert "--role-arn arn:aws:iam::111122223333:role/parcels-stacks" in data
    (edge,) = desk.said("parcels-edge")
    assert "--region us-east-1" in edge
    assert "Domain=www.example.com" in edge
    assert "OriginKey=k" in edge


def test_every_line_of_the_sample_settings_is_a_parameter() -> None:
    templates = load()
    known = {stack: set(template["Parameters"]) for stack, template in templates.items()}
    everywhere = set().union(*known.values()) | {"Region", "EdgeRegion", "StackRole"}
    for line in (TEMPLATES / "project" / "production.conf").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            stack, dot, name = line.partition("=")[0].rpartition(".")
            assert name in (known[stack] if dot else everywhere), line
