"""A CycloneDX bill of materials from a lock: `python requirements/sbom.py requirements/run.txt tidegate/__init__.py`.

Everything in it is in the lock, so the same lock gives the same bytes: no time, and a serial number made from the lock.
Needs nothing but Python, because it runs where the image is built.
"""

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

_PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\]+?))?\s*\\?$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class NoLock(Exception):
    """The file is not what `make lock` writes."""


def components(lock: str) -> Iterator[dict[str, object]]:
    """One for each pinned requirement, in the order of the lock. Raises NoLock for a line that pins nothing."""
    found: list[dict[str, object]] = []
    for number, line in enumerate(lock.splitlines(), 1):
        text = line.strip()
        if hashed := _HASH.search(text):
            hashes = found[-1]["hashes"] if found else None
            if not isinstance(hashes, list):
                raise NoLock(f"line {number}: a hash of nothing")
            hashes.append({"alg": "SHA-256", "content": hashed[1]})
        elif text and not text.startswith("#"):
            pinned = _PINNED.match(text)
            if pinned is None:
                raise NoLock(f"line {number} pins nothing: {text}")
            found.append(_component(pinned["name"], pinned["version"], pinned["marker"]))
    for each in found:
        if not each["hashes"]:
            raise NoLock(f"{each['name']} has no hash")
    yield from found


def _component(name: str, version: str, marker: str | None) -> dict[str, object]:
    normal = re.sub(r"[-_.]+", "-", name).lower()
    package = f"pkg:pypi/{normal}@{version}"
    made: dict[str, object] = {
        "type": "library", "bom-ref": package, "name": normal, "version": version, "purl": package, "hashes": [],
    }  # fmt: skip
    if marker:
        # A lock is for every platform; this one is installed only where the marker holds.
        made["properties"] = [{"name": "tidegate:marker", "value": marker}]
    return made


def document(lock: str, name: str, version: str) -> dict[str, object]:
    """The whole bill."""
    listed = list(components(lock))
    product = f"pkg:pypi/{name}@{version}"
    serial = uuid.UUID(bytes=hashlib.sha256(f"{product}\n{lock}".encode()).digest()[:16], version=4)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": product, "name": name, "version": version, "purl": product,
            }
        },
        "components": listed,
        "dependencies": [{"ref": product, "dependsOn": [each["bom-ref"] for each in listed]}],
    }  # fmt: skip


def version(source: str) -> str:
    """What a package's `__init__` says. Raises NoLock when it says nothing."""
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise NoLock("the package has no __version__")
    return found[1]


if __name__ == "__main__":
    lock, init = (Path(path).read_text(encoding="utf-8") for path in sys.argv[1:])
    json.dump(document(lock, "tidegate", version(init)), sys.stdout, indent=1)
    sys.stdout.write("\n")
