"""The ASGI application: POST /moderate, POST /generate, GET /health, around two batched callables.

body, in chunks and bounded -> `requests` (pure; in a reader thread) -> `batching` -> JSON. Every refusal is {"error": one line}:

    400  not JSON, not base64, not a picture         413  body, text or picture too large
    401  a token is wanted                           422  a field is missing, unknown or wrong; the model cannot read it
    403  a foreign name of the server, or page       500  the model failed on this request (the log says how)
    404  no such path, or no policy was given        503  queue or memory is full: again after Retry-After seconds
    408  the body did not come in time               504  no answer in time
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from srlhfv_jax.guard.service.access import Access, check
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Answer, Generate, Generation, Moderate, Moderation, Refused, generation, moderation

Parsed = TypeVar("Parsed", Moderation, Generation)


def make_app(moderate: Moderate, generate: Generate | None, limits: Limits, access: Access = Access()) -> Starlette:
    """The application; its threads live from the startup to the shutdown of the server.

    Args:
        moderate, generate: called with up to `limits.batch` requests, each from one thread of its own. After an exception each
            request of the batch is tried alone; one that fails again is a 500. Without `generate`, POST /generate is a 404.
    """
    service = _Service(limits, access)
    judging = Batcher(moderate, size=limits.batch, wait_s=limits.wait_s, room=limits.queue)
    answering = Batcher(generate, size=limits.batch, wait_s=limits.wait_s, room=limits.queue) if generate else None

    async def on_moderate(request: Request) -> Response:
        return await service.answer(request, moderation, judging)

    async def on_generate(request: Request) -> Response:
        if answering is None:
            raise Refused(404, "this server has no policy: start it with --policy=DIR")
        return await service.answer(request, generation, answering)

    async def on_health(_: Request) -> Response:
        batchers = {"moderate": judging} | ({"generate": answering} if answering else {})
        answered = {str(status): count for status, count in sorted(service.answered.items())}
        return JSONResponse(
            {
                "status": "ok",
                "waiting": {name: batcher.waiting for name, batcher in batchers.items()},
                "batches": {name: batcher.batches for name, batcher in batchers.items()},
                "held_bytes": service.held,
                "answered": answered,
            }
        )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with service.readers, judging, answering or contextlib.nullcontext():
            yield

    async def on_refused(_: Request, refused: Refused) -> Response:
        service.answered[refused.status] += 1
        return _refusal(refused)

    async def on_http_error(_: Request, error: HTTPException) -> Response:  # no such path, or another method
        service.answered[error.status_code] += 1
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[
            Route("/moderate", on_moderate, methods=["POST"]),
            Route("/generate", on_generate, methods=["POST"]),
            Route("/health", on_health, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={Refused: on_refused, HTTPException: on_http_error},
    )


class _Service:
    """State that the requests of one server share. Touched by its event loop alone."""

    def __init__(self, limits: Limits, access: Access):
        self.limits = limits
        self.access = access
        self.readers = ThreadPoolExecutor(limits.readers, "readers")
        self.held = 0  # bytes of all bodies at hand
        self.answered: Counter[int] = Counter()  # status -> requests

    async def answer(
        self, request: Request, read: Callable[[bytearray, Limits], Parsed], batcher: Batcher[Parsed, Answer]
    ) -> Response:
        """From the request to the response.

        Raises:
            Refused: any of the statuses above.
        """
        check(request.headers, self.access)
        body, read_bytes = bytearray(), 0
        try:
            async with _within(self.limits.body_s, 408, "the body did not come in time"):
                await self._receive(request, body)
            async with _within(self.limits.answer_s, 504, "the model did not answer in time"):
                loop = asyncio.get_running_loop()
                parsed = await loop.run_in_executor(self.readers, read, body, self.limits)
                read_bytes = len(body)
                body.clear()  # what is left of it, in `parsed`, is smaller
                reply = await _first(asyncio.wrap_future(batcher.submit(parsed)), request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            self.held -= read_bytes + len(body)
        if isinstance(reply, Refused):
            raise reply
        self.answered[200] += 1
        return JSONResponse(reply)

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Append the body to `body`, chunk by chunk, while it and all others stay within their bounds."""
        declared = request.headers.get("content-length", "0")
        self._check_size(int(declared))
        async for chunk in request.stream():
            self._check_size(len(body) + len(chunk))
            if self.held + len(chunk) > self.limits.held_bytes:
                raise Refused(503, "the requests at hand fill the memory set aside for them", retry_after_s=1)
            body += chunk
            self.held += len(chunk)

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise Refused(413, f"the body is larger than {self.limits.body_bytes} bytes")


@contextlib.asynccontextmanager
async def _within(seconds: float, status: int, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Refused(status, f"{message} ({seconds:g} s)") from error


async def _first(answer: "asyncio.Future[Answer]", request: Request) -> Answer:
    """The answer, unless the client hangs up before: then its place in the queue is given up.

    Raises:
        ClientDisconnect: it hung up.
    """
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(refused: Refused) -> Response:
    headers = {} if refused.retry_after_s is None else {"Retry-After": str(refused.retry_after_s)}
    if refused.status == 408:  # the rest of the body may never come
        headers["Connection"] = "close"
    return JSONResponse({"error": refused.message}, refused.status, headers)
