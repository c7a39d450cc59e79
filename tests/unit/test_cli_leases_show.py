"""How leases look: a table for people, JSON for programs, and lines that hold whole items."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.cli import leases_show
from tidegate.cli.leases_plan import Age, normal
from tidegate.errors import Fatal
from tidegate.leases import SHARD_END, Lease, at
from tidegate.leases.items import Item, item_of


def item(key: str, **fields: Any) -> Item:
    return item_of(replace(Lease(key=key), **fields))


FLEET: list[Item] = [
    item("s-2", parent_keys=frozenset({"s-1"})),
    {**item("s-1", owner="w1", counter=41, checkpoint=at("4959", 3)), "throughputKBps": {"N": "12.50"}},
    item("s-0", checkpoint=SHARD_END, child_keys=frozenset({"s-1"})),
    item("s-3", owner="w2", checkpoint_owner="w1"),
    {"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}},
    {"leaseKey": {"S": "odd"}},
]


def test_the_table_says_who_how_far_and_since_when() -> None:
    ages = {"s-1": Age(0.42, is_least=False), "s-3": Age(6.0, is_least=True), "s-2": Age(6.0, is_least=True)}
    rows = leases_show.rows(FLEET, ages, frozenset({"s-1"}), {"s-1": 1500})
    shown = list(leases_show.table(rows, leases_show.others(FLEET)))
    cells = [line.split("  ") for line in shown]
    assert shown[0].split() == ["LEASE", "OWNER", "CHECKPOINT", "COUNTER", "MOVED", "KB/S", "LAG"]
    assert [cell.strip() for cell in cells[2] if cell] == ["s-1", "w1", "4959.3", "41", "0.4 s ago", "12.5", "1.5 s"]
    assert [cell.strip() for cell in cells[3] if cell] == [
        "s-2",
        "-",
        "TRIM_HORIZON",
        "0",
        "-",
        "-",
        "-",
        "waits for s-1",
    ]
    assert [cell.strip() for cell in cells[4] if cell][4:] == [">6.0 s ago", "-", "-", "wanted by w2"]
    assert shown[-2] == "4 leases: 1 finished, 1 free, 1 without a sign of life"
    assert shown[-1] == "2 items that are no leases: Leader (LEADER), odd (unknown)"


def test_without_a_watch_nothing_is_said_about_life() -> None:
    rows = leases_show.rows(FLEET, {}, frozenset(), {})
    assert {row.live for row in rows} == {None}
    assert {row.age_s for row in rows} == {None}


def test_one_item_in_full() -> None:
    text = "\n".join(leases_show.whole({**FLEET[1], "strange": {"SS": ["b", "a"]}, "raw": {"B": b"123"}}))
    assert "strange                       b, a" in text
    assert "raw                           3 bytes" in text
    assert "in the middle of an aggregate: its user records 0 to 3 are done" in text
    assert "w1 works on it until it hands over" in "\n".join(leases_show.whole(FLEET[3]))


# ---------------------------------------------------------------- lines of whole items

text = st.text(max_size=8)
number = st.integers().map(str)
scalar: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda value: {"S": value}, text),
    st.builds(lambda value: {"N": value}, number),
    st.builds(lambda value: {"B": value}, st.binary(max_size=8)),
    st.builds(lambda value: {"BOOL": value}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda value: {"SS": list(value)}, st.sets(text, min_size=1, max_size=3)),
    st.builds(lambda value: {"NS": list(value)}, st.sets(number, min_size=1, max_size=3)),
    st.builds(lambda value: {"BS": list(value)}, st.sets(st.binary(max_size=4), min_size=1, max_size=3)),
)
attribute = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.builds(lambda value: {"L": value}, st.lists(inner, max_size=3)),
        st.builds(lambda value: {"M": value}, st.dictionaries(text, inner, max_size=3)),
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6).filter(lambda name: name != "leaseKey"), attribute, max_size=5))
def test_every_item_comes_back_from_its_line(attributes: dict[str, Any]) -> None:
    whole = normal({"leaseKey": {"S": "k"}, **attributes})
    assert leases_show.items_of(leases_show.line_of(whole) + "\n\n") == [whole]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("not json", "line 2 is no item of a lease table"),
        ("[]", "an item is an object with a text attribute leaseKey"),
        ('{"leaseKey":"a"}', "line 2"),
        ('{"leaseKey":{"N":"1"}}', "an item is an object with a text attribute leaseKey"),
        ('{"leaseKey":{"S":"b"},"x":{"S":"a","N":"1"}}', "line 2"),
        ('{"leaseKey":{"S":"b"},"x":{"Q":"a"}}', "'Q' is no type of DynamoDB"),
        ('{"leaseKey":{"S":"b"},"x":{"B":"***"}}', "line 2"),
        ('{"leaseKey":{"S":"b"},"x":null}', "line 2"),
        ('{"leaseKey":{"S":"b"},"leaseCounter":{"N":"x"},"checkpoint":{"S":"1"}}', "line 2"),
        ('{"leaseKey":{"S":"b"},"leaseCounter":{"N":"1"},"checkpoint":{"S":"soon"}}', "lease b: not a checkpoint"),
        ('{"leaseKey":{"S":"a"}}', "line 2: 'a' is in the file twice"),
    ],
)
def test_a_line_that_is_no_item_is_named(line: str, fault: str) -> None:
    with pytest.raises(Fatal, match=fault.replace("*", r"\*")):
        leases_show.items_of('{"leaseKey":{"S":"a"}}\n' + line)
