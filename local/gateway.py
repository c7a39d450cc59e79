"""The API of the embedded stack: Cognito, API Gateway and Lambda of `ministack`, set up as they are in the cloud.

    deployment = await deploy(endpoint_url=…, region=…, bubble="examples.parcels.bubble", database_url=…,
                              users=[User("customer-1001", password)])
    tokens = await sign_in(deployment, "customer-1001", password)
    GET {deployment.api_url}/v1/parcels  with  Authorization: Bearer {tokens.access_token}

There is one function for the reads, one for events and one for users' attributes, as the routes say. Each is the
production handler, from this checkout or the installed wheel: its zip holds one import.

How ministack runs it (1.5.33): one worker process for each request in flight, started when needed and kept, a child
of ministack whose command line names the function (`runtime_pids`). One that is killed while idle is replaced at
the next request and nobody notices; killed during a request, that one request is answered 502. It writes a line to
its log for each request, for which ministack waits: a silent handler would cost 50 ms more. Issuer of the tokens
is Cognito's real address; ministack finds the keys of its pools by itself.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import secrets
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

import api
from api.routes import Route, gateway_routes
from tidegate.bubble import load
from tidegate.errors import BubbleError

FUNCTION = "tidegate-api"
RESOURCE_SERVER = "tidegate"
"""Scopes of machine clients are `tidegate/<scope>`."""

_MODULE = "tidegate_api"
_SHIM = '"""What the gateway invokes; the code is the package `api`."""\n\nfrom {module} import handler as handler\n'
_HANDLERS = {"reads": "api.handler", "ingest": "api.ingest_handler", "user": "api.user_handler"}
_ROLE = "arn:aws:iam::000000000000:role/tidegate-api"
_TIMEOUT_S = 20
_FIRST_ANSWER_S = 30.0
_REFUSALS = frozenset({"NotAuthorizedException", "UserNotFoundException", "InvalidParameterException"})


class DeployFailed(Exception):
    """The API does not answer after it was set up; the text holds its answer."""


class SignInRefused(Exception):
    """Wrong user name or password."""


class User(msgspec.Struct, frozen=True):
    """Somebody who may sign in, and the groups that the token will name."""

    username: str
    password: str
    groups: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"User({self.username!r})"


class Machine(msgspec.Struct, frozen=True):
    """A program that signs in by client credentials, and the scopes that its token will name."""

    name: str
    scopes: tuple[str, ...]


class Tokens(msgspec.Struct, frozen=True):
    """`expires_in` in seconds; a machine has an access token only."""

    access_token: str
    expires_in: int
    id_token: str = ""
    refresh_token: str = ""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What `deploy` made. `api_url` has no slash at its end; `machines` is name → client id and secret."""

    endpoint_url: str
    region: str
    api_url: str
    pool_id: str
    client_id: str
    issuer: str
    function: str
    machines: Mapping[str, tuple[str, str]]

    def __repr__(self) -> str:
        # The machines' secrets stay out of logs.
        return f"Deployment({self.api_url!r})"


async def deploy(
    *,
    endpoint_url: str,
    region: str,
    bubble: str,
    database_url: str,
    users: Sequence[User],
    machines: Sequence[Machine] = (),
    function: str = FUNCTION,
    edge: Mapping[str, str] | None = None,
) -> Deployment:
    """Set up user pool, functions and HTTP API, replacing those of an earlier start, and wait for a first answer.

    `edge` is what the functions that write need beside the others: the stream of arrivals, the users' table, and how
    to reach AWS. Without it there are reads only.

    Raises:
        DeployFailed: the API answers with an error.
    """
    async with AsyncExitStack() as stack:
        clients = _Clients(endpoint_url, region, stack)
        pool = _Pool(await clients.open("cognito-idp"), function)
        pool_id, client_id = await pool.make(users)
        credentials = await pool.add_machines(machines)
        issuer = f"https://cognito-idp.{region}.amazonaws.com/{pool_id}"
        audience = [client_id, *(machine_id for machine_id, _ in credentials.values())]
        keys_url = f"{endpoint_url}/{pool_id}/.well-known/jwks.json"
        everywhere = _everywhere(bubble, issuer, audience, keys_url)
        functions = await clients.open("lambda")
        arns = {
            kind: await _make_function(functions, _name(kind, function), _HANDLERS[kind], {**everywhere, **own})
            for kind, own in _environments(database_url, edge).items()
        }
        routes = _routes(bubble)
        api_id = await _make_api(await clients.open("apigatewayv2"), function, arns, routes, issuer, audience)
    deployment = Deployment(
        endpoint_url=endpoint_url, region=region, api_url=f"{endpoint_url}/_aws/execute-api/{api_id}", pool_id=pool_id,
        client_id=client_id, issuer=issuer, function=function, machines=credentials,
    )  # fmt: skip
    await _first_answer(deployment)
    return deployment


