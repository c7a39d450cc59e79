"""The one exception of this server; it carries the error code that the AWS clients know."""

from __future__ import annotations


class Refused(Exception):
    """A call that is answered with an AWS error. `code` goes to `__type`, `text` to `message`."""

    def __init__(self, code: str, text: str, *, status: int = 400) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.status = status


class LogDamaged(Exception):
    """A log holds something unreadable before its end, or its directory is in use; a person must look."""


def invalid_argument(text: str) -> Refused:
    return Refused("InvalidArgumentException", text)


def not_found(text: str) -> Refused:
    return Refused("ResourceNotFoundException", text)


def in_use(text: str) -> Refused:
    return Refused("ResourceInUseException", text)


def limit_exceeded(text: str) -> Refused:
    return Refused("LimitExceededException", text)


def validation(text: str) -> Refused:
    return Refused("ValidationException", text)


def throughput_exceeded(text: str) -> Refused:
    return Refused("ProvisionedThroughputExceededException", text)
