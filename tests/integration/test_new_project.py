"""A user's own project, from the built wheel in an empty folder: `tidegate new`, its tests, its demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Installed:
    """An environment with tidegate's wheel in it, seen from a folder that knows nothing of this checkout."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.bin = place / "bin"
        self.folder = folder

    def run(self, *command: str, inside: str = ".", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TIDEGATE"))}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder / inside,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    wheels = place / "wheels"
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels], cwd=ROOT, check=True)
    venv.create(place / "env", with_pip=True)
    # The dependencies come from the environment of the tests; a path file does not make its editable tidegate visible.
    packages = place / "env" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (wheel,) = wheels.glob("tidegate-*.whl")
    install = [
        *map(
            str, (place / "env" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
        )
    ]
    subprocess.run(install, check=True, cwd=place)
    folder = place / "empty"
    folder.mkdir()
    return Installed(place / "env", folder)


def test_the_packages_come_from_the_wheel(installed: Installed) -> None:
    names = ("tidegate", "worker", "poller", "api", "local")
    shown = installed.run("python", "-c", f"import {', '.join(names)}; print({'.__file__, '.join(names)}.__file__)")
    assert shown.returncode == 0, shown.stderr
    assert str(ROOT) not in shown.stdout


@pytest.mark.timeout(240)
def test_a_new_project_works_at_once(installed: Installed) -> None:
    made = installed.run("tidegate", "new", "library")
    assert made.returncode == 0, made.stderr
    assert "tidegate demo --bubble library.bubble" in made.stdout

    tested = installed.run("python", "-m", "pytest", "-q", inside="library")
    assert tested.returncode == 0, tested.stdout

    checked = installed.run("tidegate", "check", "--bubble", "library.bubble", inside="library")
    assert checked.returncode == 1
    assert "environment LIBRARY_API_KEY: MISSING" in checked.stdout

    command = ("tidegate", "demo", "--bubble", "library.bubble", "--once", "--json")
    ran = installed.run(*command, inside="library", timeout_s=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answer = json.loads(ran.stdout)
    assert (answer["missing"], answer["stale"], answer["ghosts"]) == (0, 0, 0)
    assert answer["rows_back_office"] == answer["rows_front_office"] > 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Library", "'Library' cannot be a package's name; use lower-case letters"),
        ("class", "'class' cannot be a package's name"),
        ("json", "'json' is the name of an installed package; choose another"),
    ],
)
def test_a_name_that_cannot_be_is_refused(installed: Installed, name: str, text: str) -> None:
    refused = installed.run("tidegate", "new", name)
    assert refused.returncode == 1
    assert text in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (installed.folder / name).exists()


def test_an_existing_folder_is_left_alone(installed: Installed) -> None:
    (installed.folder / "taken").mkdir()
    refused = installed.run("tidegate", "new", "taken")
    assert refused.returncode == 1
    assert "taken/ is there already" in refused.stderr
