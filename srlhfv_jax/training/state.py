"""State that a training run carries from step to step, and its random keys."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from srlhfv_jax.parallel import rules

# One stream of keys per use. The index of a name enters the key: append, never reorder.
PURPOSES = ("init", "heads", "data", "rollout", "minibatches", "evaluation", "ptx", "adapter", "guard", "warm_start")


class TrainState(NamedTuple):
    """Everything that a step changes; all of it is checkpointed."""

    params: Any  # the trained tree, or a dict of trained trees
    opt_state: Any
    step: Int[Array, ""]  # int32, steps done
    extra: Any  # the stage's own: multiplier state, critics; () if none


def create(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh, extra: Any = ()) -> TrainState:
    """A state at step 0 around placed parameters: the optimizer's moments lie like their parameters, `extra` is replicated."""
    step, extra = rules.replicate((jnp.int32(0), extra), mesh)
    return TrainState(params, init_optimizer(optimizer, params, mesh), step, extra)


def init_optimizer(optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """`optimizer.init(params)`, made in place by the sharding rules."""
    return jax.jit(optimizer.init, out_shardings=optimizer_places(optimizer, params, mesh))(params)


def optimizer_places(optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """Shardings of what `optimizer.init(params)` makes."""
    return rules.shardings(jax.eval_shape(optimizer.init, params), mesh)


def places(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of a state that `create` makes: for out_shardings, so that every step leaves it where it was."""
    whole = rules.replicated(mesh)
    return TrainState(rules.shardings(params, mesh), optimizer_places(optimizer, params, mesh), whole, whole)


def key(seed: int, step: Int[Array, ""] | int, purpose: str) -> Key[Array, ""]:
    """The key for one use in one step. Nothing random is stored: the same step replayed draws the same numbers."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose)), step)
