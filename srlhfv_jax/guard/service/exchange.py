"""One request: who asks, the body in bounded chunks, what it says, its place in the queues, the answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from srlhfv_jax.guard.service.access import Access, check
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import BUSY, Refused

HUNG_UP = 499  # what servers count where the client is gone; nobody reads it

Replies = list[Mapping[str, Any]]


class Asked(Protocol):
    """A request that was read: what the model is asked, one item for each of its answers."""

    @property
    def items(self) -> Sequence[Any]: ...


Parsed = TypeVar("Parsed", bound=Asked)


class Exchange:
    """State that the requests of one server share. Touched by its event loop alone."""

    def __init__(self, limits: Limits, access: Access):
        self.limits = limits
        self.access = access
        self.readers = ThreadPoolExecutor(limits.readers, "readers")
        self.held = 0  # bytes of all bodies at hand

    async def answer(
        self,
        request: Request,
        read: Callable[[bytearray, Limits], Parsed],
        batcher: Batcher,
        respond: Callable[[Parsed, Replies], Response],
    ) -> Response:
        """From the request to the response.

        Raises:
            Refused: any of the statuses that `app` lists.
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
                replies = await _first(_submitted(parsed.items, batcher), request)
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        finally:
            self.held -= read_bytes + len(body)
        refused = next((reply for reply in replies if isinstance(reply, Refused)), None)
        if refused is not None:
            raise refused
        return respond(parsed, replies)

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Append the body to `body`, chunk by chunk, while it and all others stay within their bounds."""
        declared = request.headers.get("content-length", "0")
        self._check_size(int(declared))
        async for chunk in request.stream():
            self._check_size(len(body) + len(chunk))
            if self.held + len(chunk) > self.limits.held_bytes:
                raise Refused(503, "the requests at hand fill the memory set aside for them", retry_after_s=1, code=BUSY)
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


def _submitted(items: Sequence[Any], batcher: Batcher) -> "asyncio.Future[Replies]":
    """All items in the queue, or none.

    Raises:
        Refused: the queue has no room for all of them.
    """
    futures: list[asyncio.Future] = []
    try:
        for item in items:
            futures.append(asyncio.wrap_future(batcher.submit(item)))
    except Refused:
        for future in futures:
            future.cancel()
        raise
    return asyncio.gather(*futures)


async def _first(answers: "asyncio.Future[Replies]", request: Request) -> Replies:
    """The answers, unless the client hangs up before: then its places in the queue are given up.

    Raises:
        ClientDisconnect: it hung up.
    """
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        return answers.result()
    finally:
        gone.cancel()
        answers.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