def _everywhere(bubble: str, issuer: str, audience: Sequence[str], keys_url: str) -> dict[str, str]:
    return {
        "TIDEGATE_BUBBLE": bubble,
        "TIDEGATE_TOKENS_ISSUER": issuer,
        "TIDEGATE_TOKENS_CLIENTS": ",".join(audience),
        # The issuer's name is Cognito's real address, where nobody knows this pool.
        "TIDEGATE_TOKENS_JWKS_URL": keys_url,
        "PYTHONPATH": search_path(bubble),
    }


def _environments(database_url: str, edge: Mapping[str, str] | None) -> dict[str, Mapping[str, str]]:
    """Kind of function → what it needs beside what all need."""
    reading = {
        "TIDEGATE_DATABASE_URL": database_url,
        "TIDEGATE_STATEMENT_CACHE_SIZE": "16",
        "TIDEGATE_CURSOR_KEY": secrets.token_urlsafe(32),
        "TIDEGATE_ASK_AGAIN_S": "1",
    }
    return {"reads": reading, **({"ingest": edge, "user": edge} if edge is not None else {})}


def _routes(bubble: str) -> tuple[Route, ...]:
    try:
        return gateway_routes(load(bubble))
    except BubbleError:
        # The function itself says so, to whoever asks.
        return (Route("GET", "/v1/openapi.json", "reads", is_open=True),)


async def sign_in(deployment: Deployment, username: str, password: str) -> Tokens:
    """Raises SignInRefused."""
    async with AsyncExitStack() as stack:
        cognito = await _Clients(deployment.endpoint_url, deployment.region, stack).open("cognito-idp")
        try:
            answer = await cognito.initiate_auth(
                AuthFlow="USER_PASSWORD_AUTH",
                ClientId=deployment.client_id,
                AuthParameters={"USERNAME": username, "PASSWORD": password},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in _REFUSALS:
                raise SignInRefused("user name or password is wrong") from None
            raise
    result = answer["AuthenticationResult"]
    return Tokens(result["AccessToken"], result["ExpiresIn"], result["IdToken"], result["RefreshToken"])


async def sign_in_machine(deployment: Deployment, name: str) -> Tokens:
    """Raises SignInRefused when the user pool does not know the machine's credentials."""
    client_id, secret = deployment.machines[name]
    basic = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Basic {basic}"}) as session,
        session.post(f"{deployment.endpoint_url}/oauth2/token", data={"grant_type": "client_credentials"}) as answer,
    ):
        if answer.status != 200:
            raise SignInRefused(f"{name}: {await answer.text()}")
        granted = await answer.json()
    return Tokens(granted["access_token"], granted["expires_in"])


def runtime_pids(parent_pid: int, function: str = FUNCTION) -> list[int]:
    """The worker processes of one function of the ministack that runs as `parent_pid`.

    Where the system has no /proc there are none to be found.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes()
            # pid (name) state parent …; a name may hold spaces and brackets.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == parent_pid and f"/ministack-lambda-{function}-".encode() in argv:
            found.append(int(entry.name))
    return sorted(found)


class _Clients:
    """AWS clients of one endpoint; nobody checks the credentials here."""

    def __init__(self, endpoint_url: str, region: str, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._options = {
            "endpoint_url": endpoint_url,
            "region_name": region,
            "aws_access_key_id": "local",
            "aws_secret_access_key": "local",
        }

    async def open(self, service: str) -> Any:
        return await self._stack.enter_async_context(get_session().create_client(service, **self._options))


class _Pool:
    """The Cognito user pool under construction."""

    def __init__(self, cognito: Any, name: str) -> None:
        self._cognito = cognito
        self._name = name
        self._id = ""

    async def make(self, users: Sequence[User]) -> tuple[str, str]:
        """A new pool with its users; returns the ids of the pool and of the page's client."""
        cognito = self._cognito
        for pool in (await cognito.list_user_pools(MaxResults=60))["UserPools"]:
            if pool["Name"] == self._name:
                await cognito.delete_user_pool(UserPoolId=pool["Id"])
        # The passwords are generated, so their length is what counts.
        kinds = ("Uppercase", "Lowercase", "Numbers", "Symbols")
        policy = {"MinimumLength": 12} | {f"Require{kind}": False for kind in kinds}
        made = await cognito.create_user_pool(PoolName=self._name, Policies={"PasswordPolicy": policy})
        self._id = made["UserPool"]["Id"]
        client = await cognito.create_user_pool_client(
            UserPoolId=self._id,
            ClientName="page",
            ExplicitAuthFlows=["ALLOW_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"],
            PreventUserExistenceErrors="ENABLED",
        )
        for group in sorted({group for user in users for group in user.groups}):
            await cognito.create_group(UserPoolId=self._id, GroupName=group)
        for user in users:
            await self._add_user(user)
        return self._id, client["UserPoolClient"]["ClientId"]

    async def add_machines(self, machines: Sequence[Machine]) -> dict[str, tuple[str, str]]:
        """Confidential clients with their scopes; returns name → client id and secret."""
        scopes = sorted({scope for machine in machines for scope in machine.scopes})
        if scopes:
            await self._cognito.create_resource_server(
                UserPoolId=self._id,
                Identifier=RESOURCE_SERVER,
                Name=RESOURCE_SERVER,
                Scopes=[{"ScopeName": scope, "ScopeDescription": scope} for scope in scopes],
            )
        credentials = {}
        for machine in machines:
            made = await self._cognito.create_user_pool_client(
                UserPoolId=self._id,
                ClientName=machine.name,
                GenerateSecret=True,
                AllowedOAuthFlows=["client_credentials"],
                AllowedOAuthFlowsUserPoolClient=True,
                AllowedOAuthScopes=[f"{RESOURCE_SERVER}/{scope}" for scope in machine.scopes],
            )
            client = made["UserPoolClient"]
            credentials[machine.name] = (client["ClientId"], client["ClientSecret"])
        return credentials

    async def _add_user(self, user: User) -> None:
        name = {"UserPoolId": self._id, "Username": user.username}
        await self._cognito.admin_create_user(**name, MessageAction="SUPPRESS")
        await self._cognito.admin_set_user_password(**name, Password=user.password, Permanent=True)
        for group in user.groups:
            await self._cognito.admin_add_user_to_group(**name, GroupName=group)


