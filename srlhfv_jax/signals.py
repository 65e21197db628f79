"""SIGTERM and Ctrl-C of a command: never an exception in whatever frame runs at that moment.

One raised while a callback of XLA or a `__del__` runs is printed and swallowed, and the command goes on. Outside the training loop
a signal ends the process here: the last checkpoint stands, and finished work is skipped next time. Inside (`heard`) it is noted,
and the loop saves and stops after its step; a second Ctrl-C ends it at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

GO_ON = "the same command goes on from the last checkpoint"


def install() -> Callable[[], None]:
    """From here on both signals end this process, with exit code 143 or 130; the function returned puts back what was before."""
    if threading.current_thread() is not threading.main_thread():  # Python lets the main thread alone handle signals
        return lambda: None
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def ignore() -> None:
    """For the very end of a process, all of whose work is done: Python takes its handlers away while libraries close, and a signal
    would end the process by its default, as if the work were not."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def heard(*numbers: int, then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], int]]:
    """While inside, the first signal ends nothing: the function yielded gives its number, 0 before one came.

    Args:
        numbers: the signals; none: both.
        then: is called when the first comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came: list[int] = []

    def note(number: int, frame) -> None:
        if number == signal.SIGINT and came and callable(before[number]):
            before[number](number, frame)
        came.append(number)
        if len(came) == 1:
            then()
        if number == signal.SIGINT:
            _say("stopping after this step; once more ends at once")

    before = {number: signal.signal(number, note) for number in numbers or (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame) -> None:
    if number == signal.SIGINT:
        _say(f"interrupted; {GO_ON}")
    with contextlib.suppress(Exception):  # a signal may come while these very streams are written to
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(128 + number)


def _say(text: str) -> None:
    """Past Python's stream, which may be in the middle of a write."""
    with contextlib.suppress(OSError):
        os.write(2, f"srlhfv: {text}\n".encode())
