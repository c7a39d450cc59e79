"""What a bubble says about its demo: which back offices to run, and who signs in.

The module `<bubble package>.demo` holds one, at its top level:

    demo = Demo(
        back_offices=(BackOffice(name="library", module="my.library", entities=("loan",),
                                 url_env="LIBRARY_URL", key_env="LIBRARY_API_KEY"),),
        users=(User("reader-1001", title="Reader 1001", viewer="reader:1001"),),
    )

A back office is a program with the command line of `local.legacy` (`--port`, `--data`, the variable
LEGACY_API_KEY) and its control API (`/_sim/…`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import msgspec

from tidegate.errors import Fatal

SHORT_NAMES: Mapping[str, str] = {"parcels": "examples.parcels.bubble", "flights": "examples.flights.bubble"}
"""The samples, as `tidegate demo --bubble` takes them."""


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that a back office makes at once, when it is told to."""

    creates: int = 60
    updates: int = 120
    corrections: int = 30
    deletes: int = 30


class BackOffice(msgspec.Struct, frozen=True, kw_only=True):
    """One back office to run.

    module    run as `python -m module *args --port N --data DIR`
    entities  what it knows, as `/_sim/truth?entity=` names it
    url_env   the variable that tells the poller its address; key_env: its API key
    bucket_env  the variable that tells both it and the poller the S3 bucket for its files
    env       further variables for the back office itself
    burst     the changes of one round of `tidegate demo --once`: creates, updates, corrections, deletes
    """

    name: str
    entities: tuple[str, ...]
    module: str = "local.legacy"
    args: tuple[str, ...] = ()
    title: str = ""
    url_env: str | None = None
    key_env: str | None = None
    bucket_env: str | None = None
    env: Mapping[str, str] = {}
    burst: Burst = Burst()


class User(msgspec.Struct, frozen=True):
    """Somebody who signs in at the front office; the password is generated.

    viewer  how the back office's truth names the same person: `kind:id`; None sees what everybody may see
    """

    username: str
    title: str
    viewer: str | None = None
    groups: tuple[str, ...] = ()


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The demo of one bubble.

    event     one of the bubble's inbound events, as the first of the users sends it: `type` and `data`
    observer  measures freshness for `--once`: sees every row of the entities `observer_sees`; not offered on the page
    """

    back_offices: tuple[BackOffice, ...]
    users: tuple[User, ...]
    title: str = ""
    observer: User | None = None
    observer_sees: tuple[str, ...] = ()
    event: Mapping[str, Any] | None = None


def bubble_path(name: str) -> str:
    """`parcels` → `examples.parcels.bubble`; any other name is an import path already.

    Raises:
        Fatal: a sample is asked for where the samples are not: they come with the source, not with the wheel.
    """
    if name in SHORT_NAMES and importlib.util.find_spec("examples") is None:
        raise Fatal(
            f"the sample {name!r} comes with the source checkout, which this is not; "
            "write a project of your own with `tidegate new NAME`, then `tidegate demo --bubble NAME.bubble`"
        )
    return SHORT_NAMES.get(name, name)


def load(path: str) -> Demo:
    """The demo of the bubble at `path`.

    Raises:
        Fatal: the package has no module `demo`, or that module no `demo = Demo(…)`.
    """
    package = path.rpartition(".")[0]
    name = f"{package}.demo" if package else "demo"
    if importlib.util.find_spec(name) is None:
        raise Fatal(f"{path}: there is no module {name}; write one with `demo = Demo(…)`, see local/demo_spec.py")
    demo = getattr(importlib.import_module(name), "demo", None)
    if not isinstance(demo, Demo):
        raise Fatal(f"{name}: it has no `demo = Demo(…)` at its top level; see local/demo_spec.py")
    if not demo.back_offices or not demo.users:
        raise Fatal(f"{name}: a demo needs at least one back office and one user")
    return demo
