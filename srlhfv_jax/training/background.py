"""A tracker in a thread of its own: the run waits for none, and goes on without one that fails."""

import queue
import threading
import time

from srlhfv_jax.errors import public, reason
from srlhfv_jax.parallel import hosts
from srlhfv_jax.training.trackers import Record, Run, Tracker

WAITING = 1000  # records that may wait for a slow tracker; those after are not shown there
CLOSE_SECONDS = 30.0  # for what waits at the end of a run


class Background:
    """Hands records to a tracker, in their order. What goes wrong is said once on stderr; the workdir has everything anyway."""

    def __init__(self, name: str, tracker: Tracker, run: Run) -> None:
        self._name, self._tracker, self._run = name, tracker, run
        self._waiting: queue.Queue[tuple[int, Record] | None] = queue.Queue(WAITING)
        self._ended = False  # it failed, or nobody waits for it any more
        self._said = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, record: Record) -> None:
        """Hand over; returns at once."""
        if self._ended:
            return
        try:
            self._waiting.put_nowait((step, record))
        except queue.Full:
            self._say(f"is behind by {WAITING} records: those of step {step}, and others that find no room, are not shown there")

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all was shown, but no longer than this."""
        until = time.monotonic() + seconds
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            pass
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._ended = True
            self._say(f"has not answered for {seconds:g} seconds: what it was not sent is not shown there")

    def _work(self) -> None:
        try:
            self._tracker.start(self._run)
            while (news := self._waiting.get()) is not None and not self._ended:
                self._tracker.log(*news)
            self._tracker.close()
        except BaseException as error:  # some end the process where they cannot log in
            self._ended = True
            self._say(f"failed ({public(reason(error))})")
            while not self._waiting.empty():  # its close may wait for room
                self._waiting.get_nowait()

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            hosts.say(f"warning: the tracker {self._name} {text}; the run goes on, and {self._run.workdir} has all its numbers")
