"""Records per second from key and bytes to the body of a PutRecords request, on one core, against botocore's serializer.

Both sides do what their client does between `put_records(...)` and signing: botocore checks and writes the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from botocore.serialize import create_serializer
from botocore.session import get_session
from msgspec import json

from bench import Result, seconds
from bench._stream import event
from tidegate import codec
from tidegate.aws.puts import PutEntry, encode_puts

ROUNDS = 15
# As many as one call may have.
CALL_RECORDS = 500


def run() -> Iterator[Result]:
    operation = get_session().get_service_model("kinesis").operation_model("PutRecords")
    serializer = create_serializer("json", include_validation=True)
    sent = [(str(event(number).key), codec.encode(event(number))) for number in range(CALL_RECORDS)]

    def ours() -> bytes:
        return encode_puts({"StreamName": "parcels", "Records": [PutEntry(key, data) for key, data in sent]})

    def stock() -> bytes:
        records = [{"Data": data, "PartitionKey": key} for key, data in sent]
        body: bytes = serializer.serialize_to_request({"StreamName": "parcels", "Records": records}, operation)["body"]
        return body

    assert json.decode(ours()) == json.decode(stock())
    ours_s: list[float] = []
    stock_s: list[float] = []
    for _ in range(ROUNDS):
        ours_s += [seconds(ours) for _ in range(10)]
        stock_s.append(seconds(stock))
    yield Result.of("encode", "records/s", CALL_RECORDS / min(ours_s), "botocore", CALL_RECORDS / min(stock_s))
