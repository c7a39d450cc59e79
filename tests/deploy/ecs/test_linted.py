"""What others' tools say of templates and workflows, and that they are not blind: each is shown a mistake, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = ROOT / "k8s_or_ecs" / "ecs"
WORKFLOWS = ROOT / ".github" / "workflows"
CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "python"
BIN = Path(sys.executable).parent


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, cwd=ROOT)


def test_cfn_lint_is_content_and_sees_a_mistake(tmp_path: Path) -> None:
    spoiled = tmp_path / "partner.yaml"
    text = (TEMPLATES / "partner.yaml").read_text(encoding="utf-8")
    spoiled.write_text(text.replace("GenerateSecret: true", "GenerateSecrets: true"), encoding="utf-8")
    # One call for both: starting it costs more than reading the templates.
    answer = run(BIN / "cfn-lint", "--format", "parseable", *sorted(TEMPLATES.glob("*.yaml")), spoiled)
    found = [line for line in answer.stdout.splitlines() if line]
    assert len(found) == 1, "\n".join(found)
    assert found[0].startswith(str(spoiled))
    assert "GenerateSecrets" in found[0]


def test_checkov_is_content_and_every_skip_says_why() -> None:
    if not CHECKOV.exists():
        pytest.skip("NO CHECKOV: the templates were not scanned; `make peers` installs it")
    answer = run(CHECKOV, Path(__file__).with_name("checkov_scan.py"), TEMPLATES)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["failed"] == []
    assert report["unreadable"] == []
    assert report["passed"] > 250
    # A check that is skipped without a reason has the tool's own words instead.
    unexplained = [skip for skip in report["skipped"] if len(skip[2]) < 20 or skip[2] == "No comment provided"]
    assert unexplained == []


def test_the_workflows_are_valid_and_safe() -> None:
    workflows = [*sorted(WORKFLOWS.glob("*.yml")), TEMPLATES / "project" / "deploy.yml"]
    assert len(workflows) == 3
    schema = ("--builtin-schema", "vendor.github-workflows")
    answer = run(BIN / "check-jsonschema", *schema, *workflows)
    assert answer.returncode == 0, answer.stdout
    answer = run(BIN / "zizmor", "--offline", "--persona", "pedantic", "--no-progress", *workflows)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_workflows_checks_see_a_mistake(tmp_path: Path) -> None:
    spoiled = tmp_path / "ci.yml"
    text = (WORKFLOWS / "ci.yml").read_text(encoding="utf-8")
    spoiled.write_text(text.replace("runs-on:", "runs_on:"), encoding="utf-8")
    schema = ("--builtin-schema", "vendor.github-workflows")
    assert run(BIN / "check-jsonschema", *schema, spoiled).returncode != 0
    spoiled.write_text(text + "      - run: echo ${{ github.event.pull_request.title }}\n", encoding="utf-8")
    answer = run(BIN / "zizmor", "--offline", "--no-progress", spoiled)
    assert answer.returncode != 0
    assert "template-injection" in answer.stdout


def test_every_pinned_action_is_a_commit() -> None:
    for workflow in WORKFLOWS.glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", workflow.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", used), used
