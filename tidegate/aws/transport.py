"""How replies come in: as aiobotocore does it, but for GetRecords, whose bodies stay the blocks that were received.

A page of records is a text of up to 14 MB. To join it from its blocks is to fetch all of it from memory once more, and
whoever reads it (`tidegate.aws.records`) looks at one part after the other anyhow.
"""

from __future__ import annotations

from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientError, ClientResponse
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

_TARGET = "X-Amz-Target"
_GET_RECORDS = b".GetRecords"
_OK = 200


class BlocksSession(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's session. The content of a GetRecords reply is a list of bytes, that of all others bytes."""

    async def send(self, request: Any) -> AioAWSResponse:
        """Raises what aiobotocore's own does: errors of botocore, which its retries understand."""
        if not _is_get_records(request):
            return await super().send(request)
        # Else it would be read, and joined, at once.
        request.stream_output = True
        response = await super().send(request)
        if response.status_code == _OK:
            response = _Blocks(response.url, response.status_code, response.headers, response.raw)
        try:
            await response.content
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except ClientError as error:
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        return response


class _Blocks(AioAWSResponse):  # type: ignore[misc]
    _blocks: list[bytes] | None = None

    async def _content_prop(self) -> list[bytes]:
        if self._blocks is None:
            self._blocks = await _read(self.raw)
        return self._blocks


def _is_get_records(request: Any) -> bool:
    target = request.headers.get(_TARGET, b"")
    return (target if isinstance(target, bytes) else target.encode()).endswith(_GET_RECORDS)


async def _read(response: ClientResponse) -> list[bytes]:
    """Raises errors of aiohttp, and TimeoutError; a connection that has not done its work is closed then."""
    blocks = []
    try:
        while block := await response.content.readany():
            blocks.append(block)
    except BaseException:
        response.close()
        raise
    return blocks
