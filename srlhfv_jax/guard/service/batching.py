"""Micro-batches: requests of many clients, one worker thread, one call of the model for up to `size` of them."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, Self, TypeVar

from srlhfv_jax.guard.service.requests import BUSY, Refused

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LAST_CALL_S = 1.0  # a model that still works when everybody has been answered or sent away does not hold up the end

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    item: object
    answer: Future
    since_s: float  # time.monotonic()


class Batcher(Generic[Item, Answer]):
    """A bounded queue in front of a batched callable. As a context: on leaving, what waits is answered and the thread ends.

    A batch is called when `size` items wait, or the first of them has waited for `wait_s`. An item whose future was cancelled
    leaves the queue at once and gives its place to another.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Sequence[Answer]], *, size: int, wait_s: float, room: int):
        self.room = room
        self.batches = 0  # calls of the model so far
        self._call = call
        self._size = size
        self._wait_s = wait_s
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._batch_s = 0.0  # what the last call took
        self._thread = threading.Thread(target=self._work, name="micro-batches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(LAST_CALL_S)

    @property
    def waiting(self) -> int:
        """Items in the queue, without those that the model is working on."""
        return len(self._queue)

    def submit(self, item: Item) -> "Future[Answer]":
        """Put `item` into the queue.

        Raises:
            Refused: 503, the queue is full or closed; with a guess of when it will have moved on.
        """
        waiting = _Waiting(item, Future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise Refused(503, "the server is shutting down", retry_after_s=1)
            if len(self._queue) >= self.room:
                batches = math.ceil(len(self._queue) / self._size)
                seconds = max(1, math.ceil(batches * self._batch_s))
                raise Refused(503, f"{self.room} requests are waiting already", retry_after_s=seconds, code=BUSY)
            self._queue.append(waiting)
            self._changed.notify()
        waiting.answer.add_done_callback(lambda future: future.cancelled() and self._forget(waiting))
        return waiting.answer

    def _forget(self, cancelled: _Waiting) -> None:
        with self._changed:
            if any(waiting is cancelled for waiting in self._queue):
                self._queue = deque(waiting for waiting in self._queue if waiting is not cancelled)

    def _work(self) -> None:
        while (batch := self._collect()) is not None:
            if batch:
                began = time.monotonic()
                self.batches += 1
                self._answer(batch)
                self._batch_s = time.monotonic() - began

    def _collect(self) -> list[_Waiting] | None:
        """The next batch, without the items that were cancelled meanwhile; None after the last."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return None
            until = self._queue[0].since_s + self._wait_s
            while 0 < len(self._queue) < self._size and not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            taken = [self._queue.popleft() for _ in range(min(self._size, len(self._queue)))]
            return [waiting for waiting in taken if waiting.answer.set_running_or_notify_cancel()]

    def _answer(self, batch: list[_Waiting]) -> None:
        """Answer each item; where the batch fails each is tried alone, so that one bad item costs the others nothing."""
        if (answers := self._called(batch)) is not None:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer.set_result(answer)
        elif len(batch) == 1:
            batch[0].answer.set_exception(Refused(500, "the model failed on this request; the log of the server says how"))
        else:
            for waiting in batch:
                self._answer([waiting])

    def _called(self, batch: list[_Waiting]) -> Sequence[Answer] | None:
        """The model's answers; None where it failed. What its frames held is let go before anything is tried again."""
        try:
            answers = self._call([waiting.item for waiting in batch])
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} answers to {len(batch)} requests")
            return answers
        except Exception:  # whatever it is, the next batch must find this thread alive
            log.exception("a batch of %d requests failed", len(batch))
            return None
