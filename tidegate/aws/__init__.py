"""AWS, as the rest of the house sees it: clients, our errors instead of theirs, and a fast GetRecords.

`clients` opens aiobotocore clients, `failures` translates their errors, `records` decodes GetRecords. Only this
package and the adapters that use its clients know botocore.
"""

from tidegate.aws.clients import client
from tidegate.aws.failures import aws_errors, error_code, is_transient_code, translate
from tidegate.aws.records import ChildShard, HashKeyRange, KinesisRecord, RecordsPage, get_records

__all__ = [
    "ChildShard",
    "HashKeyRange",
    "KinesisRecord",
    "RecordsPage",
    "aws_errors",
    "client",
    "error_code",
    "get_records",
    "is_transient_code",
    "translate",
]
