"""The ASGI application around batched callables: /moderate and /generate, those of OpenAI's API (v1/), one page, and two for watchers.

body, in chunks and bounded -> `requests`, `v1.parse` (pure; in a reader thread) -> `batching` -> JSON. Every refusal is one line: as
{"error": line}, and below /v1 in that API's form and with its statuses:

    400  not JSON, not base64, not a picture         413  body, text or picture too large
    401  a token is wanted                           422  a field is missing, unknown or wrong; the model cannot read it (/v1: 400)
    403  a foreign name of the server, or page       500  the model failed on this request (the log says how)
    404  no such path or model                       503  queue or memory is full: again after Retry-After seconds (/v1: 429)
    408  the body did not come in time               504  no answer in time
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from srlhfv_jax.guard.service.access import Access
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.exchange import Exchange, Replies
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.metrics import Counting, Metrics
from srlhfv_jax.guard.service.requests import Generate, Moderate, Refused, Score, generation, moderation
from srlhfv_jax.guard.service.v1 import errors, routes as v1
from srlhfv_jax.guard.service.v1.parse import Names

PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"


class _One(NamedTuple):
    """A request for one answer."""

    items: tuple[Any]


def make_app(
    moderate: Moderate,
    generate: Generate | None,
    limits: Limits,
    access: Access = Access(),
    *,
    score: Score | None = None,
    names: Names = Names(),
) -> Starlette:
    """The application; its threads live from the startup to the shutdown of the server.

    Args:
        moderate, generate, score: called with up to `limits.batch` items, each from one thread of its own. After an exception each
            item of the batch is tried alone; one that fails again is a 500. Without `generate` or `score` its endpoints are a 404.
    """
    exchange = Exchange(limits, access)
    calls = {"moderate": moderate, "generate": generate, "score": score}
    batchers = {
        name: Batcher(call, size=limits.batch, wait_s=limits.wait_s, room=limits.queue)
        for name, call in calls.items()
        if call is not None
    }
    metrics = Metrics(batchers, lambda: exchange.held)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with contextlib.ExitStack() as threads:
            for owner in (exchange.readers, *batchers.values()):
                threads.enter_context(owner)
            yield

    routes = _own_routes(exchange, batchers, metrics)
    api = v1.routes(exchange, batchers, names, metrics)
    paths = frozenset(route.path for route in (*routes, *api) if "{" not in route.path)
    layers = [Middleware(Counting, metrics=metrics, paths=paths)]
    if access.origins:
        allowed = dict(allow_methods=["GET", "POST"], allow_headers=["authorization", "content-type"], expose_headers=["x-guard"])
        layers.append(Middleware(CORSMiddleware, allow_origins=access.origins, **allowed))
    return Starlette(
        routes=[*routes, *api],
        lifespan=lifespan,
        middleware=layers,
        exception_handlers={Refused: _on_refused, HTTPException: _on_http_error, Exception: _on_failure},
    )


def _own_routes(exchange: Exchange, batchers: dict[str, Batcher], metrics: Metrics) -> list[Route]:
    def answering(kind: str, read: Callable[[bytearray, Limits], Any]) -> Callable[[Request], Any]:
        def one(body: bytearray, limits: Limits) -> _One:
            return _One((read(body, limits),))

        def respond(_: _One, replies: Replies) -> Response:
            return JSONResponse(replies[0])

        async def on_request(request: Request) -> Response:
            if kind not in batchers:
                raise Refused(404, "this server has no policy: start it with --policy=DIR")
            return await exchange.answer(request, one, batchers[kind], respond)

        return on_request

    async def on_health(_: Request) -> Response:
        return JSONResponse(metrics.health())

    async def on_metrics(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def on_page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"Content-Security-Policy": POLICY})

    return [
        Route("/moderate", answering("moderate", moderation), methods=["POST"]),
        Route("/generate", answering("generate", generation), methods=["POST"]),
        Route("/health", on_health, methods=["GET"]),
        Route("/metrics", on_metrics, methods=["GET"]),
        Route("/", on_page, methods=["GET"]),
    ]


async def _on_refused(request: Request, refused: Refused) -> Response:
    headers = {} if refused.retry_after_s is None else {"Retry-After": str(refused.retry_after_s)}
    if refused.status == 408:  # the rest of the body may never come
        headers["Connection"] = "close"
    if _of_api(request):
        return JSONResponse(errors.refusal_json(refused), errors.status_of(refused), headers)
    return JSONResponse({"error": refused.message}, refused.status, headers)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """No such path, or another method."""
    if _of_api(request):
        body = errors.error_json(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}")
        return JSONResponse(body, error.status_code, error.headers)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _on_failure(request: Request, _: Exception) -> Response:
    """A fault of the server's own; uvicorn writes it into the log, and hangs up."""
    message = "the server failed on this request; its log says how"
    body = errors.error_json(500, message) if _of_api(request) else {"error": message}
    return JSONResponse(body, 500, {"Connection": "close"})


def _of_api(request: Request) -> bool:
    return request.url.path.startswith(v1.PREFIX)
