"""The templates, deployed by deploy.sh to a stand-in and then used: a row goes from a back office to the API.

What AWS would refuse and the stand-in takes is not found here: see "Not verified" in docs/DEPLOY.md.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from examples.parcels.demo import demo
from local import provision
from local.legacy.customers import CustomerOffice
from local.legacy.office import BackOffice
from local.legacy.parcels import ParcelOffice
from local.legacy.server import Settings as OfficeSettings
from local.legacy.server import serving as serving_office
from tests.deploy.ecs.cloud import REGION, ROOT, Cloud, running
from tests.integration.worker_stack import wait_for

NAME = "parcels"
PACKAGES = f"{NAME}-packages-000000000000-{REGION}"
PASSWORD = "Correct-horse-7-battery"
SETTINGS = {
    "Name": NAME,
    "Region": REGION,
    "Bubble": "examples.parcels.bubble",
    "Image": f"000000000000.dkr.ecr.{REGION}.amazonaws.com/{NAME}@sha256:{'0' * 64}",
    "Repository": NAME,
    "GitHubRepository": "acme/parcels",
    "DomainPrefix": "acme-parcels",
    "PackageBucket": PACKAGES,
    "ReadsPackage": "functions/1.zip",
    "IngestPackage": "functions/1.zip",
    "UserPackage": "functions/1.zip",
    "Partner": "shop",
    "Office": "parcels",
    "OfficeUrl": "https://office.example.com",
    "edge.ApiHost": "origin.example.com",
    "edge.SignInHost": "acme-parcels.auth.eu-central-1.amazoncognito.com",
    "edge.OriginKey": "k" * 40,
}


async def test_a_row_goes_from_a_back_office_to_the_api(tmp_path: Path) -> None:
    async with running(tmp_path, SETTINGS) as cloud:
        await deployed(cloud)
        assert "No changes to deploy" in await cloud.deploy("network"), "the same template again changes nothing"
        async with back_offices(cloud) as offices:
            await migrated(cloud)
            async with AsyncExitStack() as services:
                tasks = [(await cloud.task(f"{NAME}-{name}"), name) for name in ("worker", "inbound", "poller")]
                started = [await services.enter_async_context(cloud.started(task, name)) for task, name in tasks]
                assert [await process.health_check() for process in started] == [0, 0, 0]
                await functions_redirected(cloud)
                await moved(cloud, offices["parcels"])
                await written(cloud)
                made = (await cloud.clients["dynamodb"].list_tables())["TableNames"]
                assert all(name.startswith(f"{NAME}-") for name in made), "a program made a table that no template has"
                leases = json.loads(await cloud.once(await operator(cloud, "leases", "list", "--json")))
                assert len(leases["leases"]) == 2, leases
            assert await started[0].health_check() != 0, "a task that is gone is not well"
        # It grows in place: nothing that holds data is made anew.
        before = await cloud.outputs(f"{NAME}-data")
        await cloud.deploy("network", "data", "Profile=large")
        assert await cloud.outputs(f"{NAME}-data") == before


async def deployed(cloud: Cloud) -> None:
    """All stacks, in the order of docs/DEPLOY.md."""
    await cloud.deploy("pipeline", "network", "data", "identity", "ops")
    await cloud.clients["s3"].put_object(Bucket=PACKAGES, Key=SETTINGS["ReadsPackage"], Body=package())
    await cloud.deploy("services", "api", "observe", "dashboards", "edge", "partner", "facade")


def package() -> bytes:
    """The functions' zip, one for all; the libraries come from here, where Lambda would find them in the zip."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        for room in ("api", "tidegate", "examples"):
            for file in sorted((ROOT / room).rglob("*.py")):
                written.write(file, str(file.relative_to(ROOT)))
    return archive.getvalue()


async def migrated(cloud: Cloud) -> None:
    """What RDS does at birth, then what the pipeline runs as one-off tasks."""
    owner = await cloud.task(f"{NAME}-owner", "migrate")
    password = owner.environment["PGPASSWORD"]
    address = cloud.postgres.dsn_for(provision.OWNER, password, provision.DATABASE)
    await provision.make_database(cloud.postgres.dsn, address, {provision.OWNER: password})
    assert "applied" in await cloud.once(owner)
    assert (await cloud.once(await cloud.task(f"{NAME}-owner", "logins"))).count("is in place") == 3


async def operator(cloud: Cloud, *verb: str) -> Any:
    return await cloud.task(f"{NAME}-operator", *verb)


@asynccontextmanager
async def back_offices(cloud: Cloud) -> AsyncIterator[dict[str, str]]:
    """Both back offices of the sample; their addresses and keys become the bubble's variables, in the one secret for them."""
    kinds: dict[str, type[BackOffice]] = {"parcels": ParcelOffice, "customers": CustomerOffice}
    urls: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for name, kind in kinds.items():
            settings = OfficeSettings(cloud.folder / name, "secret", rows=60, life_per_s=0)
            urls[name] = await stack.enter_async_context(serving_office(kind(argparse.Namespace()), settings))
        variables = {f"{name.upper()}_URL": url for name, url in urls.items()}
        variables |= {f"{name.upper()}_API_KEY": "secret" for name in urls}
        secret = (await cloud.outputs(f"{NAME}-data"))["Variables"]
        await cloud.clients["secretsmanager"].put_secret_value(SecretId=secret, SecretString=json.dumps(variables))
        yield urls


