"""TLS before a PostgreSQL that has none: the wheel's server is built without it, Aurora takes nothing else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# PostgreSQL's SSLRequest: a length of 8 and the code 1234 5679 (docs: "Message Formats").
_SSL_REQUEST = (8).to_bytes(4) + (1234 << 16 | 5679).to_bytes(4)


@asynccontextmanager
async def tls_only(port: int, roots: Path) -> AsyncIterator[int]:
    """A port on 127.0.0.1 that leads to the server at `port`, for TLS only; `roots` is written, to check it with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity = roots.with_suffix(".key.pem")
    _certify(roots, identity)
    context.load_cert_chain(identity)

    connections: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[asyncio.current_task()] = writer
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            if await reader.readexactly(8) == _SSL_REQUEST:
                writer.write(b"S")
                await writer.drain()
                await writer.start_tls(context)
                inward, outward = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pump(reader, outward), _pump(inward, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in connections.values():
            writer.transport.abort()
        # What is aborted ends by itself; a task that were cancelled here would be reported as a failure.
        await asyncio.gather(*filter(None, connections))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await source.read(65_536):
            sink.write(chunk)
            await sink.drain()
    sink.close()


def _certify(roots: Path, identity: Path) -> None:
    """A certificate of its own for 127.0.0.1, and the file with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    roots.write_bytes(pem)
    identity.write_bytes(private + pem)
