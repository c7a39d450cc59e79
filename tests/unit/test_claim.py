"""References to records that are kept elsewhere: only what looks exactly like one is taken for one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import claim, codec
from tidegate.errors import Rejected


@given(st.text(max_size=50), st.binary(max_size=100))
def test_a_reference_names_what_it_stands_for(subject: str, data: bytes) -> None:
    record = claim.encode(subject, data)
    assert claim.name_in(record) == claim.name_of(data)
    assert msgspec.json.decode(record)["subject"] == subject


@pytest.mark.parametrize("name", ["claims/../secret", "s3://elsewhere/claims/x", "claims/" + "G" * 64, ""])
def test_a_reference_to_something_else_is_none(name: str) -> None:
    record = claim.encode("a:1", b"x").replace(claim.name_of(b"x").encode(), name.encode())
    assert claim.name_in(record) is None


@pytest.mark.parametrize("record", [b"", b"{}", b'{"type":"tidegate.claim"', b'{"type":"tidegate.parcel.upsert"}'])
def test_other_records_are_none(record: bytes) -> None:
    assert claim.name_in(record) is None


def test_who_does_not_resolve_references_says_so() -> None:
    with pytest.raises(Rejected, match="TIDEGATE_CLAIM_BUCKET") as caught:
        codec.decode(claim.encode("a:1", b"x"))
    assert caught.value.reason == "claim_unresolved"
