"""schemathesis against the running service: whatever its specification allows or forbids, the answers are those it names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes import issuer
from tests.integration.harbour import opened
from tests.integration.test_api_service import process

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip
EXAMPLES = 5


@pytest.mark.timeout(150)
def test_no_server_error_and_no_answer_that_is_not_specified(tmp_path: Path) -> None:
    token = issuer.signed(issuer.claims(username="owner-o1", **{"cognito:groups": ["master-north"]}))
    with opened(tmp_path / "migrations", count=30) as harbour, process(harbour) as running:
        ran = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/v1/openapi.json",
                "--url", running.url, "--header", f"Authorization: Bearer {token}",
                # What is written at the edge is not served by the reads; ships and dues have all that the others have.
                "--exclude-path-regex", "^/v1/(user|events|quays|visits|reports/names)", "--checks", ",".join(CHECKS),
                "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "6", "--workers", "2",
                "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=140,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-8_000:]
        lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    statuses = Counter(line["status"] for line in lines if line["event"] == "api.request")
    # It did ask, was answered, and was refused.
    assert statuses[200] > 100
    assert statuses[400] > 20
    assert max(statuses) < 500
