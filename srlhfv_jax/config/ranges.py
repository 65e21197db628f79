"""Ranges of settings, as marks on the types in config/: `Annotated[float, Range(0, 1)]`. parsing.py asks them."""

import re
from typing import Annotated, Any, NamedTuple, Protocol

from srlhfv_jax.errors import reason


class Check(Protocol):
    """A condition on a field's value, as in `Annotated[type, check]`."""

    def problem(self, value: Any) -> str | None:
        """Expectation of the value in words; None if it is met."""


class Range(NamedTuple):
    """Numbers from `low` to `high`; NaN is none of them."""

    low: float
    high: float
    above: bool = False  # low itself is out

    def problem(self, value: float) -> str | None:
        if (self.low < value if self.above else self.low <= value) and value <= self.high:
            return None
        return f"{'above' if self.above else 'from'} {self.low} {'and at most' if self.above else 'to'} {self.high}"


class OneOf:
    """Words of a list."""

    def __init__(self, *allowed: str) -> None:
        self._allowed = allowed

    def problem(self, value: str) -> str | None:
        return None if value in self._allowed else f"one of {', '.join(map(repr, self._allowed))}"


class Pattern(NamedTuple):
    """A regular expression."""

    def problem(self, value: str) -> str | None:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            return f"a regular expression ({reason(error)})"
        return None


class PartRate(NamedTuple):
    """PATTERN=RATE: a regular expression on parameter paths and a learning rate."""

    def problem(self, value: str) -> str | None:
        pattern, equals, rate = value.rpartition("=")
        try:
            right = equals and pattern and 0 <= float(rate) <= 1 and Pattern().problem(pattern) is None
        except ValueError:
            right = False
        return None if right else "PATTERN=RATE such as 'projector/=2e-6', with a rate from 0 to 1"


Count = Annotated[int, Range(1, 10**9)]
CountOrOff = Annotated[int, Range(0, 10**9)]  # the comment says what 0 turns off
Seed = Annotated[int, Range(0, 2**31 - 1)]  # of NumPy, grain and JAX alike
Rows = Annotated[int, Range(1, 2**16)]  # of a batch
Parts = Annotated[int, Range(1, 2**16)]  # of a batch, one after the other
Tokens = Annotated[int, Range(0, 2**20)]
Width = Annotated[int, Range(1, 2**16)]  # of a layer, or how many there are
Axis = Annotated[int, Range(-1, 2**16)]  # of a mesh
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e6)]  # of a term of a loss
Number = Annotated[float, Range(-1e6, 1e6)]
Positive = Annotated[float, Range(0, 1e6, above=True)]
Regex = Annotated[str, Pattern()]
Dtype = Annotated[str, OneOf("float32", "bfloat16")]
