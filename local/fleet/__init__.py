"""A whole fleet in one process, on virtual time: the production coordinator, unmodified, with everything around it faked.

Read `simulation` for the phases, `watch` for what is counted and how strictly, `faults` for what goes wrong, and
`report` for the figures. Beneath: `clock` gives every simulated process an event loop and a clock of its own,
`table` is the lease table and its bill, `network` lies between the two, `process` is one worker.
"""
