"""The specification is valid OpenAPI 3.1 and says what the API answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.openapi import document, encoded
from examples.parcels.bubble import bubble as parcels
from tests.integration.library_bubble import bubble as library
from tidegate.bubble import Bubble

ROW = {
    "number": "L1", "reader": "1", "guarantor": None, "state": "out", "fee": "12.50", "rate": 0.1, "renewals": 3,
    "overdue": False, "due": None, "ticket": "6f1e3f6e-9a55-4c5e-8d0e-0a3c6f6f0001", "changed_at": "2026-11-21T05:55:03Z",
}  # fmt: skip


@pytest.mark.parametrize("bubble", [library, parcels], ids=["library", "parcels"])
def test_it_is_valid(bubble: Bubble) -> None:
    OpenAPIV31SpecValidator(document(bubble)).validate()
    assert msgspec.json.decode(encoded(bubble)) == document(bubble)


def test_every_collection_has_its_three_operations() -> None:
    assert list(document(library)["paths"]) == [
        "/v1/loans", "/v1/loans/changes", "/v1/loans/{number}",
        "/v1/town-branches", "/v1/town-branches/changes", "/v1/town-branches/{number}",
        "/v1/shelves", "/v1/shelves/changes", "/v1/shelves/{id}", "/v1/user",
    ]  # fmt: skip


def answer_schema(path: str) -> dict[str, Any]:
    specification = document(library)
    content: dict[str, Any] = specification["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    return {**content["schema"], "components": specification["components"]}


def test_a_row_is_what_it_says() -> None:
    row = Draft202012Validator(answer_schema("/v1/loans/{number}"), format_checker=Draft202012Validator.FORMAT_CHECKER)
    row.validate(ROW)
    for wrong in ({**ROW, "_deleted": False}, {**ROW, "fee": 12.5}, {**ROW, "state": "lost"}, {"state": "out"}):
        assert not row.is_valid(wrong), wrong
    row.validate({"number": "L1", "state": "out"})


def test_a_page_is_what_it_says() -> None:
    page = Draft202012Validator(answer_schema("/v1/loans"))
    page.validate({"items": [ROW], "next_cursor": None})
    page.validate({"items": [], "next_cursor": "abc"})
    assert not page.is_valid({"items": [ROW]})


def test_times_are_dated_times_and_keys_have_their_type() -> None:
    schemas = document(library)["components"]["schemas"]
    assert schemas["Loan"]["properties"]["changed_at"] == {"type": "string", "format": "date-time"}
    parameters = document(library)["paths"]["/v1/shelves/{id}"]["get"]["parameters"]
    assert parameters[0]["schema"] == {"type": "string", "format": "uuid"}
