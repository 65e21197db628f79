"""The one loop that every stage runs: resume, step, log, evaluate, checkpoint, stop cleanly.

    stage: parse config -> mesh -> load -> place -> optimizer -> jit(update, donate) -> loop.run -> export

The numbers of step k-1 are fetched after step k was dispatched, so that the devices never wait for the log. Nothing here depends
on the clock except the progress line: a run that was killed and resumed writes the same metrics as one that was not.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
from jax.experimental import multihost_utils

from srlhfv_jax import signals
from srlhfv_jax.checkpoint import lock
from srlhfv_jax.checkpoint.manager import PINNED, Manager
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.training import best as bests
from srlhfv_jax.training.compiles import Watch
from srlhfv_jax.training.metrics import Writer
from srlhfv_jax.training.progress import Progress

ROWS = "rows"  # among the metrics of a step: values of each row
BEST = "best_evaluation"  # among the notes of a checkpoint (best.py)
UNEVALUATED = "unevaluated"  # among the notes of a checkpoint whose evaluation failed


class Preempted(SystemExit):
    """SIGTERM came (or `stop` said so) and the state is saved. Not caught by anyone, it ends the process with exit code 143.

    After Ctrl-C it is a KeyboardInterrupt instead.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Undone(UserError):
    """A step could not be done, for a reason outside of the run; the state is what it was before it."""


