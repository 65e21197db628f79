"""Inputs of every kind with random damage, and what becomes of each: "ok", "clear" (one line says what is wrong) or a fault.

A kind is a generator of calls. A call uses one input as a command would; it returns where the input was used, raises what the
package raises for a user's mistake, and AssertionError where something was lost in silence. One file for each family of kinds.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_data
import fault_models
import fault_replies
import fault_runs
import fault_suites
from fault_damage import Call, Inputs

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging import rubric
from srlhfv_jax.guard.service import requests

FAULTS = ("traceback", "hang", "long", "silent")
HANG_S = 20
LONGEST_LINE = 600
MISTAKES = (UserError, Unusable, requests.Refused, rubric.Malformed)


class Hang(BaseException):
    """A call took too long. Not an Exception: nothing on the way may catch it."""


def run(kind: str, folder: Path, count: int, until: float, seed: int) -> Iterator[tuple[str, str]]:
    """(outcome, the input and what was said of it) of `count` inputs of a kind, as far as time allows."""
    draw = random.Random(f"{seed} {kind}")
    calls = KINDS[kind](folder, draw)
    for _ in range(count):
        if time.monotonic() > until:
            return
        what, call = next(calls)
        yield outcome(what, call)


def outcome(what: str, call: Call) -> tuple[str, str]:
    def late(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        call()
        return "ok", what
    except MISTAKES as mistake:
        said = str(mistake)
        return "clear" if "\n" not in said and len(said) <= LONGEST_LINE else "long", f"{what}: {said}"
    except AssertionError as error:
        return "silent", f"{what}: {error}"
    except Hang:
        return "hang", what
    except Exception as error:
        return "traceback", f"{what}: {type(error).__name__}: {error}"[:2000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


KINDS: dict[str, Callable[[Path, random.Random], Inputs]] = {
    "rows": fault_data.rows,
    "files": fault_data.files,
    "prepared": fault_data.prepared,
    "preparing": fault_data.preparing,
    "pictures": fault_data.odd_pictures,
    "suites": fault_suites.suites,
    "settings": fault_runs.some_settings,
    "checkpoints": fault_models.checkpoints,
    "adapters": fault_models.adapters,
    "heads": fault_models.heads,
    "workdirs": fault_runs.workdirs,
    "requests": fault_replies.http_requests,
    "judges": fault_replies.judges,
}
