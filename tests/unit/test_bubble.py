"""A wrong bubble is refused at start; the message says which class or source, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate import bubble as bubbles
from tidegate.bubble import (
    AfterKey,
    Bubble,
    ByRevision,
    ByTime,
    Env,
    Fields,
    Header,
    Office,
    PageNumber,
    Parent,
    Reread,
    Rest,
    Source,
    Viewer,
)
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.errors import BubbleError


class Thing(Entity):
    meta = Meta(collection="things", key="number", readers=(Reader(EVERYONE),))
    number: str


class OtherThing(Entity):
    meta = Meta(collection="things", key="number", readers=(Reader(EVERYONE),))
    number: str


class NamedThing(Entity):
    meta = Meta(collection="named-things", key="name", readers=(Reader(EVERYONE),))
    name: str


class OwnThing(Entity):
    meta = Meta(collection="own-things", key="number", readers=(Reader("owner", ("number",)),))
    number: str


def rest_source(**changes: Any) -> Source:
    feed = Rest(
        url=Env("THINGS_URL"),
        headers=(Header("X-Key", Env("THINGS_KEY", secret=True)),),
        path="/things",
        rows="rows",
        key="number",
        paging=PageNumber(param="page", pages="pages"),
    )
    source = Source(name="things", entity=Thing, feed=feed, translate=lambda row: Thing(number=row["number"]))
    return msgspec.structs.replace(source, **changes)


def test_both_examples_are_right() -> None:
    for name in ("parcels", "flights"):
        bubble = bubbles.load(f"examples.{name}.bubble")
        assert bubble.name == name
        assert {source.entity for source in bubble.sources} == set(bubble.entities)


def test_the_environment_is_named_once_and_secrets_are_marked() -> None:
    bubble = Bubble(name="b", entities=(Thing,), sources=(rest_source(),))
    assert [(env.name, env.secret) for env in bubble.environment] == [("THINGS_URL", False), ("THINGS_KEY", True)]


@pytest.mark.parametrize(
    ("bubble", "text"),
    [
        (Bubble(name="b", entities=(Thing, OtherThing), sources=()), r"OtherThing: .* table 'things', which Thing has"),
        (Bubble(name="b", entities=(OwnThing,), sources=()), r"OwnThing: Reader\('owner'\) .* add Viewer\('owner'"),
        (Bubble(name="b", entities=(), sources=(rest_source(),)), r"source 'things': its entity Thing is not among"),
        (
            Bubble(name="b", entities=(Thing,), sources=(rest_source(), rest_source())),
            r"source 'things': the name is taken twice",
        ),
        (
            Bubble(name="b", entities=(Thing,), sources=(rest_source(), rest_source(name="again"))),
            r"source 'again': Thing is fed by 'things' already.*split it into two entities",
        ),
        (
            Bubble(name="b", entities=(Thing,), sources=(rest_source(poll_interval_s=0.0),)),
            r"source 'things': poll_interval_s is 0.0; it must be more than 0",
        ),
        (
            Bubble(name="b", entities=(Thing,), sources=(rest_source(translation=0),)),
            r"translation is 0; it starts at 1",
        ),
        (
            Bubble(name="b", entities=(Thing,), sources=(rest_source(translate=Fields(OtherThing)),)),
            r"source 'things': Fields\(OtherThing\) does not make its entity; write translate=Fields\(Thing\)",
        ),
    ],
)
def test_a_wrong_bubble_is_refused(bubble: Bubble, text: str) -> None:
    with pytest.raises(BubbleError, match=text):
        bubbles.check(bubble)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"changes": ByTime(param="since", column="at"), "paging": AfterKey(param="after")}, "declare ByKeyset"),
        ({"parent": Parent(path="/owners", rows="rows", key="id")}, r"does not say where the \{parent\} goes"),
        (
            {
                "parent": Parent(path="/owners", rows="rows", key="id"),
                "path": "/owners/{parent}/things",
                "changes": ByRevision(param="since", column="rev"),
            },
            "no changes of their own",
        ),
        ({"reread": Reread(path="/by-key")}, "needs a param"),
        ({"reread": Reread(path="/by-key", param="key", size=0)}, "at least 1"),
        ({"office": Office(name="erp", requests_per_s=0)}, "must be more than 0"),
    ],
)
def test_a_feed_that_could_not_be_asked_is_refused(changes: dict[str, Any], text: str) -> None:
    source = rest_source()
    wrong = rest_source(feed=msgspec.structs.replace(source.feed, **changes))
    with pytest.raises(BubbleError, match=text):
        bubbles.check(Bubble(name="b", entities=(Thing,), sources=(wrong,)))


def test_one_back_office_has_one_budget() -> None:
    feed = rest_source().feed
    assert isinstance(feed, Rest)
    slow = msgspec.structs.replace(feed, office=Office(name="erp", requests_per_s=1))
    fast = msgspec.structs.replace(feed, office=Office(name="erp", requests_per_s=9), key="name")
    both = (rest_source(feed=slow), rest_source(name="named", entity=NamedThing, feed=fast))
    with pytest.raises(BubbleError, match="'erp' is declared in two ways"):
        bubbles.check(Bubble(name="b", entities=(Thing, NamedThing), sources=both))


def test_a_viewer_makes_a_reader_known() -> None:
    bubbles.check(Bubble(name="b", entities=(OwnThing,), sources=(), viewers=(Viewer("owner", "sub"),)))


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(BubbleError, match=r"bubble no_such.bubble: there is no module 'no_such'"):
        bubbles.load("no_such.bubble")


def test_a_module_without_a_bubble_is_named() -> None:
    with pytest.raises(BubbleError, match=r"tidegate.errors: it has no `bubble = Bubble"):
        bubbles.load("tidegate.errors")


def test_a_missing_import_inside_the_bubble_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lonely_bubble.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BubbleError, match=r"importing it failed: No module named 'no_such_dependency'"):
        bubbles.load("lonely_bubble")
