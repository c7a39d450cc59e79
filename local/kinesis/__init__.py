"""The embedded Kinesis stand-in: the wire protocol of the real service on a laptop, with its limits.

`python -m local.kinesis --port 4567 --data DIR` starts it. `model` holds the rules of shards and sequence
numbers, `log` the disk format, `limits` the budgets per shard, `server` the wire. Where it knowingly
differs from AWS is listed in tests/contract/kinesis_peers.py beside the other servers.
"""
