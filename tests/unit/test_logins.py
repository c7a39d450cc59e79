"""Verifiers are what PostgreSQL computes itself; further variables come from one object."""

from __future__ import annotations

import base64

import pytest

from tidegate.errors import Fatal
from tidegate.logins import verifier
from tidegate.settings import unpack


def test_the_verifier_of_rfc_7677() -> None:
    # The example of RFC 7677, section 3: password "pencil", 4096 iterations; its proof and signature follow from these keys.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    kept = verifier("pencil", salt)
    assert kept.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert kept.endswith("WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")


def test_two_verifiers_of_one_password_differ() -> None:
    assert verifier("pencil") != verifier("pencil")


def test_further_variables_are_added_and_those_that_are_set_win() -> None:
    environ = {"TIDEGATE_VARIABLES": '{"PARCELS_URL": "https://a", "TZ": "UTC"}', "TZ": "Europe/Zurich"}
    unpack(environ)
    assert (environ["PARCELS_URL"], environ["TZ"]) == ("https://a", "Europe/Zurich")
    before = dict(environ)
    unpack(environ)
    assert environ == before


@pytest.mark.parametrize("text", ["{", "[]", '{"A": 1}', '"hush"'])
def test_what_is_no_object_of_texts_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(Fatal, match="JSON object of texts") as refused:
        unpack({"TIDEGATE_VARIABLES": text})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_none_is_none(text: str) -> None:
    environ = {"TIDEGATE_VARIABLES": text}
    unpack(environ)
    assert environ == {"TIDEGATE_VARIABLES": text}
