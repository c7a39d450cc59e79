"""`python -m poller`: poll the bubble's back offices into the stream until SIGTERM."""

from __future__ import annotations

import os
import sys
from asyncio import Event
from collections.abc import Sequence

from poller import app
from poller.settings import PollerSettings
from tidegate import lifecycle
from tidegate.command_line import answered
from tidegate.settings import read, unpack


def main(argv: Sequence[str] | None = None) -> int:
    """Everything comes from TIDEGATE_… and the bubble's own variables; the command line is empty."""
    arguments = sys.argv[1:] if argv is None else argv
    code = answered(
        "poller", "Poll the bubble's back offices into the stream until SIGTERM.", PollerSettings, arguments
    )
    if code is not None:
        return code

    async def run(stop: Event) -> None:
        unpack(os.environ)
        await app.run(read(PollerSettings, os.environ), os.environ, stop)

    return lifecycle.main(run)


if __name__ == "__main__":
    sys.exit(main())
