"""What all tests share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# pytest-asyncio asks for the thread's current loop, and Python 3.11 makes one for whoever asks; nobody closes it,
# and warnings are errors here. Where there is no loop and no default, none is made.
asyncio.set_event_loop(None)


# No example fails for being slow: a machine that does other things too would decide.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

# A container engine wants root and mounts, which no installation brings.
_MAY_BE_SKIPPED = "NO ENGINE: "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On a laptop a test may be skipped, loudly; CI has everything else, so there a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and _MAY_BE_SKIPPED not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
