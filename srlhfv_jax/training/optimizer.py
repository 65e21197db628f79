"""AdamW or Muon with a schedule, decay on matrices only, clipping by global norm; frozen leaves own no optimizer state."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax import contrib

from srlhfv_jax.config import OptimizerConfig, choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import order, rules

# Always frozen: what is kept for export and never run, which weight decay alone would change, and the constants of adapters.
NEVER_TRAINED = ("vision/unused/", "/lora_scale$")
DECAYED = ("kernel", "embedding")  # last part of the path; norms, biases, class and position embeddings are never decayed

VISION_PARTS = ("vision/", "projector/")  # what a text-only model lacks
HEADS = ("heads/", "guard/")  # of scores and of a guard: where their paths begin


def make(config: OptimizerConfig, params: Any, total_steps: int) -> optax.GradientTransformation:
    """The optimizer for a parameter tree (arrays or shapes).

    Heads take `head_learning_rate`, and parts that a pattern of `part_rates` matches the rate there, the last one's. Heads biases, a guard's thresholds, move sqrt(width) times as far in each step, as an update of
    a kernel's `width` entries moves a logit: at one rate for all they would stand still where the width is thousands.

    Raises:
        UserError: a freeze pattern that matches no parameter, patterns that leave nothing to train, or a rate for heads that are
            not there.
    """
    rate = learning_rate(config, total_steps)
    if choose(config.algorithm, "optimizer.algorithm", "adamw", "muon") == "muon":
        descend = _muon(config, rate)
    else:
        descend = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed)
    clip = _clip(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    train = optax.chain(clip, descend, *_rates(config, params))
    labels = jax.tree.map(lambda trained: "train" if trained else "freeze", trainable(config, params))
    return optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)


def _rates(config: OptimizerConfig, params: Any) -> tuple[optax.GradientTransformation, ...]:
    """Transformations that give heads and other parts their own rates: none where no leaf has one."""
    leaves = dict(rules.leaves(params))
    heads = [path for path in leaves if path.startswith(HEADS)]
    if config.head_learning_rate and not (heads and config.learning_rate):
        raise UserError(
            f"optimizer.head_learning_rate {config.head_learning_rate} is for heads trained beside a backbone at a learning_rate above "
            f"0, got {len(heads)} parameters of heads at {config.learning_rate}: set it to 0"
        )
    factors = dict.fromkeys(leaves, 1.0)
    for path in heads:
        width = leaves[path.removesuffix("bias") + "kernel"].shape[-1] if path.endswith("/bias") else 1
        factors[path] = math.sqrt(width) * (
            config.head_learning_rate / config.learning_rate if config.head_learning_rate else 1.0
        )
    for text in config.part_rates:
        pattern, _, rate = text.rpartition("=")
        matching = [path for path in leaves if re.search(pattern, path)]
        if not matching or not config.learning_rate:
            raise UserError(
                f"optimizer.part_rates {text!r} needs a parameter that it matches and a learning_rate above 0, got "
                f"{len(matching)} of them (there is {next(iter(leaves))}, ...) and {config.learning_rate}: correct or remove it"
            )
        for path in matching:
            width = factors[path] if path.endswith("/bias") and path.startswith(HEADS) and not config.head_learning_rate else 1.0
            factors[path] = width * float(rate) / config.learning_rate
    if all(factor == 1 for factor in factors.values()):
        return ()

    def scale(path: tuple[Any, ...], update: Any) -> Any:
        return update if isinstance(update, optax.MaskedNode) else update * factors[rules.path_text(path)]

    def update(updates: Any, params: Any = None) -> Any:
        return jax.tree.map_with_path(scale, updates, is_leaf=lambda x: isinstance(x, optax.MaskedNode))

    return (optax.stateless(update),)


def trainable(config: OptimizerConfig, params: Any) -> Any:
    """True at the leaves that are trained, False at frozen ones: for `step.accumulate`, which then makes no gradient for these.

    A pattern for the vision tower or the projector may match nothing where the model has neither.

    Raises:
        UserError: as `make`.
    """
    paths = [path for path, _ in rules.leaves(params)]
    blind = not any("vision/" in path for path in paths)
    for pattern in config.freeze:
        if blind and any(re.search(pattern, part) for part in VISION_PARTS):
            continue
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"optimizer.freeze pattern {pattern!r} matches no parameter (there is {paths[0]}, ...): correct or remove it"
            )
    frozen = [any(re.search(pattern, path) for pattern in (*NEVER_TRAINED, *config.freeze)) for path in paths]
    if all(frozen):
        raise UserError(f"optimizer.freeze {config.freeze} freezes every parameter: nothing is left to train")
    return jax.tree.unflatten(jax.tree.structure(params), [not leaf for leaf in frozen])


def decayed(params: Any) -> Any:
    """True at the leaves that weight decay applies to: kernels and embeddings of two or more dimensions, layers not counted."""

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        parts = rules.path_text(path).split("/")
        return parts[-1] in DECAYED and leaf.ndim - ("layers" in parts) >= 2

    return jax.tree.map_with_path(decays, params)


def learning_rate(config: OptimizerConfig, total_steps: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """The rate as a function of the steps done: linear warm-up, whose first step is not wasted on 0, then the schedule."""
    schedule = choose(config.schedule, "optimizer.schedule", "constant", "cosine", "linear")
    warmup = float(round(config.warmup_fraction * total_steps))  # floats: more steps than int32 counts are no overflow
    rest = max(total_steps - warmup, 1.0)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
        decay = {"constant": jnp.float32(1), "linear": 1 - done, "cosine": 0.5 * (1 + jnp.cos(math.pi * done))}[schedule]
        return config.learning_rate * warm * decay

    return rate


def steps_taken(opt_state: Any) -> Int[Array, ""]:
    """Steps that an optimizer of `make` has taken, which its schedule counts."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def _clip(norm: float) -> optax.GradientTransformation:
    """Clip by global norm. On CPU a barrier frees the unclipped gradients before the update."""
    clip = optax.clip_by_global_norm(norm)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped, state = clip.update(grads, state, params)
        return order.barrier_on_cpu(clipped), state

    return optax.GradientTransformation(clip.init, update)


