"""One line about where the run is: a bar on a terminal, plain lines elsewhere (logs, notebooks, CI)."""

import sys
import time

from srlhfv_jax.parallel import hosts

BAR = 24
PLAIN_SECONDS = 10.0  # off a terminal: at most one line in this many seconds, and the last


class Progress:
    """Shows stage, step, time left and the few numbers that matter. First process only."""

    def __init__(self, name: str, start: int, total: int, show: tuple[str, ...]) -> None:
        self._name = name
        self._start = start
        self._total = total
        self._show = show
        self._quiet = hosts.process_index() != 0
        self._terminal = sys.stderr.isatty()
        self._began = 0.0  # when the first step, compilation included, was over
        self._written = -PLAIN_SECONDS

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            end = "\r\x1b[K" if self._terminal else ""
            print(f"{end}{self._name}: {text}", file=sys.stderr, flush=True)

    def compiling(self) -> None:
        """The first step is about to begin, if there is one."""
        if self._start < self._total:
            self.say(f"compiling the first of {self._total - self._start} steps ...")

    def stopped(self, step: int, why: BaseException) -> BaseException:
        """Say that the run ends here, with `why`, which is returned."""
        self.say(f"stopped and saved at step {step} of {self._total}; the same command goes on from there")
        return why

    def update(self, step: int, values: dict[str, float]) -> None:
        """Step `step` is done and gave `values`."""
        now = time.monotonic()
        if step == self._start + 1:
            self._began = now
        last = step == self._total
        if self._quiet or not (self._terminal or last or now - self._written >= PLAIN_SECONDS):
            return
        self._written = now
        numbers = "  ".join(f"{name} {values[name]:.4g}" for name in self._show if name in values)
        line = f"{self._name}: step {step}/{self._total}  {self._left(step, now)}  {numbers}"
        if self._terminal:
            done = BAR * step // self._total
            print(f"\r\x1b[K[{'#' * done}{'.' * (BAR - done)}] {line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _left(self, step: int, now: float) -> str:
        done = step - self._start - 1  # the first step compiled: it says nothing about the rest
        if done < 1:
            return "ETA ?"
        seconds = round((now - self._began) / done * (self._total - step))
        return f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
