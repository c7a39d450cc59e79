"""schemathesis against what is written at the edge: whatever is sent, the answers are those that the specification names."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest
import pytest_asyncio

from tests.fakes import issuer
from tests.integration.test_api_schemathesis import CHECKS
from tests.integration.test_edge import ANN, TABLE, environment, served
from tests.integration.worker_stack import Stack, running
from tidegate.users import table_definition

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("edge")) as made:
        await made.fresh_stream("arrivals", 2)
        await made.dynamodb.create_table(**table_definition(TABLE))
        with mock.patch.dict(os.environ, environment(made)):
            yield made


@pytest.mark.timeout(150)
async def test_no_server_error_and_no_answer_that_is_not_specified(stack: Stack, tmp_path: Path) -> None:
    token = issuer.signed(issuer.claims(**ANN))
    async with served() as (_, port):
        url = f"http://127.0.0.1:{port}"
        ran = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/v1/openapi.json", "--url", url,
            "--header", f"Authorization: Bearer {token}", "--include-path-regex", "^/v1/(events|user)$",
            "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--max-examples", "20", "--seed", "6", "--no-color",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said = (await ran.communicate())[0].decode()
    assert ran.returncode == 0, said[-8_000:]
    # Both addresses, and their six operations.
    assert "6 selected" in said, said[-8_000:]
