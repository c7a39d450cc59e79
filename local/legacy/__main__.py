"""`python -m local.legacy KIND …`: see `local.legacy.server` for the options."""

import sys
from collections.abc import Mapping, Sequence

from local.legacy.customers import CustomerOffice
from local.legacy.flights import FlightOffice
from local.legacy.office import BackOffice
from local.legacy.parcels import ParcelOffice
from local.legacy.server import run

OFFICES: Mapping[str, type[BackOffice]] = {
    office.kind: office for office in (ParcelOffice, CustomerOffice, FlightOffice)
}


def main(argv: Sequence[str]) -> int:
    """Run the back office that the first argument names; answers the exit code."""
    if not argv or argv[0] not in OFFICES:
        print(f"usage: python -m local.legacy {{{','.join(OFFICES)}}} --port N --data DIR …", file=sys.stderr)
        return 2
    return run(OFFICES[argv[0]], argv[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