class Batches(Protocol):
    """An endless iterator of host or device batches that knows its position."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...


def run(
    *,
    name: str,
    step_fn: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    state: Any,
    batches: Batches,
    total_steps: int,
    manager: Manager,
    writer: Writer,
    evaluate: Callable[[Any, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    evaluate_first: bool = False,
    best: bests.Rule | None = None,
    log_every: int = 1,
    stop: Callable[[int], bool] | None = None,
    show: tuple[str, ...] = ("loss",),
    notes: dict[str, Any] | None = None,
    export: Callable[[Any], None] | None = None,
    sample: Callable[[Any, int], None] = lambda state, step: None,
    listen: Callable[[int, dict[str, float]], list[str]] = lambda step, numbers: [],
) -> Any:
    """Train from the newest checkpoint, or from `state`, to `total_steps`; returns the last state, which is saved, or the `best`.

    Args:
        name, show: of the stage, for progress and messages; metrics on the progress line.
        step_fn: (state, batch) -> (state, metrics): device scalars, (sum, count) (none where the count is 0), under `ROWS` arrays [B].
        state: placed arrays (TrainState). Its buffers belong to the loop: they are donated, or freed before a checkpoint is read.
        evaluate: (state, step) -> numbers to be logged, every `evaluate_every` steps, after the last, and at 0 if `evaluate_first`.
        best: the state with the best evaluation keeps its checkpoint and is returned; the rule's patience may end the run.
        log_every: steps between lines of metrics.jsonl, which has the first and last as well; all are checked for non-finite numbers.
        stop: asked after each step; true = save and raise Preempted, as SIGTERM does.
        notes: a JSON-able dict of the stage (the best validation result, say), saved with each checkpoint and restored in place.
        export: called once with the last state, before that is evaluated.
        sample: called with (state, 0) before the first step, and after each before it is saved. listen: (step, its numbers) -> warnings.

    Raises:
        Preempted, KeyboardInterrupt: after saving.
        UserError: a metric is not finite; another run is in the workdir; a step was `Undone`, and the state before it is saved.
    """
    notes = {} if notes is None else notes
    with lock.held(manager.workdir), contextlib.closing(writer), contextlib.closing(manager), contextlib.ExitStack() as stack:
        state, start, unevaluated = _resume(name, state, batches, manager, writer, notes)
        progress = Progress(name, start, total_steps, show)
        came, watch = stack.enter_context(_signals()), stack.enter_context(Watch(progress.say))
        measure = _Evaluation(name, evaluate, evaluate_every, best, total_steps, writer, manager, batches, notes, watch)
        report = _Report(name, measure, log_every, manager, writer, progress, listen)
        if export is not None and start == total_steps:
            export(state)
        measure.begin(state, start, unevaluated, evaluate_first)
        if start == 0:
            sample(state, 0)
        progress.compiling()
        running = None  # the step whose numbers are not fetched yet
        for step in measure.steps(start):
            began, before, batch = time.monotonic(), batches.get_state(), next(batches)
            watch.step(step, batch)
            try:
                state, metrics = step_fn(state, batch)
            except Undone as undone:
                raise _saved_before(undone, step, start, state, before, notes, report, running) from undone
            report(running)
            running = (step, metrics, began)

            last = step == total_steps
            number = came(step) or (signal.SIGTERM if stop is not None and stop(step) else 0)
            saving = last or number or manager.due(step)
            if measure.due(step) or saving:  # never keep, or judge, a state whose own numbers were not checked
                running = report(running)
            if last and export is not None:
                export(state)
            if measure.due(step):
                measure(state, step)
            sample(state, step)
            if saving or measure.must_save(step):
                writer.sync()
                manager.save(step, state, batches.get_state(), notes)
            if number:
                manager.wait()
                raise progress.stopped(step, KeyboardInterrupt() if number == signal.SIGINT else Preempted())
        return measure.best_state(state)


class _Report(NamedTuple):
    """Fetches the numbers of a step, checks them, and tells those who show them."""

    name: str
    evaluation: "_Evaluation"
    log_every: int
    manager: Manager
    writer: Writer
    progress: Progress
    listen: Callable[[int, dict[str, float]], list[str]]

    def __call__(self, running: tuple[int, dict[str, Any], float] | None) -> None:
        """Report (step, metrics, time.monotonic() at its start); of None there is nothing to say."""
        if running is None:
            return
        step, metrics, began = running
        values = _numbers(metrics)
        _check_finite(self.name, step, values, self.manager)
        if step % self.log_every == 0 or step in (1, self.evaluation.total_steps) or self.evaluation.may_end(step):
            self.writer.write(step, values)
            self.writer.histograms(step, hosts.to_host(metrics.get(ROWS, {})))
        self.writer.timing(step, time.monotonic() - began)
        self.progress.update(step, values)
        for text in self.listen(step, values):
            self.progress.say(f"warning: {text}")


class _Evaluation(NamedTuple):
    """The stage's evaluation inside the loop. Where it fails the state is saved, and a run that goes on from there begins with it.

    With a rule the best of them is in the notes, and so is the step of its checkpoint, which the manager then keeps. What is decided
    after an evaluation is saved with the state that it was decided on: a run killed between the two evaluates that step again.
    """

    name: str
    evaluate: Callable[[Any, int], dict[str, float]] | None
    every: int
    rule: bests.Rule | None
    total_steps: int
    writer: Writer
    manager: Manager
    batches: Batches
    notes: dict[str, Any]
    watch: Watch

    def due(self, step: int) -> bool:
        return self.evaluate is not None and self.every > 0 and (step == self.total_steps or step % self.every == 0)

    def may_end(self, step: int) -> bool:
        """Whether the run may be over with the evaluation after `step`."""
        return self.rule is not None and self.due(step)

    def __call__(self, state: Any, step: int) -> None:
        try:
            self._measure(state, step)
        except Exception:
            self.writer.sync()
            self.manager.save(step, state, self.batches.get_state(), self.notes | {UNEVALUATED: True})
            self.manager.wait()
            hosts.say(f"the evaluation after step {step} failed; that step is saved")
            raise

    def begin(self, state: Any, step: int, unevaluated: bool, evaluate_first: bool) -> None:
        """Before the first step of this start.

        At step 0: numbers to compare with, and a failure of the evaluation at once; no checkpoint is of it, so it is never the best.
        After a resumption: a best of other rows or by another metric is forgotten, as is one whose checkpoint is lost. A checkpoint
        that was saved when its evaluation failed gives way to one with the numbers.
        """
        self.watch.evaluation(step)
        known = self._best()
        if step and self.rule is not None and (known is None or not self._is_saved(known, step)):
            hosts.say(f"{self.name}: the best {self.rule.metric} is sought from step {step} on")
            known = None
        self._note(known or bests.Best())
        if step == 0 and evaluate_first and self.due(self.total_steps):
            numbers = self.evaluate(state, 0)
            if self.rule is not None:
                bests.value_of(self.rule, numbers)
            self.writer.write(0, numbers)
        if unevaluated and self.due(step):
            self._measure(state, step)
            self.manager.forget(step)
            self.manager.save(step, state, self.batches.get_state(), self.notes)

    def steps(self, start: int) -> Iterator[int]:
        """The steps to be done, up to the last, or until no better evaluation is waited for."""
        for step in range(start + 1, self.total_steps + 1):
            if self._exhausted():
                return
            yield step

    def must_save(self, step: int) -> bool:
        """Whether the checkpoint of this step is needed for what was decided after its evaluation."""
        return self.rule is not None and (self._best().step == step or self._exhausted())

    def best_state(self, state: Any) -> Any:
        """The state of the best evaluation, from its checkpoint, into the memory of the last one; `state` where that is the best."""
        if self.rule is None or not (best := self._best()).step:
            return state
        hosts.say(f"{self.name}: the best {self.rule.metric} is {best.value:.6g}, after step {best.step}")
        if best.later == 0:
            return state
        if not self.manager.whole(best.step):
            raise UserError(
                f"{self.name}: the checkpoint of step {best.step}, the best, is damaged; the same command again exports the last step"
            )
        return self.manager.restore(best.step, _freed(state))[0]

    def _measure(self, state: Any, step: int) -> None:
        self.watch.evaluation(step)
        numbers = self.evaluate(state, step)
        if self.rule is not None:
            self._decide(step, bests.value_of(self.rule, numbers))
        self.writer.write(step, numbers)

    def _decide(self, step: int, value: float) -> None:
        best = self._best()
        better = bool(hosts.from_first(int(bests.improves(self.rule, best, value))))
        self._note(bests.after(best, step, value, better))
        if self._exhausted():
            hosts.say(
                f"{self.name}: no better {self.rule.metric} in {self.rule.patience} evaluations: training ends at step {step}"
            )

    def _is_saved(self, best: bests.Best, step: int) -> bool:
        """Whether the best is still on disk for a run that goes on from `step`, whose files were checked."""
        return best.step in (0, step) or self.manager.whole(best.step)

    def _exhausted(self) -> bool:
        return self.rule is not None and bests.exhausted(self.rule, self._best())

    def _best(self) -> bests.Best | None:
        return None if self.rule is None else bests.from_note(self.rule, self.notes.get(BEST))

    def _note(self, best: bests.Best) -> None:
        for name in (BEST, PINNED):
            self.notes.pop(name, None)
        if self.rule is not None:
            self.notes[BEST] = bests.to_note(self.rule, best)
            self.notes.update({PINNED: best.step} if best.step else {})


def _freed(state: Any) -> Any:
    """The shapes and places of a state, whose memory is given back: two copies of a large state need not fit."""
    abstract = rules.abstract(state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return abstract


def _resume(
    name: str, state: Any, batches: Batches, manager: Manager, writer: Writer, notes: dict[str, Any]
) -> tuple[Any, int, bool]:
    """State, loader and notes of the newest checkpoint, and the metrics cut back to it; or as given, at step 0. And whether its
    evaluation failed."""
    step = manager.latest()
    if step is None:
        writer.cut_back(0)
        return state, 0, False
    state, data_state, extra = manager.restore(step, _freed(state))
    unevaluated = extra.pop(UNEVALUATED, False)
    batches.set_state(data_state)
    notes.clear()
    notes.update(extra)
    writer.cut_back(step)
    hosts.say(f"{name}: resumed from the checkpoint of step {step}")
    return state, step, unevaluated


def _saved_before(
    undone: Undone, step: int, start: int, state: Any, before: dict, notes: dict[str, Any], report: _Report, running: Any
) -> UserError:
    """The message of a step that could not be done, with the step before it reported and its state saved, unless it was."""
    report(running)
    done, manager = step - 1, report.manager
    if done > start and not manager.due(done):
        report.writer.sync()
        manager.save(done, state, before, notes)
    manager.wait()
    on = f"step {done} is saved" if done else "nothing is lost"
    return UserError(f"step {step}: {undone}; {on}: mend it, and the same command goes on from there")


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetch: waits for the step. (sum, count) becomes the mean; nothing counted, no number."""
    values = {}
    for metric, value in hosts.to_host({name: value for name, value in metrics.items() if name != ROWS}).items():
        if isinstance(value, tuple):
            total, count = (float(part) for part in value)
            if count != 0:
                values[metric] = total / count
        else:
            values[metric] = float(value)
    return values


def _check_finite(name: str, step: int, values: dict[str, float], manager: Manager) -> None:
    for metric, value in values.items():
        if not math.isfinite(value):
            manager.wait()
            kept = f"the checkpoint of step {manager.steps()[-1]} is kept" if manager.steps() else "there is no checkpoint yet"
            raise UserError(
                f"{name}: {metric} is {value} at step {step}; {kept}. Lower the learning rate, or look at the rows of that step"
            )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], int]]:
    """While inside, a signal does not end the process: the function yielded gives after each step the one that came, or 0."""
    if jax.process_count() == 1:
        with signals.heard() as came:
            yield lambda step: came()
        return
    # JAX's own service catches SIGTERM and agrees with the other processes on a step; it is told of Ctrl-C by one.
    with signals.heard(signal.SIGINT, then=lambda: os.kill(os.getpid(), signal.SIGTERM)) as came:
        yield lambda step: (came() or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(step) else 0
