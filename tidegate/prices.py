"""List prices of AWS in us-east-1, each with the page that it is from.  (pure)

They are an assumption, not a quotation: written down from the public pages as they stood at DATE, in US dollars, before
taxes, discounts, savings plans and the free tier. Prices change rarely, mostly downwards; look a bill up before it counts.
Who pays others, in another region or by contract, hands in a table of their own (`PriceTable.changed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

DATE = "2025-06"
REGION = "us-east-1"
HOURS = 730.0
"""In a month, as AWS' own calculator counts."""


class Price(Struct, frozen=True):
    """US dollars for one unit; `page` is the title of AWS' page."""

    dollars: float
    unit: str
    page: str


_KINESIS = "Amazon Kinesis Data Streams pricing"
_FARGATE = "AWS Fargate pricing"
_AURORA = "Amazon Aurora pricing"
_DYNAMODB = "Amazon DynamoDB pricing for on-demand capacity"
_S3 = "Amazon S3 pricing"
_VPC = "Amazon VPC pricing"
_PRIVATELINK = "AWS PrivateLink pricing"
_LAMBDA = "AWS Lambda pricing"
_GATEWAY = "Amazon API Gateway pricing"
_CLOUDWATCH = "Amazon CloudWatch pricing"

PRICES: Mapping[str, Price] = {
    "shard": Price(0.015, "shard-hour", _KINESIS),
    "retention": Price(0.020, "shard-hour beyond 24 h, to 7 days", _KINESIS),
    "put": Price(0.014e-6, "PUT payload unit of 25 KB", _KINESIS),
    "fan-out": Price(0.015, "consumer-shard-hour", _KINESIS),
    "fan-out data": Price(0.013, "GB", _KINESIS),
    "vcpu": Price(0.03238, "vCPU-hour, Linux/ARM", _FARGATE),
    "memory": Price(0.00356, "GB-hour, Linux/ARM", _FARGATE),
    "acu": Price(0.12, "ACU-hour, Aurora Standard", _AURORA),
    "storage": Price(0.10, "GB-month", _AURORA),
    "io": Price(0.20e-6, "I/O request", _AURORA),
    "proxy": Price(0.015, "ACU-hour, 8 at least", "Amazon RDS Proxy pricing"),
    "write": Price(0.625e-6, "write request unit", _DYNAMODB),
    "read": Price(0.125e-6, "read request unit", _DYNAMODB),
    "s3 put": Price(0.005e-3, "PUT request", _S3),
    "s3 storage": Price(0.023, "GB-month", _S3),
    "nat": Price(0.045, "NAT gateway-hour", _VPC),
    "nat data": Price(0.045, "GB", _VPC),
    "endpoint": Price(0.01, "interface endpoint-hour in a zone", _PRIVATELINK),
    "endpoint data": Price(0.01, "GB", _PRIVATELINK),
    "invocation": Price(0.20e-6, "request", _LAMBDA),
    "lambda": Price(0.0000166667, "GB-second, x86", _LAMBDA),
    "api": Price(1.00e-6, "request, HTTP API", _GATEWAY),
    "logs": Price(0.50, "GB ingested", _CLOUDWATCH),
    "alarm": Price(0.10, "alarm-month", _CLOUDWATCH),
    "metric": Price(0.30, "metric-month, of the first 10,000", _CLOUDWATCH),
    "dashboard": Price(3.00, "dashboard-month", _CLOUDWATCH),
}


class PriceTable(Struct, frozen=True, kw_only=True):
    """What a bill is made with: where and when it held, and the dollars for one unit of each of `PRICES`.

    changed   names that are not the list's own price
    """

    region: str = REGION
    date: str = DATE
    dollars: Mapping[str, float] = field(default_factory=lambda: {name: each.dollars for name, each in PRICES.items()})
    changed: frozenset[str] = frozenset()

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> PriceTable:
        """From a file's content: region, date, and under `prices` those that differ. Raises ValueError."""
        try:
            given = msgspec.convert(document, _File)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
        if unknown := sorted(given.prices.keys() - PRICES.keys()):
            raise ValueError(f"no price is called {', '.join(unknown)}; there are {', '.join(PRICES)}")
        if below := sorted(name for name, dollars in given.prices.items() if not 0 <= dollars < 1e6):
            raise ValueError(f"no price: {', '.join(below)}")
        dollars = {**cls().dollars, **given.prices}
        changed = frozenset(name for name, each in dollars.items() if each != PRICES[name].dollars)
        return cls(region=given.region, date=given.date, dollars=dollars, changed=changed)

    def written(self) -> str:
        """As a file that `read` takes, each price with its unit and the page it is from."""
        lines = [f"region = {_quoted(self.region)}", f"date = {_quoted(self.date)}", "", "[prices]"]
        lines += [
            f"{_quoted(name)} = {self.dollars[name]:.12g}  # {price.unit}: {price.page}"
            for name, price in PRICES.items()
        ]
        return "\n".join(lines) + "\n"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    region: str
    date: str
    prices: dict[str, float]


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
