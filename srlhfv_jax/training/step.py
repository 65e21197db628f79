"""One update, jit-able and pure: gradients of sums over microbatches, one division by the total count, the optimizer.

Losses and metrics travel as (sum, count); a mean of means would weigh a short microbatch, or a short host, too much. A loss of
several terms has a count for each: every term is divided by its own, of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from srlhfv_jax.losses.masked import Loss
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.microbatches import check, join, split
from srlhfv_jax.training import units

Metric = tuple[Float[Array, ""], Float[Array, ""]]  # (sum, count)
Metrics = dict[str, Metric]
LossFn = Callable[[Any, Any], Loss]  # (params, microbatch) -> sum, count, metrics, rows


def accumulate(
    loss_fn: LossFn, params: Any, batch: Any, microbatches: int = 1, trainable: Any = None
) -> tuple[Any, Metrics, Any]:
    """Gradient of the mean loss of `batch`, computed in `microbatches` parts.

    Args:
        loss_fn: gives the SUM of the loss over its rows, the count to divide by (independent of the parameters), and metrics; or
            dicts of sums and of counts, one for each term.
        trainable: tree of bools (`optimizer.trainable`); a frozen leaf is not differentiated and gets zeros. None = all of them.

    Returns:
        The gradients of (sum of sums) / (sum of counts), for terms of the sum of these over the terms, in the parameters' dtypes;
        the summed metrics, "loss" among them; and the loss's `rows`, those of all microbatches in the order of the batch.
    """
    leaves, treedef = jax.tree.flatten(params)
    flags = [True] * len(leaves) if trainable is None else treedef.flatten_up_to(trainable)
    trained = [leaf for leaf, flag in zip(leaves, flags) if flag]

    def total(trained: list[Array], part: Any) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        rest = iter(trained)
        full = treedef.unflatten([next(rest) if flag else leaf for leaf, flag in zip(leaves, flags)])
        loss = _as_one(loss_fn(full, part), counts, microbatches)
        return loss.sum, ({"loss": (loss.sum, jnp.asarray(loss.count, jnp.float32)), **loss.metrics}, loss.rows)

    def part_gradients(part: Any) -> tuple[tuple[list[Array], Metrics], Any]:
        grads, (metrics, rows) = jax.grad(total, has_aux=True)(trained, rules.keep_rows(part))
        return (grads, metrics), rows

    counts = None  # of the terms in the whole batch; None where the part is the batch
    if microbatches == 1:
        (grads, metrics), rows = part_gradients(batch)
    else:
        check(jax.tree.leaves(batch)[0].shape[0], microbatches, "config.microbatches")
        # A part's gradient needs them before the other parts were read. No parameter changes a count: compiled, nothing of the
        # forward pass is left here.
        counts = loss_fn(params, rules.keep_rows(batch)).count
        (grads, metrics), rows = _sum_over(part_gradients, split(batch, microbatches))
        rows = join(rows)
    count = metrics["loss"][1]
    scale = 1 / jnp.where(count > 0, count, 1)  # nothing counted: the sum is 0, and so is the gradient
    found = iter(grads)
    full = [
        (next(found) * scale).astype(leaf.dtype) if flag else jnp.zeros(leaf.shape, leaf.dtype)
        for leaf, flag in zip(leaves, flags)
    ]
    return treedef.unflatten(full), metrics, rows


def _as_one(loss: Loss, counts: Any, microbatches: int) -> Loss:
    """A loss of terms as one (sum, count): the sum of the terms' means over `counts`, of which all parts together are 1."""
    if not isinstance(loss.sum, dict):
        return loss
    whole = loss.count if counts is None else counts
    means = jax.tree.map(lambda total, count: total / jnp.where(count > 0, count, 1), loss.sum, whole)
    return loss._replace(sum=sum(means.values()), count=1 / microbatches)


def apply_updates(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any, grads: Any, still: units.Masks = {}
) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
    """One optimizer step. The metric `grad_norm` (before clipping) is finite exactly when every gradient is.

    Args:
        still: entries that stay what they are, bit for bit. Their gradient counts as 0, for clipping too.
    """
    norm = optax.tree.norm(grads)
    grads = units.held(still, grads, optax.tree.zeros_like(grads)) if still else grads
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return units.held(still, optax.apply_updates(params, updates), params), opt_state, {"grad_norm": norm}


def add(left: Metrics, right: Metrics) -> Metrics:
    """Sum two sets of (sum, count) metrics with the same names."""
    return jax.tree.map(jnp.add, left, right)


def _sum_over(function: Callable[[Any], tuple[Any, Any]], batches: Any) -> tuple[Any, Any]:
    """function(part) -> (added, stacked) over axis 0 of `batches`; gradients are added in float32 whatever their dtype."""
    first, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batches))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), first)

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        added, rows = function(part)
        return jax.tree.map(lambda total, x: total + x, carry, added), rows

    return jax.lax.scan(body, zero, batches)
