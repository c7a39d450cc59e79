"""`python -m api`: serve the API over HTTP until SIGTERM.

Exit codes: 0 after a graceful stop, 1 for our own errors, 2 for wrong arguments, 70 for a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from api import service
from tidegate import lifecycle
from tidegate.command_line import answered


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    code = answered("api", "Serve the API over HTTP until SIGTERM.", service.ServiceSettings, arguments)
    return lifecycle.main(service.run, drain_budget_s=30.0) if code is None else code


if __name__ == "__main__":
    sys.exit(main())
