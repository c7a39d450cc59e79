"""AWS, as the rest of the house sees it: clients, our errors instead of theirs, and a fast way to read Kinesis.

`clients` opens aiobotocore clients, `failures` translates their errors, `records` decodes GetRecords, `subscription`
SubscribeToShard, `dynamo` makes tables. Only this package and the adapters that use its clients know botocore.
"""

from tidegate.aws.clients import client
from tidegate.aws.dynamo import TableClient, ensure_table
from tidegate.aws.failures import aws_errors, error_code, is_transient_code, translate
from tidegate.aws.records import ChildShard, HashKeyRange, RecordsPage, get_records
from tidegate.aws.subscription import ShardEvent, Subscription, subscribe_to_shard

__all__ = [
    "ChildShard",
    "HashKeyRange",
    "RecordsPage",
    "ShardEvent",
    "Subscription",
    "TableClient",
    "aws_errors",
    "client",
    "ensure_table",
    "error_code",
    "get_records",
    "is_transient_code",
    "subscribe_to_shard",
    "translate",
]
