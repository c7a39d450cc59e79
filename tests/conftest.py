"""What all tests share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator

import pytest

# pytest-asyncio asks for the thread's current loop, and Python 3.11 makes one for whoever asks; nobody closes it,
# and warnings are errors here. Where there is no loop and no default, none is made.
asyncio.set_event_loop(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On a laptop a test may be skipped, loudly; CI has everything, so there a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