async def moved(cloud: Cloud, office: str) -> None:
    """The API shows a clerk exactly the parcels that the back office has, also after it changed some."""
    # Every parcel goes through an office, so who belongs to all of them sees every parcel.
    token = await signed_in(cloud, "dispatcher", demo.observer.groups if demo.observer else ())
    address = f"{await api(cloud)}/v1/parcels"
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as refused:
            assert refused.status == 401, "the gateway lets nobody in without a token"

        async def is_right() -> bool:
            return await shown(session, address, token) == await truth(session, office)

        await wait_for(is_right, 60)
        before = await truth(session, office)
        burst = {"creates": 3, "updates": 5, "corrections": 0, "deletes": 2}
        async with session.post(f"{office}/_sim/burst", json=burst) as answer:
            assert answer.status == 200
        assert await truth(session, office) != before
        await wait_for(is_right, 60)


async def shown(session: aiohttp.ClientSession, address: str, token: str) -> set[tuple[str, str]]:
    async with session.get(address, params={"limit": "200"}, headers={"Authorization": f"Bearer {token}"}) as answer:
        assert answer.status == 200, await answer.text()
        page = await answer.json()
    assert page["next_cursor"] is None
    return {(item["number"], item["status"]) for item in page["items"]}


async def truth(session: aiohttp.ClientSession, office: str) -> set[tuple[str, str]]:
    async with session.get(f"{office}/_sim/truth", params={"entity": "parcel"}) as answer:
        rows = [json.loads(line) for line in (await answer.text()).splitlines()]
    return {(row["key"], row["row"]["status"]) for row in rows}


async def api(cloud: Cloud) -> str:
    return f"{cloud.url}/_aws/execute-api/{(await cloud.outputs(f'{NAME}-api'))['ApiId']}"


async def written(cloud: Cloud) -> None:
    """A customer sends an event, which is filed, and keeps an attribute of its own."""
    headers = {"Authorization": f"Bearer {await signed_in(cloud, 'customer-1001')}"}
    address = await api(cloud)
    event = {"specversion": "1.0", "id": "wish-1", "source": "page", **(demo.event or {})}
    async with aiohttp.ClientSession(headers=headers) as session:
        kind = {"Content-Type": "application/cloudevents+json"}
        async with session.post(f"{address}/v1/events", data=json.dumps(event), headers=kind) as answer:
            assert answer.status == 202, await answer.text()
        async with session.post(f"{address}/v1/user", json={"language": "rm"}) as answer:
            assert answer.status in (200, 201), await answer.text()
        async with session.get(f"{address}/v1/user") as answer:
            assert "rm" in await answer.text()

    async def is_filed() -> bool:
        owner = cloud.postgres.dsn_for("postgres", (cloud.postgres.folder / "password").read_text(), provision.DATABASE)
        connection = await asyncpg.connect(owner)
        try:
            return bool(
                await connection.fetchval("SELECT count(*) = 1 FROM tidegate.inbound WHERE event_id = 'wish-1'")
            )
        finally:
            await connection.close()

    await wait_for(is_filed, 60)


async def signed_in(cloud: Cloud, name: str, groups: Sequence[str] = ()) -> str:
    """An access token for the page. The hosted pages are for browsers, so by password, which the template forbids."""
    cognito = cloud.clients["cognito-idp"]
    identity = await cloud.outputs(f"{NAME}-identity")
    pool, client = identity["Pool"], identity["PageClient"]
    await cognito.update_user_pool_client(
        UserPoolId=pool, ClientId=client, ExplicitAuthFlows=["ALLOW_ADMIN_USER_PASSWORD_AUTH"]
    )
    await cognito.admin_create_user(UserPoolId=pool, Username=name, MessageAction="SUPPRESS")
    await cognito.admin_set_user_password(UserPoolId=pool, Username=name, Password=PASSWORD, Permanent=True)
    for group in groups:
        await cognito.create_group(UserPoolId=pool, GroupName=group)
        await cognito.admin_add_user_to_group(UserPoolId=pool, Username=name, GroupName=group)
    answer = await cognito.admin_initiate_auth(
        UserPoolId=pool,
        ClientId=client,
        AuthFlow="ADMIN_USER_PASSWORD_AUTH",
        AuthParameters={"USERNAME": name, "PASSWORD": PASSWORD},
    )
    token: str = answer["AuthenticationResult"]["AccessToken"]
    return token


async def functions_redirected(cloud: Cloud) -> None:
    """The functions keep the environment of their template, but for addresses: the database's and the issuer's keys'."""
    functions = cloud.clients["lambda"]
    pool = (await cloud.outputs(f"{NAME}-identity"))["Pool"]
    for kind in ("reads", "ingest", "user"):
        described = await functions.get_function_configuration(FunctionName=f"{NAME}-{kind}")
        environment = described["Environment"]["Variables"]
        assert "{{resolve" not in str(environment)
        changed = cloud.redirected(environment)
        changed["TIDEGATE_TOKENS_JWKS_URL"] = f"{cloud.url}/{pool}/.well-known/jwks.json"
        await functions.update_function_configuration(FunctionName=f"{NAME}-{kind}", Environment={"Variables": changed})
