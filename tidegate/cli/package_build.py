"""`tidegate package`: what a function imports, and a zip of it.

What is needed is not declared but looked at: a fresh interpreter imports handler and bubble, and says which files it has
opened. Of other people's packages those that were touched are taken whole, for they import more when they are used.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tidegate.errors import Fatal

HANDLERS = {"reads": "api.handler", "ingest": "api.ingest_handler", "user": "api.user_handler"}
OWN = ("api", "tidegate")

_LOOK = """
import importlib, json, sys
def opened():
    return sorted({name.partition('.')[0] for name, module in sys.modules.items() if getattr(module, '__file__', None)})
from tidegate.bubble import load
before = opened()
load(sys.argv[2])
bubble = [name for name in opened() if name not in before]
importlib.import_module(sys.argv[1])
top = sys.argv[2].partition('.')[0]
own = {name: module.__file__ for name, module in sys.modules.items() if name.partition('.')[0] == top and module.__file__}
print(json.dumps({"bubble": bubble, "all": opened(), "own": own}))
"""
# What people's verbs, migrations and the services need, and functions do not.
_LEFT_OUT = ("tidegate/cli/", "tidegate/migrate/", "tidegate/migrations/", "tidegate/scaffold/", "tidegate/leases/")
_USELESS = (".pyi", ".pyx", ".pxd", ".c", ".h", ".hpp", ".pyc", ".typed")
_TESTS = frozenset({"tests", "test"})
# botocore describes every service of AWS; these are used, and the files beside them.
_SERVICES = ("kinesis", "dynamodb")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_MOST_BYTES = 250 * 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Built(msgspec.Struct, frozen=True):
    """A zip. `packages` are others', with their versions; sizes in bytes."""

    path: Path
    packages: dict[str, str]
    zipped_bytes: int
    unzipped_bytes: int


def run_package(arguments: argparse.Namespace) -> int:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    output = arguments.output or Path("dist") / f"{arguments.function}.zip"
    built = build(arguments.function, arguments.bubble, output, python=arguments.python, platform=arguments.platform)
    packages = ", ".join(f"{name} {version}" for name, version in built.packages.items())
    print(f"{built.path}: {built.zipped_bytes:,} bytes, {built.unzipped_bytes:,} unzipped")
    print(f"handler {HANDLERS[arguments.function]}.handler; packages {packages}")
    return 0


def build(function: str, bubble: str, output: Path, *, python: str = "", platform: str | None = None) -> Built:
    """Build the zip. Raises Fatal when something cannot be imported, fetched, or is too large for Lambda."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        packages = assemble(function, bubble, folder, python=python, platform=platform)
        unzipped = sum(file.stat().st_size for file in _sorted(folder))
        if unzipped > _MOST_BYTES:
            raise Fatal(f"the function takes {unzipped:,} bytes unzipped; Lambda allows {_MOST_BYTES:,}")
        write_zip(folder, output)
    return Built(output, packages, output.stat().st_size, unzipped)


def assemble(
    function: str, bubble: str, folder: Path, *, python: str = "", platform: str | None = None
) -> dict[str, str]:
    """The same, unzipped into an empty folder; answers others' packages, with their versions."""
    touched = _touched(HANDLERS[function], bubble)
    packages = _versions(touched)
    if platform is None and python in ("", _here()):
        for name in packages:
            copy_installed(name, folder)
    else:
        _fetch(packages, folder, python or _here(), platform)
    for name in OWN:
        _copy_folder(_folder_of(name), name, folder)
    _copy_bubble(bubble, touched.own, folder)
    _prune(folder)
    _compile(folder, python or _here())
    return packages


def _here() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class _Touched(msgspec.Struct):
    """Top-level modules that were opened: for the bubble alone, and in all, those of the standard library too.

    `own` are the bubble's modules, each with its file, in whichever of the packages of its name they are.
    """

    bubble: list[str]
    all: list[str]
    own: dict[str, Path]


def _touched(handler: str, bubble: str) -> _Touched:
    ran = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", _LOOK, handler, bubble],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise Fatal(f"{handler} with the bubble {bubble} cannot be imported: {ran.stderr.strip().splitlines()[-1]}")
    return msgspec.json.decode(ran.stdout, type=_Touched, dec_hook=lambda kind, text: kind(text))


