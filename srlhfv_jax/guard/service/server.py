"""uvicorn around the application: the socket, the limits of connections, the time limit of request heads, an orderly end."""

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.service.limits import Limits


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at host:port; port 0 takes a free one.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}; give another --host or --port") from error


def make_server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """A server to `run(sockets=[listen(...)])`.

    SIGTERM, SIGINT, or `should_exit = True` from another thread: no new connections, requests under way are answered for up to
    `limits.shutdown_s`, then the application's threads end.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=limits.head_s,
            timeout_graceful_shutdown=limits.shutdown_s,
        )
    )


class Impatient(H11Protocol):
    """uvicorn's HTTP/1.1, which waits for ever for a client that never sends the end of its headers; this one hangs up.

    The time between two requests of a connection, and what may still come of a refused body, are under the same limit.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
