"""Each function as Lambda runs it: from its own package alone, under AWS' runtime client."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from local.lambda_runtime import LambdaRuntime
from tests.fakes import issuer
from tests.integration.library import READER_1, Library, opened
from tidegate.cli import main
from tidegate.cli.package_build import HANDLERS, assemble, write_zip

BUBBLES = {"reads": "tests.integration.library_bubble", "ingest": "tests.integration.edge_bubble",
           "user": "tests.integration.edge_bubble"}  # fmt: skip
# Nobody listens there.
AWS = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "x",
       "AWS_SECRET_ACCESS_KEY": "x", "TIDEGATE_INBOUND_STREAM": "s", "TIDEGATE_USER_TABLE": "t"}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with opened(tmp_path_factory.mktemp("library") / "migrations") as made:
        yield made


@pytest.fixture(scope="module")
def runtime() -> Iterator[LambdaRuntime]:
    with LambdaRuntime() as made:
        yield made


def event(method: str, path: str, body: object = None, claims: Mapping[str, Any] | None = READER_1) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    if claims is not None:
        headers["authorization"] = f"Bearer {issuer.signed(issuer.claims(**claims))}"
    return {
        "version": "2.0", "rawPath": path, "headers": headers, "body": msgspec.json.encode(body).decode(),
        "requestContext": {"http": {"method": method}, "requestId": "r"},
    }  # fmt: skip


class Package(msgspec.Struct, frozen=True):
    """A function's package, unzipped, and the names of others' packages in it."""

    folder: Path
    others: set[str]


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the command line makes it."""
    path = tmp_path_factory.mktemp("zip") / "reads.zip"
    assert main(["package", "reads", "--bubble", BUBBLES["reads"], "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def reads(zipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("reads")
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(folder)
    return Package(folder, {path.name.partition("-")[0] for path in folder.glob("*.dist-info")})


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of the function for events; that for users' attributes needs the same."""
    folder = tmp_path_factory.mktemp("writes")
    return Package(folder, set(assemble("ingest", BUBBLES["ingest"], folder)))


def test_the_reads_from_their_package(library: Library, runtime: LambdaRuntime, reads: Package) -> None:
    assert {"asyncpg", "joserfc", "msgspec"} <= reads.others
    assert not {"aiobotocore", "botocore", "SQLAlchemy", "alembic", "aiohttp", "pydantic", "setuptools"} & reads.others
    environment = {
        **issuer.environment(), "TIDEGATE_BUBBLE": BUBBLES["reads"], "TIDEGATE_DATABASE_URL": library.reader_url,
        "TIDEGATE_CURSOR_KEY": "k" * 32,
    }  # fmt: skip
    with runtime.sandbox(reads.folder, "api.handler.handler", environment) as sandbox:
        for _ in range(3):
            answer = sandbox.invoke(event("GET", "/v1/loans/L1"))
            assert (answer["statusCode"], msgspec.json.decode(answer["body"])["number"]) == (200, "L1")
        assert sandbox.invoke(event("GET", "/v1/loans/L3"))["statusCode"] == 404
        assert sandbox.invoke(event("GET", "/v1/loans/L1", claims=None))["statusCode"] == 401
        count = "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'reader_login'"
        assert library.fetch(library.postgres.dsn, count)[0]["n"] == 1, "one connection for one sandbox"
        library.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader_login'")
        assert sandbox.invoke(event("GET", "/v1/loans/L1"))["statusCode"] == 200, "a failover costs one reconnect"
        assert sandbox.invoke({"version": "1.0"})["statusCode"] == 503
        specification = msgspec.json.decode(sandbox.invoke(event("GET", "/v1/openapi.json", claims=None))["body"])
        assert specification["openapi"].startswith("3.1")
        assert sandbox.process.poll() is None


@pytest.mark.parametrize(
    ("function", "asked"),
    [
        (
            "ingest",
            ("POST", "/v1/events", {"specversion": "1.0", "id": "e", "type": "b.scan", "data": {"parcel": "P"}}),
        ),
        ("user", ("GET", "/v1/user", None)),
    ],
)
def test_the_writing_functions_from_their_packages(
    runtime: LambdaRuntime, writes: Package, function: str, asked: tuple[str, str, object]
) -> None:
    assert "aiobotocore" in writes.others
    assert not {"asyncpg", "SQLAlchemy", "alembic", "pydantic"} & writes.others
    environment = {**issuer.environment(), **AWS, "TIDEGATE_BUBBLE": BUBBLES[function]}
    customer = {"username": "customer-1"}
    with runtime.sandbox(writes.folder, f"{HANDLERS[function]}.handler", environment) as sandbox:
        assert sandbox.invoke(event(*asked, claims=None))["statusCode"] == 401
        answer = sandbox.invoke(event(*asked, claims=customer))
        # It came as far as AWS, which is not there.
        assert (answer["statusCode"], answer["headers"]["Content-Type"]) == (503, "application/problem+json")
        assert sandbox.invoke(event("TRACE", asked[1], claims=customer))["statusCode"] == 405


def test_the_same_input_makes_the_same_bytes(reads: Package, writes: Package, tmp_path: Path) -> None:
    """Two packages made one after the other have the same files of what both need, compiled ones above all."""
    both = [file.relative_to(reads.folder) for file in reads.folder.glob("*/**/*.pyc") if "joserfc" in file.parts]
    assert len(both) > 50
    assert all((reads.folder / file).read_bytes() == (writes.folder / file).read_bytes() for file in both)
    for name in ("1.zip", "2.zip"):
        write_zip(writes.folder / "joserfc", tmp_path / name)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_a_zip_is_compiled_and_has_nothing_of_others(zipped: Path) -> None:
    assert zipped.stat().st_size < 20_000_000
    with zipfile.ZipFile(zipped) as archive:
        names = set(archive.namelist())
        assert {"api/handler.py", "tests/integration/library_bubble.py"} <= names
        compiled = [name for name in names if name.endswith(".pyc") and name.startswith("api/")]
        assert len(compiled) == len([name for name in names if name.startswith("api/") and name.endswith(".py")]) > 10
        flags = int.from_bytes(archive.read(compiled[0])[4:8], "little")
        assert flags == 0b01, "by the hash of the source, which nobody looks at"
        assert not [name for name in names if name.startswith(("tidegate/cli/", "tidegate/migrations/", "botocore/"))]


def test_what_cannot_be_packed_is_one_clear_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "x.zip")]
    assert main(["package", "reads", "--bubble", "no_such_bubble", *output]) == 1
    assert "no_such_bubble" in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()
