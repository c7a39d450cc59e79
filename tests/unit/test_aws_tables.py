"""A table that is there is used as it is; one that is missing is made, and waited for."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tidegate.aws import dynamo, ensure_table
from tidegate.errors import Fatal

DEFINITION = {"TableName": "cursors", "BillingMode": "PAY_PER_REQUEST"}


class Tables:
    """`statuses` are told one after the other, the last for ever; "" for no such table."""

    def __init__(self, *statuses: str, creating: str = "") -> None:
        self.statuses = list(statuses)
        self.creating = creating
        self.created: list[dict[str, Any]] = []

    async def describe_table(self, **request: Any) -> dict[str, Any]:
        assert request == {"TableName": "cursors"}
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            raise _error("ResourceNotFoundException")
        return {"Table": {"TableStatus": status}}

    async def create_table(self, **request: Any) -> dict[str, Any]:
        self.created.append(request)
        if self.creating:
            raise _error(self.creating)
        return {}


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "SomeCall")


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "_READY_WAIT_S", 0)


async def test_a_table_that_exists_needs_no_permission_to_create() -> None:
    tables = Tables("ACTIVE", creating="AccessDeniedException")
    await ensure_table(tables, DEFINITION)
    assert tables.created == []


@pytest.mark.parametrize("creating", ["", "ResourceInUseException"])
async def test_a_missing_table_is_made_and_waited_for(creating: str) -> None:
    tables = Tables("", "", "CREATING", "ACTIVE", creating=creating)
    await ensure_table(tables, DEFINITION)
    assert tables.created == [DEFINITION]
    assert tables.statuses == ["ACTIVE"]


async def test_a_missing_table_that_may_not_be_made_is_fatal() -> None:
    with pytest.raises(Fatal, match="create the table cursors"):
        await ensure_table(Tables("", creating="AccessDeniedException"), DEFINITION)


async def test_a_table_that_never_comes_is_fatal() -> None:
    with pytest.raises(Fatal, match="did not become active"):
        await ensure_table(Tables("CREATING"), DEFINITION)
