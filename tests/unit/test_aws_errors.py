"""AWS errors in our four classes; a code that AWS documents and we do not know fails here."""

from __future__ import annotations

import aiohttp
import botocore.session
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from tidegate.aws import aws_errors, error_code, is_transient_code, translate
from tidegate.aws.failures import FATAL_CODES, REJECTED_CODES, TRANSIENT_CODES
from tidegate.errors import Fatal, Rejected, Superseded, TidegateError, Transient


def refused(code: str, status: int = 400) -> ClientError:
    reply = {"Error": {"Code": code, "Message": "because"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(reply, "SomeCall")


@pytest.mark.parametrize("service", ["kinesis", "dynamodb", "s3"])
def test_every_code_of_the_service_is_mapped(service: str) -> None:
    model = botocore.session.get_session().get_service_model(service)
    known = TRANSIENT_CODES | FATAL_CODES | REJECTED_CODES.keys()
    assert {shape.error_code for shape in model.error_shapes} - known == set()


def test_no_code_is_in_two_classes() -> None:
    assert not TRANSIENT_CODES & FATAL_CODES
    assert not REJECTED_CODES.keys() & (TRANSIENT_CODES | FATAL_CODES)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("ProvisionedThroughputExceededException", Transient),
        ("ThrottlingException", Transient),
        ("SlowDown", Transient),
        ("RequestTimeout", Transient),
        ("InternalServerError", Transient),
        ("ExpiredIteratorException", Transient),
        ("ResourceInUseException", Transient),
        ("NoSuchKey", Rejected),
        ("AccessDeniedException", Fatal),
        ("ResourceNotFoundException", Fatal),
        ("ValidationException", Fatal),
        ("UnrecognizedClientException", Fatal),
        ("ConditionalCheckFailedException", Fatal),
    ],
)
def test_codes(code: str, expected: type[TidegateError]) -> None:
    translated = translate(refused(code), "do it")
    assert type(translated) is expected
    assert "could not do it" in str(translated)
    assert code in str(translated)
    assert is_transient_code(code) == (expected is Transient)


@pytest.mark.parametrize(
    ("status", "expected"), [(500, Transient), (503, Transient), (429, Transient), (400, Fatal), (403, Fatal)]
)
def test_an_unknown_code_counts_by_its_status(status: int, expected: type[TidegateError]) -> None:
    assert type(translate(refused("SomethingNew", status))) is expected


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://x"),
        ConnectTimeoutError(endpoint_url="http://x"),
        ReadTimeoutError(endpoint_url="http://x"),
        CredentialRetrievalError(provider="container", error_msg="away"),
        ResponseParserError("half a reply"),
        aiohttp.ClientPayloadError("cut"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_network_is_transient(error: Exception) -> None:
    assert type(translate(error)) is Transient


@pytest.mark.parametrize(
    "error",
    [NoCredentialsError(), NoRegionError(), ParamValidationError(report="wrong")],
    ids=lambda error: type(error).__name__,
)
def test_what_will_be_the_same_next_time_is_fatal(error: Exception) -> None:
    assert type(translate(error)) is Fatal


def test_a_failed_condition_is_superseded_where_the_caller_says_so() -> None:
    with (
        pytest.raises(Superseded) as raised,
        aws_errors("renew", superseded={"ConditionalCheckFailedException"}),
    ):
        raise refused("ConditionalCheckFailedException")
    assert error_code(raised.value) == "ConditionalCheckFailedException"
    assert isinstance(raised.value.__cause__, ClientError)


def test_other_exceptions_pass() -> None:
    with pytest.raises(KeyError), aws_errors("do it"):
        raise KeyError("a bug")
    with pytest.raises(Superseded), aws_errors("do it"):
        raise Superseded("ours")


def test_error_code_of_what_has_none() -> None:
    assert error_code(None) is None
    assert error_code(KeyError()) is None
    assert error_code(Transient("on its own")) is None
