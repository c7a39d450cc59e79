"""Lambda on a laptop: the runtime API that AWS' own runtime client talks to, and a sandbox process that runs it.

    with LambdaRuntime() as runtime, runtime.sandbox(folder, "api.handler.handler", environment) as sandbox:
        answer = sandbox.invoke(event)

`folder` is an unzipped package. The process sees it, the standard library and the runtime client, and nothing else of this
machine's Python: what is missing in the package is missing here too.
"""

from __future__ import annotations

import http.server
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidegate.cli.package_build import copy_installed

_NEXT = "/2018-06-01/runtime/invocation/next"
_TIMEOUT_S = 30.0
_START = """
import sys
sys.path[:0] = sys.argv[1:3]
from awslambdaric import __main__
__main__.main(['', sys.argv[3]])
"""
_CLIENT = ("awslambdaric", "simplejson", "snapshot-restore-py")


class HandlerFailed(Exception):
    """The handler raised, or the sandbox ended; the text says what it said."""


class LambdaRuntime:
    """AWS' runtime client, and for each sandbox a runtime API on a port of its own."""

    def __init__(self) -> None:
        self._client = tempfile.TemporaryDirectory()

    def __enter__(self) -> LambdaRuntime:
        # Alone, so that it brings nothing along that could help a package.
        for name in _CLIENT:
            copy_installed(name, Path(self._client.name))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.cleanup()

    @contextmanager
    def sandbox(self, folder: Path, handler: str, environment: Mapping[str, str]) -> Iterator[Sandbox]:
        """A process that runs `handler` from `folder`; it ends with the block."""
        events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        with _listening(_handler(events, answers)) as port:
            stated = {
                "PATH": os.environ["PATH"],
                "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
                "AWS_LAMBDA_FUNCTION_NAME": "local",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
                "AWS_LAMBDA_FUNCTION_VERSION": "1",
                "LAMBDA_TASK_ROOT": str(folder),
                **environment,
            }
            # -I and -S: neither this folder nor what is installed here.
            argv = [sys.executable, "-I", "-S", "-c", _START, str(folder), self._client.name, handler]
            process = subprocess.Popen(argv, env=stated, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            try:
                yield Sandbox(process, events, answers)
            finally:
                process.kill()
                process.wait()
                # Whoever still waits for an event on behalf of the process goes home.
                events.put(("", b""))


@contextmanager
def _listening(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Sandbox:
    """A process that waits for events."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        events: queue.Queue[tuple[str, bytes]],
        answers: queue.Queue[tuple[str, bytes]],
    ) -> None:
        self.process = process
        self._events = events
        self._answers = answers

    def invoke(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The handler's answer. Raises HandlerFailed."""
        request_id = str(uuid.uuid4())
        self._events.put((request_id, json.dumps(event).encode()))
        try:
            path, body = self._answers.get(timeout=_TIMEOUT_S)
        except queue.Empty:
            raise HandlerFailed(f"no answer within {_TIMEOUT_S:g} s") from None
        if not path.endswith(f"/{request_id}/response"):
            raise HandlerFailed(body.decode())
        answer: dict[str, Any] = json.loads(body)
        return answer


def _handler(
    events: queue.Queue[tuple[str, bytes]], answers: queue.Queue[tuple[str, bytes]]
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request_id, event = events.get()
            if not request_id:
                return
            self.send_response(200 if self.path == _NEXT else 404)
            self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
            self.send_header("Lambda-Runtime-Deadline-Ms", str(round((time.time() + _TIMEOUT_S) * 1000)))
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:local:0:function:local")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(event)))
            self.end_headers()
            self.wfile.write(event)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answers.put((self.path, body))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
