"""Records per second from the bytes of a GetRecords reply to typed records, on one core, against botocore's parser."""

from __future__ import annotations

from collections.abc import Iterator

from botocore.parsers import JSONParser
from botocore.session import get_session

from bench import Result, seconds
from bench._stream import PAGE_RECORDS, page
from tidegate.aws.records import decode_page
from tidegate.record import StampedRecord

ROUNDS = 7


def _decoded(body: bytes) -> list[StampedRecord]:
    """With the time of arrival, which a consumer leaves out and botocore reads."""
    return list(decode_page([body]).records.stamped())


def run() -> Iterator[Result]:
    body = page(0)
    shape = get_session().get_service_model("kinesis").operation_model("GetRecords").output_shape
    parser = JSONParser()
    reply = {"body": body, "headers": {}, "status_code": 200}
    assert len(parser.parse(reply, shape)["Records"]) == len(_decoded(body)) == PAGE_RECORDS
    ours: list[float] = []
    stock: list[float] = []
    # In turns, so that what else the machine does meets both.
    for _ in range(ROUNDS):
        ours += [seconds(lambda: _decoded(body)) for _ in range(5)]
        stock.append(seconds(lambda: parser.parse(reply, shape)))
    yield Result.of("decode", "records/s", PAGE_RECORDS / min(ours), "botocore", PAGE_RECORDS / min(stock))
