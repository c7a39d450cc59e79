"""The image is built and run by `make image` only: its base alone takes minutes. Every other run says that it was not."""

from __future__ import annotations

import os

import pytest

from tests.deploy.image.engine import IS_HERE, MISSING

STORE = "IMAGE_STORE"
"""The folder that keeps the images between two runs; set, the image is built and run."""

collect_ignore = [] if os.environ.get(STORE) else ["test_image_run.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not os.environ.get(STORE):
        how = (
            "make image does it"
            if IS_HERE
            else f"make image does it, as root with {', '.join(MISSING) or 'these tools'}"
        )
        terminalreporter.write_line(f"IMAGE NOT BUILT AND NOT RUN: {how}")
