"""`python -m worker`: project the stream into the database until SIGTERM.

Exit codes: 0 after a graceful stop, 1 for our own errors, 2 for wrong arguments, 70 for a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tidegate import lifecycle
from tidegate.command_line import answered
from worker import app
from worker.settings import WorkerSettings


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    code = answered("worker", "Project the stream into the database until SIGTERM.", WorkerSettings, arguments)
    return lifecycle.main(app.run) if code is None else code


if __name__ == "__main__":
    sys.exit(main())
