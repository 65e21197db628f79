"""The one exception for a user's mistake, which the command line prints as one line, with exit code 2; what its line shows, cut to fit."""

import difflib
import errno
import os
import re
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

# A scheme of any length would be looked for from every character of a long word: seconds for 70,000.
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<rest>[^\s'\"<>]*)")
LONGEST_SHOWN = 160  # characters of a value in a message: a path, whole
LONGEST_LINE = 570  # of a message that lists what it met
LONGEST_REASON = 200  # of what another library said


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: what was expected, what came, what to do."""


def public(text: str) -> str:
    """A text without the secrets of addresses in it: user, password, query."""
    return ADDRESS.sub(_public, text)


def _public(found: re.Match) -> str:
    place, mark, _ = found["rest"].partition(next((mark for mark in found["rest"] if mark in "?#"), "?"))
    return found["scheme"] + (f"***@{place.rpartition('@')[2]}" if "@" in place else place) + (f"{mark}***" if mark else "")


def shown(value: Any, length: int = LONGEST_SHOWN) -> str:
    """`repr(value)`, cut after so many characters: a value that fills the screen hides what is wrong with it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; a number of more digits than Python writes
        return f"a {type(value).__name__} too large to show"
    return short(public(text), length)


def short(text: str, length: int = LONGEST_SHOWN) -> str:
    """A text that is cut after so many characters."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def reason(error: BaseException) -> str:
    """The first line of what another library says, cut, or the kind of its exception where it says nothing."""
    lines = str(error).strip().splitlines()
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in (lines[0] if lines else type(error).__name__))
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 40]} ... {text[-30:]}"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE, errno.EIO)
ADVICE = dict.fromkeys(FULL, "free some room, or give another folder")
ADVICE |= dict.fromkeys(CLOSED, "give a place that this user may read and write")
ADVICE |= dict.fromkeys(GONE, "restore it, or give another path")


def disk(error: BaseException) -> str | None:
    """One line of an error whose cause is where files lie: full, closed, gone; None: it is another error.

    Libraries that write through C++ repeat only what the system said.
    """
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in ADVICE:
            place = f": {shown(str(cause.filename))}" if cause.filename else ""
            return f"{os.strerror(cause.errno)}{place}; {ADVICE[cause.errno]}"
        for number in (*FULL, *CLOSED):
            if not isinstance(cause, OSError) and os.strerror(number).lower() in str(cause).lower():
                return f"{reason(cause)}; {ADVICE[number]}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def saved_traceback(error: BaseException) -> str:
    """Save the traceback of an error that nobody expected; the end of its message, which names the file for a report.

    The traceback itself is that end where no file can be written.
    """
    text = public("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="srlhfv-", suffix=".txt", delete=False, errors="replace") as file:
            file.write(text)
    except OSError:
        return f"\n{text}"
    return f" (this is a fault of srlhfv: please report it with {file.name})"


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an error message: the known name closest to `name`."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}?" if close else ""
