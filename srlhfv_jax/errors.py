"""The one exception for a user's mistake, which the command line prints as one line, with exit code 2; and values cut to fit in it."""

from typing import Any

LONGEST_SHOWN = 80  # characters of a value in a message


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: what was expected, what came, what to do."""


def shown(value: Any) -> str:
    """`repr(value)`, cut: a value that fills the screen hides what is wrong with it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"
