"""One update, jit-able and pure: gradients of sums over microbatches, one division by the total count, the optimizer.

Losses and metrics travel as (sum, count); a mean of means would weigh a short microbatch, or a short host, too much.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import rules

Metric = tuple[Float[Array, ""], Float[Array, ""]]  # (sum, count)
Metrics = dict[str, Metric]
LossFn = Callable[[Any, Any], tuple[Float[Array, ""], Float[Array, ""], Metrics]]  # (params, microbatch) -> sum, count, metrics


def accumulate(loss_fn: LossFn, params: Any, batch: Any, microbatches: int = 1, trainable: Any = None) -> tuple[Any, Metrics]:
    """Gradient of the mean loss of `batch`, computed in `microbatches` parts.

    Args:
        loss_fn: gives the SUM of the loss over its rows, the count to divide by (independent of the parameters), and metrics.
        trainable: tree of bools (`optimizer.trainable`); a frozen leaf is not differentiated and gets zeros. None = all of them.

    Returns:
        The gradients of (sum of sums) / (sum of counts), in the parameters' dtypes, and the summed metrics, "loss" among them.
    """
    leaves, treedef = jax.tree.flatten(params)
    flags = [True] * len(leaves) if trainable is None else treedef.flatten_up_to(trainable)
    trained = [leaf for leaf, flag in zip(leaves, flags) if flag]

    def total(trained: list[Array], part: Any) -> tuple[Float[Array, ""], Metrics]:
        rest = iter(trained)
        full = treedef.unflatten([next(rest) if flag else leaf for leaf, flag in zip(leaves, flags)])
        loss_sum, count, metrics = loss_fn(full, part)
        return loss_sum, {"loss": (loss_sum, jnp.asarray(count, jnp.float32)), **metrics}

    def part_gradients(part: Any) -> tuple[list[Array], Metrics]:
        return jax.grad(total, has_aux=True)(trained, rules.keep_rows(part))

    if microbatches == 1:
        grads, metrics = part_gradients(batch)
    else:
        grads, metrics = _sum_over(part_gradients, split(batch, microbatches))
    count = metrics["loss"][1]
    scale = 1 / jnp.where(count > 0, count, 1)  # nothing counted: the sum is 0, and so is the gradient
    found = iter(grads)
    full = [
        (next(found) * scale).astype(leaf.dtype) if flag else jnp.zeros(leaf.shape, leaf.dtype)
        for leaf, flag in zip(leaves, flags)
    ]
    return treedef.unflatten(full), metrics


def split(batch: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]; part i takes the rows i, i + parts, ...

    Strided, because rows are split over devices in contiguous blocks: every device has its share of every part, and no row moves.

    Raises:
        UserError: `parts` does not divide the rows.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % parts:
        raise UserError(f"config.microbatches {parts} must divide the {rows} rows of a step: change it, or the batch size")
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch)


def apply_updates(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any, grads: Any
) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
    """One optimizer step. The metric `grad_norm` (before clipping) is finite exactly when every gradient is."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"grad_norm": optax.tree.norm(grads)}


def add(left: Metrics, right: Metrics) -> Metrics:
    """Sum two sets of (sum, count) metrics with the same names."""
    return jax.tree.map(jnp.add, left, right)


def _sum_over(function: Callable[[Any], Any], parts: Any) -> Any:
    """Sum of function(part) over axis 0 of `parts`; gradients are added in float32 whatever their dtype."""
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), first)

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda total, x: total + x, carry, function(part)), None

    return jax.lax.scan(body, zero, parts)[0]
