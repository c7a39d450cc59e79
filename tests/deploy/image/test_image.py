"""The Dockerfile and what is in the image, as far as that can be judged without building it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8")


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "hadolint"), "-"]
    return subprocess.run(command, input=text, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("path", ["Dockerfile", "k8s_or_ecs/ecs/project/Dockerfile"])
def test_the_dockerfiles_are_clean(path: str) -> None:
    said = hadolint((ROOT / path).read_text(encoding="utf-8"))
    assert (said.returncode, said.stdout) == (0, "")


def test_hadolint_finds_a_seeded_mistake() -> None:
    said = hadolint(DOCKERFILE.replace("USER 10001:10001", "USER root"))
    assert said.returncode == 1
    assert "DL3002" in said.stdout


def test_the_image_is_locked_down() -> None:
    build, final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert build.startswith("${BASE} AS build")
    assert final.startswith("${BASE}\n")
    assert "ARG BASE=" in DOCKERFILE, "the base is pinned where it is built"
    assert "--require-hashes --only-binary :all:" in build
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["python", "-m"]' in final
    assert "RUN" not in final, "what is built stays behind"
    assert not re.search(r"chown|chmod", DOCKERFILE), "root owns everything"


def test_nothing_gets_in_that_is_not_named() -> None:
    first, *allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert first == "*"
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    assert {name.removeprefix("!") for name in allowed if name.startswith("!")} == copied


# ---------------------------------------------------------------- the bill of materials


def script() -> Any:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "requirements" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SBOM = script()


def test_the_bill_lists_the_whole_lock_and_is_the_same_each_time() -> None:
    argv = [sys.executable, "requirements/sbom.py", "requirements/run.txt", "tidegate/__init__.py"]
    made = [subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert made[0] == made[1]
    bill = json.loads(made[0])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", bill["serialNumber"]
    )
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+==[^\s;]+)", LOCK, re.MULTILINE))
    assert {f"{each['name']}=={each['version']}" for each in bill["components"]} == pinned
    assert sum(len(each["hashes"]) for each in bill["components"]) == LOCK.count("--hash=sha256:")
    assert bill["dependencies"][0]["dependsOn"] == [each["bom-ref"] for each in bill["components"]]


def test_another_lock_is_another_bill() -> None:
    assert SBOM.document(LOCK, "a", "1")["serialNumber"] != SBOM.document(LOCK + "\n", "a", "1")["serialNumber"]


def test_what_is_installed_only_somewhere_says_where() -> None:
    lock = f"Some_Thing.x==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{'0' * 64}\n    # via y\n"
    [component] = SBOM.components(lock)
    assert component["purl"] == "pkg:pypi/some-thing-x@1.0"
    assert component["properties"] == [{"name": "tidegate:marker", "value": "sys_platform == 'win32'"}]


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        ("a>=1\n", "line 1 pins nothing"),
        ("a==1\n", "a has no hash"),
        (f"    --hash=sha256:{'0' * 64}\n", "a hash of nothing"),
    ],
)
def test_what_is_no_lock_is_refused(lock: str, fault: str) -> None:
    with pytest.raises(SBOM.NoLock, match=fault):
        list(SBOM.components(lock))