def _versions(touched: _Touched) -> dict[str, str]:
    """Others' distributions among the modules, with their versions.

    Only those that tidegate or the bubble needs: some packages import what they can do without, where it happens to be there.
    """
    known = importlib.metadata.packages_distributions()
    opened = {name for module in touched.all for name in known.get(module, ())}
    wanted = _needed("tidegate") | {name for module in touched.bubble for name in known.get(module, ())}
    names = {name for name in opened if _normal(name) in set(map(_normal, wanted))} - {"tidegate"}
    if "zoneinfo" in touched.all:
        # Lambda's image has no time zones of its own.
        names.add("tzdata")
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _needed(root: str) -> set[str]:
    """A distribution and all that it requires, directly or not, extras aside."""
    found, waiting = set[str](), [root]
    while waiting:
        name = _normal(waiting.pop())
        if name not in found:
            found.add(name)
            try:
                required = importlib.metadata.requires(name) or ()
            except importlib.metadata.PackageNotFoundError:
                # Of another platform or Python, as the markers say that we do not read.
                continue
            waiting += [match.group() for each in required if "extra ==" not in each and (match := _NAME.match(each))]
    return found


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_installed(name: str, folder: Path) -> None:
    """The files of an installed distribution, as they lie in site-packages."""
    for file in importlib.metadata.files(name) or ():
        source = Path(str(file.locate()))
        # Scripts lie outside of the folder, and a wheel may list what was never written.
        if ".." not in file.parts and not _is_useless(Path(file)) and source.is_file():
            _copy(source, folder / file)


def _fetch(packages: dict[str, str], folder: Path, python: str, platform: str | None) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise Fatal(f"for Python {python} on {platform or 'this platform'} `uv` is needed; install it: pip install uv")
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    where = ["--python-platform", platform] if platform else []
    argv = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    ran = subprocess.run(  # noqa: S603  arguments are names and versions of installed packages
        [*argv, "--python-version", python, *where, *wanted], capture_output=True, text=True, check=False
    )  # fmt: skip
    if ran.returncode:
        raise Fatal(f"uv could not fetch the packages for Python {python}: {ran.stderr.strip()[-500:]}")


def _folder_of(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Fatal(f"there is no package {name}")
    return Path(spec.origin).parent


def _copy_bubble(bubble: str, own: dict[str, Path], folder: Path) -> None:
    """The folder of the bubble's module, and of its other packages what was opened."""
    package, _, _ = bubble.rpartition(".")
    if package:
        _copy_folder(own[bubble].parent, package, folder)
    for name, file in own.items():
        place = Path(*name.split("."))
        _copy(file, folder / place / file.name if file.stem == "__init__" else folder / place.with_name(file.name))


def _copy_folder(source: Path, package: str, folder: Path) -> None:
    for file in sorted(each for each in source.rglob("*") if each.is_file()):
        place = Path(*package.split(".")) / file.relative_to(source)
        if not place.as_posix().startswith(_LEFT_OUT):
            _copy(file, folder / place)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _prune(folder: Path) -> None:
    """Take away what no function opens."""
    for file in [each for each in folder.rglob("*") if each.is_file()]:
        if _is_useless(file.relative_to(folder)):
            file.unlink()
    for empty in sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()


def _is_useless(place: Path) -> bool:
    if place.suffix in _USELESS or "__pycache__" in place.parts or _TESTS & set(place.parts[1:-1]):
        return True
    if place.parts[0].endswith(".dist-info"):
        return place.name != "METADATA"
    if place.parts[:2] == ("botocore", "data") and len(place.parts) > 3:
        return place.parts[2] not in _SERVICES
    return place.parts[0] == "bin"


def _compile(folder: Path, python: str) -> None:
    """Lambda's folder is read-only: what is not compiled here is compiled anew at every cold start.

    In an interpreter of its own and with a fixed seed, or what else happens to be in memory would show in the bytes. Paths
    are those of Lambda, and no file's time is looked at. Where that Python is not installed, nothing is compiled.
    """
    interpreter = sys.executable if python == _here() else shutil.which(f"python{python}")
    if interpreter is None:
        print(
            f"tidegate: python{python} is not here, so nothing is compiled and cold starts are slower", file=sys.stderr
        )
        return
    argv = [interpreter, "-S", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(  # noqa: S603  an interpreter, on our own files
        [*argv, "-s", str(folder), "-p", "/var/task", str(folder)], env={"PYTHONHASHSEED": "0"}, check=False
    )


def write_zip(folder: Path, output: Path) -> None:
    """The same files make the same bytes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in _sorted(folder):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if file.suffix == ".so" or ".so." in file.name else 0o644) << 16
            archive.writestr(entry, file.read_bytes())


def _sorted(folder: Path) -> Sequence[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
