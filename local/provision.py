"""What a deployment's templates would create, on the embedded stack: stream, buckets, database logins, schema.

Everything may be there already; then it is left as it is.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Mapping

import asyncpg
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from tidegate import access, migrate, users
from tidegate.bubble import Bubble

DATABASE = "tidegate"
OWNER = "tidegate_owner"
LOGINS: Mapping[str, str] = {
    "worker_login": access.WORKER,
    "reader_login": access.READER,
    "operator_login": access.OPERATOR,
}
"""Login → the role it is a member of."""


async def make_stream(environment: Mapping[str, str], stream: str, shards: int) -> None:
    async with get_session().create_client("kinesis", **_client(environment, "AWS_ENDPOINT_URL_KINESIS")) as client:
        try:
            await client.create_stream(StreamName=stream, ShardCount=shards)
        except ClientError as error:
            _unless(error, "ResourceInUseException")
        waiter = client.get_waiter("stream_exists")
        await waiter.wait(StreamName=stream, WaiterConfig={"Delay": 1, "MaxAttempts": 20})


async def make_buckets(environment: Mapping[str, str], buckets: Iterable[str]) -> None:
    async with get_session().create_client("s3", **_client(environment, "AWS_ENDPOINT_URL")) as client:
        for bucket in buckets:
            try:
                await client.create_bucket(
                    Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": environment["AWS_REGION"]}
                )
            except ClientError as error:
                _unless(error, "BucketAlreadyOwnedByYou", "BucketAlreadyExists")


async def make_user_table(environment: Mapping[str, str], table: str) -> None:
    async with get_session().create_client("dynamodb", **_client(environment, "AWS_ENDPOINT_URL")) as client:
        try:
            await client.create_table(**users.table_definition(table))
        except ClientError as error:
            _unless(error, "ResourceInUseException")


async def make_database(superuser: str, owner: str, passwords: Mapping[str, str]) -> None:
    """The database and its owner, who is no superuser, as on Aurora. `superuser`, `owner`: addresses."""
    connection = await asyncpg.connect(superuser)
    try:
        await _quiet(connection)
        await _login(connection, OWNER, passwords[OWNER], "CREATEROLE")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f'CREATE DATABASE "{DATABASE}" OWNER "{OWNER}"')
    finally:
        await connection.close()
    connection = await asyncpg.connect(owner)
    await connection.close()


async def migrate_database(owner: str, bubble: Bubble, path: str) -> None:
    """Bring the schema to this release and this bubble. `path` is the bubble's import path."""
    folder = migrate.migrations_of(importlib.import_module(path))
    # It runs a loop of its own.
    await asyncio.to_thread(migrate.upgrade, owner, bubble, folder)


async def make_logins(superuser: str, passwords: Mapping[str, str]) -> None:
    """The programs' logins; after `migrate_database`, which makes the roles that they are members of."""
    connection = await asyncpg.connect(superuser)
    try:
        await _quiet(connection)
        for login, role in LOGINS.items():
            await _login(connection, login, passwords[login], "")
            await connection.execute(f'GRANT {role} TO "{login}"')
    finally:
        await connection.close()


async def _login(connection: asyncpg.Connection, name: str, password: str, options: str) -> None:
    known = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
    statement = await connection.fetchval(
        "SELECT format('%s ROLE %I LOGIN %s PASSWORD %L', $1::text, $2::text, $3::text, $4::text)",
        "ALTER" if known else "CREATE",
        name,
        options,
        password,
    )
    await connection.execute(statement)


async def _quiet(connection: asyncpg.Connection) -> None:
    """A statement that fails is not logged with its text, which holds a password."""
    await connection.execute("SET log_min_error_statement = panic")


def _client(environment: Mapping[str, str], endpoint: str) -> dict[str, str]:
    return {
        "endpoint_url": environment[endpoint],
        "region_name": environment["AWS_REGION"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }


def _unless(error: ClientError, *codes: str) -> None:
    if error.response["Error"]["Code"] not in codes:
        raise error
