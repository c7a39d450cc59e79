"""AWS, as the rest of the house sees it: clients, our errors instead of theirs, and a fast way to Kinesis and back.

`clients` opens aiobotocore clients, `failures` translates their errors, `records` decodes GetRecords, `puts` encodes
PutRecords, `subscription` decodes SubscribeToShard, `dynamo` makes tables. Only this package and the adapters that use
its clients know botocore.
"""

from tidegate.aws.clients import client
from tidegate.aws.dynamo import TableClient, ensure_table
from tidegate.aws.failures import aws_errors, error_code, is_transient_code, translate
from tidegate.aws.puts import PutEntry, PutOutcome, put_records
from tidegate.aws.records import ChildShard, HashKeyRange, RecordsPage, get_records
from tidegate.aws.subscription import ShardEvent, Subscription, subscribe_to_shard

__all__ = [
    "ChildShard",
    "HashKeyRange",
    "PutEntry",
    "PutOutcome",
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
    "put_records",
    "subscribe_to_shard",
    "translate",
]
