"""The training loop that SFT, scores and guard share: one jitted, donated update around a loss, run by the one loop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from srlhfv_jax.config import DataConfig, Supervised
from srlhfv_jax.config.held_out import METRICS
from srlhfv_jax.losses.masked import Loss
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.microbatches import check as check_microbatches
from srlhfv_jax.runs.run import Started
from srlhfv_jax.training import best, loop, optimizer as optimizers, state as states, step, units

# (tree, batch) -> the batch with numbers of all its rows, on all hosts; they have no gradient
FirstPass = Callable[[Any, Any], Any]
Evaluate = Callable[[dict], dict[str, float]]  # trained tree -> numbers on held-out rows, as result.json names them


class Objective(NamedTuple):
    """Objective of a supervised stage: heads, loss and rows, all that `srlhfv plan` compiles it from."""

    loss: Callable[[Any, Any], Loss]  # (tree, batch)
    rows: tuple[tuple[str, DataConfig], ...]  # kind (data/loader.py) and section; of several kinds a batch has one part each
    heads: dict[str, Any]  # shapes of fresh heads, by their name in the tree
    categories: int = 0  # of rows of kind "guard"
    first_pass: FirstPass | None = None  # before the loss reads the parts of a batch; None: it reads them as they are


def train(
    name: str,
    settings: Supervised,
    started: Started,
    tree: dict,
    batches: loop.Batches,
    loss: Callable[[Any, Any], Loss],
    *,
    show: tuple[str, ...],
    first_pass: FirstPass | None = None,
    base: dict | None = None,
    evaluate: Evaluate | None = None,
    sample: Callable[[dict, int], None] = lambda tree, step: None,
) -> tuple[dict, dict[str, float]]:
    """Minimise `loss(tree, batch)` over `batches` for `settings.steps` steps.

    Returns:
        The trained tree: the last one, or the best by `settings.keep_best`, and then `best.step`, the steps that it was trained for.

    Args:
        first_pass: as in `Objective`.
        base: the frozen backbone under a tree that holds an adapter; `loss` gets the two as one.
        evaluate: called every `settings.evaluation_every` steps; of its numbers those of `METRICS` are logged.
        sample: called with the tree of every step, and with that of step 0.
    """
    check_microbatches(settings.data.batch_size, settings.microbatches, "config.microbatches")
    optimizer = optimizers.make(settings.optimizer, tree, settings.steps)
    trainable = optimizers.trainable(settings.optimizer, tree)

    places = states.places(tree, optimizer, started.mesh)
    still = units.still(settings.optimizer, tree)
    update = make_update(loss, optimizer, trainable, settings.microbatches, places, still=still, first_pass=first_pass)
    state = loop.run(
        name=name,
        step_fn=lambda state, batch: update(state, base, hosts.global_batch(batch, started.mesh)),
        state=states.create(tree, optimizer, started.mesh),
        batches=batches,
        total_steps=settings.steps,
        manager=started.manager,
        writer=started.writer,
        evaluate=None if evaluate is None else lambda state, step: _logged(evaluate(state.params)),
        evaluate_every=settings.evaluation_every,
        evaluate_first=True,
        best=_rule(settings),
        log_every=settings.log.every_steps,
        show=show,
        sample=lambda state, step: sample(state.params, step),
    )
    return state.params, ({"best.step": float(hosts.to_host(state.step))} if settings.keep_best else {})


def _logged(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name in METRICS}


def _rule(settings: Supervised) -> best.Rule | None:
    """The rule of `config.keep_best`; None: the last step is exported."""
    metric = settings.keep_best
    return best.Rule(metric, METRICS[metric], settings.patience, settings.held_out) if metric else None


def make_update(
    loss: Callable[[Any, Any], Loss],
    optimizer: optax.GradientTransformation,
    trainable: Any,
    microbatches: int,
    places: states.TrainState,
    *,
    still: units.Masks = {},
    first_pass: FirstPass | None = None,
):
    """The jitted step (state, base, batch) -> state, metrics; the state is donated, and lies in the same `places` again.

    Args:
        still: entries that do not move (training/units.py).
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(places, places.step))
    def update(state: states.TrainState, base, batch):
        batch = batch if first_pass is None else first_pass(with_backbone(base, state.params), batch)
        grads, metrics, _ = step.accumulate(
            lambda tree, part: loss(with_backbone(base, tree), part), state.params, batch, microbatches, trainable
        )
        params, opt_state, norm = step.apply_updates(optimizer, state.params, state.opt_state, grads, still)
        return states.TrainState(params, opt_state, state.step + 1, state.extra), metrics | norm

    return update