def _muon(config: OptimizerConfig, rate) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the kernels of the layers, one matrix at a time; NAdamW for embeddings, norms, biases,
    heads.

    The update is scaled to a root mean square of 0.2 (Liu et al., arXiv 2502.16982, equation 4): about Adam's, so that both take
    the same learning rate.
    """

    def kinds(params: Any) -> Any:
        def kind(path: tuple[Any, ...], _: Any) -> str:
            parts = rules.path_text(path).split("/")
            return "matrix" if "layers" in parts and parts[-1] == "kernel" else "rest"

        return jax.tree.map_with_path(kind, params)

    muon = contrib.muon(
        rate,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1),
        consistent_rms=0.2,
    )
    rest = optax.nadamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed)
    return optax.partition({"matrix": _by_shape(muon), "rest": rest}, kinds)


def _by_shape(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on stacks [matrices, rows, columns] with all matrices of one shape in one array.

    Muon orthogonalises each array in a loop of its own; joined, there is one loop for each shape instead of one for each kernel.
    """

    def init(params: Any) -> Any:
        return inner.init(_join(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        joined, state = inner.update(_join(updates), state, _join(params))
        return _part(joined, updates), state

    return optax.GradientTransformation(init, update)


def _join(tree: Any) -> dict[str, Array]:
    groups: dict[str, list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        groups.setdefault(_shape_name(leaf), []).append(leaf)
    return {name: jnp.concatenate(leaves) for name, leaves in groups.items()}


def _part(joined: dict[str, Array], like: Any) -> Any:
    taken = dict.fromkeys(joined, 0)

    def take(leaf: Array) -> Array:
        name, count = _shape_name(leaf), leaf.shape[0]
        taken[name] += count
        return jax.lax.slice_in_dim(joined[name], taken[name] - count, taken[name])

    return jax.tree.map(take, like)


def _shape_name(leaf: Array) -> str:
    return f"{leaf.shape[1]}x{leaf.shape[2]}"
