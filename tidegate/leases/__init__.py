"""Leases: who works on what. Used by the worker (shards) and by the poller (source partitions).

Read `lease` for the values, `planner` for the policy, `hold` for why two processes never work on one lease,
`handover` for how a lease moves between live processes, `coordinator` for the tree of tasks. `store` is the DynamoDB
table, in the Kinesis Client Library's format.
"""

from tidegate.leases.coordinator import Coordinator, Start, owner_name
from tidegate.leases.hold import Hold
from tidegate.leases.lease import (
    AT_TIMESTAMP,
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    Checkpoint,
    Lease,
    Part,
    at,
    plain_leases,
)
from tidegate.leases.store import DynamoLeaseStore, LeaseStore, Look, Names
from tidegate.leases.upkeep import Discover

__all__ = [
    "AT_TIMESTAMP",
    "LATEST",
    "SHARD_END",
    "TRIM_HORIZON",
    "Checkpoint",
    "Coordinator",
    "Discover",
    "DynamoLeaseStore",
    "Hold",
    "Lease",
    "LeaseStore",
    "Look",
    "Names",
    "Part",
    "Start",
    "at",
    "owner_name",
    "plain_leases",
]
