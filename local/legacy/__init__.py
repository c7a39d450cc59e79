"""Simulated legacy back offices, and the small framework they are written on.

Run one: `LEGACY_API_KEY=secret python -m local.legacy parcels --port 8701 --data .data/parcels`
(kinds: parcels, customers, flights). The screen of the back office is at `/`, the legacy API at the
paths that the kind's module describes, and the control API for demo and tests below `/_sim/`.

Write your own in about fifty lines: see `local.legacy.office.BackOffice` and `local.legacy.server.run`.

    record   one row of the back office, in clean form: key, stamp, truth, who sees it
    store    sqlite: rows, change log, counters; what is committed survives SIGKILL
    desk     one transaction's worth of work on the store
    office   BackOffice: entities, seed, the four kinds of change, the legacy routes
    dialect  how legacy systems write times, decimals and pages
    manners  API key, request budget, slow answers, nightly batch, outage
    life     random changes by themselves, and bursts on demand
    control  the `/_sim` endpoints and the screen
    server   command line and lifecycle of one process
"""
