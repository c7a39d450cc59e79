"""aiobotocore clients with bounded waits.

Endpoints, region and credentials come from the usual places (AWS_ENDPOINT_URL, AWS_REGION, the task's role, …);
botocore reads them itself. What botocore leaves open is closed here: how long to wait, how often to retry, how
many connections to keep. The waits are short on purpose: a caller has its own retry with a deadline, and a lease
must be renewed within seconds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache

import botocore
from aiobotocore.client import AioBaseClient
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from tidegate.aws.failures import aws_errors
from tidegate.aws.puts import write_puts_quickly
from tidegate.aws.subscription import KinesisParserFactory
from tidegate.aws.transport import BlocksSession
from tidegate.settings import AwsSettings


@asynccontextmanager
async def client(service: str, settings: AwsSettings | None = None) -> AsyncIterator[AioBaseClient]:
    """Open a client for "kinesis", "dynamodb", "s3", …; it closes with the block.

    Raises Fatal when region or credentials are missing. A Kinesis client answers GetRecords with a `RecordsPage`:
    call `get_records`, not `client.get_records`, and so for `subscribe_to_shard` and `put_records`.
    """
    settings = settings or AwsSettings()
    # A client's own errors while it opens are translated; those of the block are the block's business.
    with aws_errors(f"open a client for {service}"):
        opening = _session().create_client(service, region_name=_region(), config=_config(service, settings))
        opened = await opening.__aenter__()
    if service == "kinesis":
        write_puts_quickly(opened)
    try:
        yield opened
    finally:
        await opened.close()


@lru_cache(maxsize=1)
def _session() -> AioSession:
    """One session a process: it caches the service models (megabytes of JSON) and the credentials."""
    session = AioSession()
    session.register_component("response_parser_factory", KinesisParserFactory())
    return session


@lru_cache(maxsize=1)
def _user_agent() -> str:
    """Who calls, in a text that is made once: botocore makes its own anew for every call, a tenth of what a call costs.

    AWS_SDK_UA_APP_ID goes with it, as it does with botocore's.
    """
    session = _session()
    names = [session.user_agent(), f"Botocore/{botocore.__version__}"]
    if app_id := session.get_config_variable("user_agent_appid"):
        names.append(f"app/{app_id}")
    return " ".join(names)


def _region() -> str | None:
    # botocore reads AWS_DEFAULT_REGION only; containers on AWS get AWS_REGION.
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _config(service: str, settings: AwsSettings) -> AioConfig:
    options: dict[str, object] = {
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "max_pool_connections": settings.pool_size,
        "retries": {"mode": "standard", "total_max_attempts": settings.max_attempts},
        # A proxy or a bastion may drop idle connections silently; keep-alive finds out.
        "tcp_keepalive": True,
        "user_agent": _user_agent(),
        "http_session_cls": BlocksSession,
    }
    if service == "s3" and (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        # A stand-in on localhost has no wildcard DNS for bucket names.
        options["s3"] = {"addressing_style": "path"}
    return AioConfig(**options)
