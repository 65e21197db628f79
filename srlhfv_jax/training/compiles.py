"""Compilations while a run goes on, and their reasons: a run that compiles again and again is slow for a reason it should name."""

from collections.abc import Callable
from typing import Any

import jax

from srlhfv_jax.parallel import host_cpu, rules

SECONDS = 1.0  # shorter compilations are not reported


class Watch:
    """Says a line for every program that is compiled while inside `with`: its function, its seconds and the cause."""

    def __init__(self, say: Callable[[str], None], at_least: float = SECONDS) -> None:
        self._say, self._at_least = say, at_least
        self._known: set[str] = set()  # functions compiled before
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the batch before
        self._where, self._changed = "", ""

    def __enter__(self) -> "Watch":
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def step(self, step: int, batch: Any) -> None:
        """From here on it is about this step, whose batch may have other shapes than the one before."""
        shapes = {name: leaf.shape for name, leaf in rules.leaves(batch)}
        before, self._shapes = self._shapes, shapes
        changed = [f"{name} from {before.get(name)} to {shape}" for name, shape in shapes.items() if before.get(name) != shape]
        self._where, self._changed = f"step {step}", ", ".join(changed)

    def evaluation(self, step: int) -> None:
        """From here on it is about the evaluation after this step."""
        self._where, self._changed = f"evaluation after step {step}", "rows of other shapes"

    def _heard(self, event: str, seconds: float, *, fun_name: str = "", **_: Any) -> None:
        if event != host_cpu.COMPILED:
            return
        cause = (self._changed or "arguments of another kind or place") if fun_name in self._known else "its first call"
        self._known.add(fun_name)
        if seconds >= self._at_least:
            self._say(f"compiled {fun_name} in {seconds:.1f} s ({self._where}: {cause})")
