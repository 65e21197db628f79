"""The one exception for a user's mistake, which the command line prints as one line, with exit code 2; what its line shows, cut to fit."""

from typing import Any

LONGEST_SHOWN = 80  # characters of a value in a message
LONGEST_REASON = 200  # of what another library said


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: what was expected, what came, what to do."""


def shown(value: Any) -> str:
    """`repr(value)`, cut: a value that fills the screen hides what is wrong with it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; a number of more digits than Python writes
        return f"a {type(value).__name__} too large to show"
    return short(text)


def short(text: str, length: int = LONGEST_SHOWN) -> str:
    """A text that is cut after so many characters."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def reason(error: BaseException) -> str:
    """The first line of what another library says, cut, or the kind of its exception where it says nothing."""
    lines = str(error).strip().splitlines()
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in (lines[0] if lines else type(error).__name__))
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 40]} ... {text[-30:]}"
