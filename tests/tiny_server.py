"""A guard's server around a stand-in for the model, and clients of it, for tests."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import httpx2
from PIL import Image

from srlhfv_jax.guard.service import app as application, server as servers
from srlhfv_jax.guard.service.access import Access
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.v1.parse import Names

NAMES = Names(guard="tiny-guard", policy="tiny-policy", scorer="tiny-scorer")
PATIENCE_S = 20.0  # of a test, for something that must happen


class Served(NamedTuple):
    port: int
    http: httpx2.Client
    stop: Callable[[], None]  # what SIGTERM does; does not wait

    def moderate(self, **fields: Any) -> httpx2.Response:
        return self.http.post("/moderate", json=fields)

    def health(self) -> dict[str, Any]:
        return self.http.get("/health").json()


class Model:
    """A batched model that remembers its batches and, once `shut`, works only when it is `open` again."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        self.batches.append(list(items))
        assert self.gate.wait(PATIENCE_S)
        return [{"prompt": item.prompt, "severity": len(item.prompt) / 7} for item in items]

    @property
    def seen(self) -> list[Any]:
        return [item for batch in self.batches for item in batch]


@contextlib.contextmanager
def serving(
    moderate: application.Moderate,
    generate: application.Generate | None = None,
    access: Access = Access(),
    score: application.Score | None = None,
    **limits: Any,
) -> Iterator[Served]:
    bounds = Limits(**{"wait_s": 0.0} | limits)
    listening = servers.listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = application.make_app(moderate, generate, bounds, access, score=score, names=NAMES)
    server = servers.make_server(app, bounds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True

    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
            until(lambda: server.started)
            yield Served(port, http, stop)
    finally:
        if isinstance(moderate, Model):
            moderate.gate.set()
        stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Return once it is true."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def at_once(served: Served, bodies: Sequence[dict[str, Any]], path: str = "/moderate") -> "list[httpx2.Response]":
    """All of them, each on a connection of its own, at the same time."""

    async def main() -> list[httpx2.Response]:
        many = httpx2.Limits(max_connections=len(bodies))
        async with httpx2.AsyncClient(base_url=str(served.http.base_url), timeout=PATIENCE_S, limits=many) as http:
            return await asyncio.gather(*(http.post(path, json=body) for body in bodies))

    return asyncio.run(main())


def head(length: int | None, path: str = "/moderate") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()


def reply(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of one response."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, json.loads(file.read(int(headers["content-length"])))


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S)


def picture(width: int = 5, height: int = 3, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


def base64_of(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


# answers
