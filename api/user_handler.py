"""Users' own attributes: `api.user_handler.handler` is what Lambda calls. It knows DynamoDB, and no database.

`erase` is for administrators, not for the gateway: invoked with {"subject": …} it deletes whatever is kept of that user.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import msgspec

from api.cors import Cors
from api.entry import Function, Served
from api.settings import UserSettings
from api.tokens import verifier
from api.user import User
from tidegate import aws
from tidegate.bubble import load
from tidegate.settings import AwsSettings, read
from tidegate.users import UserStore

# The caller waits; two tries fit well within the gateway's 30 s.
_AWS = AwsSettings(connect_timeout_s=1.0, read_timeout_s=4.0, max_attempts=2)


async def serve(connections: int = 4) -> Served:
    """What the environment names; `connections` to AWS at once. Raises Fatal."""
    settings = read(UserSettings, os.environ)
    bubble = load(settings.bubble)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            aws.client("dynamodb", msgspec.structs.replace(_AWS, pool_size=connections))
        )
        kept = stack.pop_all()
    app = User(bubble, UserStore(client, settings.user_table), settings)
    return Served(app, verifier(settings.tokens), kept.aclose, Cors(settings.cors_origins), settings.origin_key)


handler = Function(serve)


class _Erasure(msgspec.Struct, forbid_unknown_fields=True):
    subject: str


def erase(event: object, context: object) -> dict[str, bool]:
    """{"erased": whether there was anything}. Raises, as whoever asked must know that it was not done."""
    return {"erased": asyncio.run(_erase(msgspec.convert(event, _Erasure).subject))}


async def _erase(subject: str) -> bool:
    settings = read(UserSettings, os.environ)
    async with aws.client("dynamodb", _AWS) as client:
        return await UserStore(client, settings.user_table).erase(subject)