def _name(kind: str, function: str) -> str:
    """The reads have the name itself; nothing of the others' begins with it, see `runtime_pids`."""
    return function if kind == "reads" else f"{kind}-{function}"


async def _make_function(client: Any, name: str, module: str, environment: Mapping[str, str]) -> str:
    """Returns the ARN."""
    with suppress(client.exceptions.ResourceNotFoundException):
        await client.delete_function(FunctionName=name)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr(f"{_MODULE}.py", _SHIM.format(module=module))
    made = await client.create_function(
        FunctionName=name,
        Runtime="python3.12",
        Role=_ROLE,
        Handler=f"{_MODULE}.handler",
        Code={"ZipFile": archive.getvalue()},
        Timeout=_TIMEOUT_S,
        MemorySize=256,
        Environment={"Variables": dict(environment)},
    )
    await client.add_permission(
        FunctionName=name, StatementId="gateway", Action="lambda:InvokeFunction", Principal="apigateway.amazonaws.com"
    )
    arn: str = made["FunctionArn"]
    return arn


async def _make_api(
    client: Any, name: str, arns: Mapping[str, str], routes: Sequence[Route], issuer: str, audience: list[str]
) -> str:
    """Returns the id. All routes want a token but those that are open; a route without its function is left out."""
    for old in (await client.get_apis())["Items"]:
        if old["Name"] == name:
            await client.delete_api(ApiId=old["ApiId"])
    api_id: str = (await client.create_api(Name=name, ProtocolType="HTTP"))["ApiId"]
    targets = {}
    for kind, arn in arns.items():
        integration = await client.create_integration(
            ApiId=api_id, IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
        )
        targets[kind] = f"integrations/{integration['IntegrationId']}"
    authorizer = await client.create_authorizer(
        ApiId=api_id,
        Name="access-token",
        AuthorizerType="JWT",
        IdentitySource=["$request.header.Authorization"],
        JwtConfiguration={"Issuer": issuer, "Audience": audience},
    )
    guarded = {"AuthorizationType": "JWT", "AuthorizerId": authorizer["AuthorizerId"]}
    for route in routes:
        if route.function in targets:
            key = f"{route.method} {route.path}"
            check = {"AuthorizationType": "NONE"} if route.is_open else guarded
            await client.create_route(ApiId=api_id, RouteKey=key, Target=targets[route.function], **check)
    await client.create_stage(ApiId=api_id, StageName="$default", AutoDeploy=True)
    return api_id


async def _first_answer(deployment: Deployment) -> None:
    timeout = aiohttp.ClientTimeout(total=_FIRST_ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{deployment.api_url}/v1/openapi.json") as answer,
    ):
        if answer.status != 200:
            raise DeployFailed(f"the API answers {answer.status}: {(await answer.text())[:500]}")


def search_path(bubble: str) -> str:
    """Where the function finds the package `api` and the bubble, beyond what is installed."""
    places = [Path(api.__file__).resolve().parent.parent]
    spec = importlib.util.find_spec(bubble.partition(".")[0])
    if spec is not None and spec.submodule_search_locations:
        places += [Path(place).resolve().parent for place in spec.submodule_search_locations]
    elif spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).resolve().parent)
    # Installed packages come after the standard library, where they belong.
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return os.pathsep.join(dict.fromkeys(str(place) for place in places if place not in installed))
