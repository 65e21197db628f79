"""Calls of functions in threads, with a time-out and attempts.

A call has several samples. One that raises, or does not come back in time, is repeated sample by sample, so that one bad row does
not cost the others theirs, and is named. What comes back and is no number for each sample is a mistake that no repetition mends.

A thread cannot be ended from outside: one that hangs is left alone, and does not keep the process from ending.
"""

import collections
import math
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.config import FunctionsConfig
from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.functions.load import Function
from srlhfv_jax.functions.sample import Sample

ERROR = 300  # characters of what a function raised


class Task(NamedTuple):
    """One call that is to be made."""

    function: int
    rows: tuple[int, ...]  # places in the list of samples
    attempt: int
    start: float  # time.monotonic() before which it waits


def scores(functions: Sequence[Function], wanted: Sequence[Sequence[int]], samples: list[Sample], settings: FunctionsConfig):
    """(function, place) -> score, in float32's range; NaN where a cost's function gave None: its constraint is not about the sample.

    Args:
        wanted: of each function, the places of the samples that it scores.

    Raises:
        UserError: a function failed; names it and the row.
    """
    tasks = collections.deque(
        Task(number, tuple(places[first : first + settings.rows]), 1, 0.0)
        for number, places in enumerate(wanted)
        for first in range(0, len(places), settings.rows)
    )
    results: dict[tuple[int, int], float] = {}
    running: dict[object, tuple[Task, float]] = {}  # token of a call -> its task and deadline
    done: queue.SimpleQueue = queue.SimpleQueue()
    while tasks or running:
        now = time.monotonic()
        ready = [task for task in tasks if task.start <= now][: settings.workers - len(running)]
        for task in ready:
            tasks.remove(task)
            token = object()
            running[token] = task, now + settings.timeout_s
            _start(functions[task.function].call, [samples[place] for place in task.rows], token, done)
        wakes = [deadline for _, deadline in running.values()] + [task.start for task in tasks if len(running) < settings.workers]
        try:
            token, result, error = done.get(timeout=max(0.0, min(wakes) - now))
        except queue.Empty:
            late = [token for token, (_, deadline) in running.items() if deadline <= time.monotonic()]
            for token in late:
                task, _ = running.pop(token)
                _again(tasks, task, functions, samples, f"gave no answer within {settings.timeout_s:g} seconds", settings)
            continue
        if token not in running:  # it came too late
            continue
        task, _ = running.pop(token)
        if error is not None:
            _again(tasks, task, functions, samples, f"raised {error}", settings)
            continue
        values = _numbers(functions[task.function], [samples[place] for place in task.rows], result)
        results |= {(task.function, place): value for place, value in zip(task.rows, values, strict=True)}
    return results


def _start(function, samples: list[Sample], token: object, done: queue.SimpleQueue) -> None:
    def call() -> None:
        try:
            done.put((token, function(samples), None))
        except BaseException as error:  # sys.exit() in a thread would end nothing and say nothing
            done.put((token, None, f"{type(error).__name__}: {reason(error)}"[:ERROR]))

    threading.Thread(target=call, daemon=True, name="srlhfv-function").start()


def _again(
    tasks: collections.deque,
    task: Task,
    functions: Sequence[Function],
    samples: list[Sample],
    why: str,
    settings: FunctionsConfig,
) -> None:
    """The next attempt at a call that failed: of each of its samples alone."""
    if len(task.rows) == 1 and task.attempt >= settings.attempts:
        times = f"{task.attempt} attempt{'s' * (task.attempt > 1)}"
        raise UserError(f"{functions[task.function].place} {why} for {named(samples[task.rows[0]])}, after {times}")
    start = time.monotonic() + settings.backoff_s * 2 ** (task.attempt - 1)
    attempt = min(task.attempt + 1, settings.attempts)
    tasks.extend(Task(task.function, (row,), attempt, start) for row in task.rows)


def _numbers(function: Function, samples: list[Sample], result: Any) -> list[float]:
    """The result of a call, as a float for each sample."""
    count, rows = len(samples), f"rows {', '.join(str(sample.row) for sample in samples[:8])}{', ...' * (len(samples) > 8)}"
    expected = f"{function.place} gave {_shape(result)} for {count} sample{'s' * (count > 1)} ({rows}): expected a list of "
    expected += f"{count} number{'s' * (count > 1)}"
    absent = {place for place, one in enumerate(_items(result)) if one is None} if function.score != "reward" else set()
    if absent:
        result = [0.0 if place in absent else one for place, one in enumerate(result)]
    try:
        values = np.asarray(result)
    except Exception as error:  # ragged lists; tensors that need gradients
        raise UserError(f"{expected} ({reason(error)})") from error
    if values.shape != (count,) or values.dtype.kind not in "fiub":
        wrong = next((place for place, one in enumerate(_items(result)) if np.asarray(one).dtype.kind not in "fiub"), None)
        first = f"; that of {named(samples[wrong])} is {shown(result[wrong])}" if wrong is not None and wrong < count else ""
        raise UserError(expected + first)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    for sample, value in zip(samples, values):
        if not np.isfinite(value):
            raise UserError(f"{function.place} gave {value} for {named(sample)}: expected a finite number")
    return [math.nan if place in absent else value for place, value in enumerate(values.tolist())]


def _items(result: Any) -> list:
    return list(result) if isinstance(result, (list, tuple)) else []


def _shape(result: Any) -> str:
    if isinstance(result, (list, tuple)):
        return f"a {type(result).__name__} of {len(result)}"
    if isinstance(result, np.ndarray):
        return f"an array of shape {result.shape} and {result.dtype}"
    return shown(result)


def named(sample: Sample) -> str:
    """A sample in messages."""
    return f"row {sample.row} (question {sample.question[:60]!r}, answer {sample.answer[:60]!r})"
