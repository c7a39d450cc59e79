"""AWS error codes → our four classes. The one place where that is decided.

    with aws_errors("renew lease shard-1", superseded={"ConditionalCheckFailedException"}):
        await client.update_item(...)

Transient: throttles, 5xx, time-outs, broken connections, a resource that is just changing. Superseded: only the
codes the caller names, since a failed condition means something else to everybody. Fatal: what a person must
mend (permissions, names, malformed requests). An unknown code counts by its HTTP status: 5xx and 429 are
Transient, the rest Fatal, and a test goes through botocore's own models so that few codes stay unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from aiohttp import ClientError as TransportError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidProxiesConfigError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as BotocoreConnectionError
from botocore.parsers import ResponseParserError

from tidegate.errors import Fatal, Rejected, Superseded, TidegateError, Transient

TRANSIENT_CODES = frozenset(
    {
        # throttled
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "KMSThrottlingException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        # unavailable
        "InternalError",
        "InternalFailure",
        "InternalFailureException",
        "InternalServerError",
        "InternalServerException",
        "InternalServiceError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        # timed out
        "RequestTimeout",
        "RequestTimeoutException",
        # changing just now, or overtaken by a request at the same time: the same step works a moment later
        "BackupInUseException",
        "ConditionalRequestConflict",
        "ExportConflictException",
        "ImportConflictException",
        "OperationAborted",
        "ReplicatedWriteConflictException",
        "ResourceInUseException",
        "TableInUseException",
        "TransactionCanceledException",
        "TransactionConflictException",
        "TransactionInProgressException",
        # a stale token: ask for a new one and go on
        "ExpiredIteratorException",
        "ExpiredNextTokenException",
    }
)

# One object or item is wrong or gone; the next one may be fine.
REJECTED_CODES = {
    "404": "not_found",
    "InvalidObjectState": "archived",
    "ItemCollectionSizeLimitExceededException": "too_large",
    "NoSuchKey": "not_found",
    "NoSuchVersion": "not_found",
}

FATAL_CODES = frozenset(
    {
        # permissions and identity
        "403",
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "KMSAccessDeniedException",
        "KMSDisabledException",
        "KMSInvalidStateException",
        "KMSNotFoundException",
        "KMSOptInRequired",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
        # names that do not exist, or exist already
        "BackupNotFoundException",
        "BucketAlreadyExists",
        "BucketAlreadyOwnedByYou",
        "ExportNotFoundException",
        "GlobalTableAlreadyExistsException",
        "GlobalTableNotFoundException",
        "ImportNotFoundException",
        "IndexNotFoundException",
        "NoSuchAnnotation",
        "NoSuchBucket",
        "NoSuchUpload",
        "PolicyNotFoundException",
        "ReplicaAlreadyExistsException",
        "ReplicaNotFoundException",
        "ResourceNotFoundException",
        "TableAlreadyExistsException",
        "TableNotFoundException",
        # requests that can never work as they are
        "AnnotationLimitExceeded",
        "AnnotationNameTooLong",
        "ConditionalCheckFailedException",
        "ContinuousBackupsUnavailableException",
        "DryRunOperationException",
        "DuplicateItemException",
        "EncryptionTypeMismatch",
        "IdempotencyParameterMismatch",
        "IdempotentParameterMismatchException",
        "InvalidAction",
        "InvalidAnnotationName",
        "InvalidArgument",
        "InvalidArgumentException",
        "InvalidExportTimeException",
        "InvalidParameterValue",
        "InvalidPrefix",
        "InvalidRequest",
        "InvalidRestoreTimeException",
        "InvalidWriteOffset",
        "ObjectAlreadyInActiveTierError",
        "ObjectNotInActiveTierError",
        "PointInTimeRecoveryUnavailableException",
        "PreconditionFailed",
        "SerializationException",
        "TooManyParts",
        "UnknownOperationException",
        "UnsupportedMediaType",
        "ValidationError",
        "ValidationException",
    }
)

_VENDOR_ERRORS = (BotoCoreError, ClientError, ResponseParserError, TransportError, OSError)
# Of botocore's own errors these come from the network or from the service that hands out credentials. The rest
# (no region, no credentials, wrong parameters) will be the same next time.
_PASSING_ERRORS = (
    BotocoreConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
)


@contextmanager
def aws_errors(doing: str, *, superseded: Collection[str] = ()) -> Iterator[None]:
    """Translate what AWS calls in the block raise. `doing` says what was tried, for the reader of the log."""
    try:
        yield
    except _VENDOR_ERRORS as error:
        raise translate(error, doing, superseded=superseded) from error


def translate(error: Exception, doing: str = "call AWS", *, superseded: Collection[str] = ()) -> TidegateError:
    """One vendor error as one of ours, not raised. Codes in `superseded` become Superseded."""
    code = error_code(error)
    if code is not None:
        return _translate_code(code, f"could not {doing}: {error}", error, superseded)
    detail = f"could not {doing}: {type(error).__name__}: {error}"
    if isinstance(error, BotoCoreError):
        passing = isinstance(error, _PASSING_ERRORS) and not isinstance(error, InvalidProxiesConfigError)
        return Transient(detail) if passing else Fatal(detail)
    # What is left: a garbled reply, a broken connection, a time-out.
    return Transient(detail)


def error_code(error: BaseException | None) -> str | None:
    """The AWS code of an error, or of the vendor error one of ours was raised from; None when it has none."""
    if isinstance(error, TidegateError):
        error = error.__cause__
    if not isinstance(error, ClientError):
        return None
    return str(error.response.get("Error", {}).get("Code", "")) or None


def is_transient_code(code: str) -> bool:
    """Whether one entry of a partly failed PutRecords may be tried again."""
    return code in TRANSIENT_CODES


def _translate_code(code: str, detail: str, error: Exception, superseded: Collection[str]) -> TidegateError:
    if code in superseded:
        return Superseded(detail)
    if code in TRANSIENT_CODES:
        return Transient(detail)
    if code in REJECTED_CODES:
        return Rejected(REJECTED_CODES[code], detail)
    if code in FATAL_CODES:
        return Fatal(detail)
    status = _http_status(error)
    return Transient(detail) if status >= 500 or status == 429 else Fatal(detail)


def _http_status(error: Exception) -> int:
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
