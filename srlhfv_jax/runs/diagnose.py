"""`srlhfv weights diagnose`: where a change of weights lies, how far apart a model holds two kinds of prompts, and how steep its
loss is at both, before and after. The arithmetic is in `weights/diagnose.py`."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder, load_config_and_processor
from srlhfv_jax.losses import sft
from srlhfv_jax.models import sequences, vlm
from srlhfv_jax.models.config import VLMConfig, architecture
from srlhfv_jax.models.measure import Taps
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.runs import answered
from srlhfv_jax.runs.answered import AnsweredSettings
from srlhfv_jax.weights.diagnose import outside, separation

KERNELS = ("gate_proj", "up_proj")  # the first ones of a gated MLP, both of which read the residual stream
SIDES = ("before", "after")
KINDS = ("safe", "unsafe")


@dataclasses.dataclass(frozen=True)
class Settings(AnsweredSettings):
    """Flags of `srlhfv weights diagnose`, whose help says what each is."""

    workdir: str
    before: str
    after: str
    safe: str
    unsafe: str


def run(settings: Settings) -> dict[str, Any]:
    """Measure one model after the other; lists have a number for each layer, None where there is none to be had.

    Raises:
        UserError: rows or checkpoints that cannot be read, or two that are one or of other architectures.
    """
    everywhere = answered.mesh(settings)
    paths = {"before": settings.before, "after": settings.after}
    answered.check(settings, (settings.safe, settings.unsafe), {f"--{side}": path for side, path in paths.items()})
    _check_two(settings)
    result: dict[str, Any] = {name: {} for name in ("separation", "gradient_norm", "loss")}
    kernels = {}
    for side, path in paths.items():
        model = answered.load(settings, path, everywhere)
        kernels[side] = hosts.to_host({name: model.params["text"]["layers"]["mlp"][name]["kernel"] for name in KERNELS})
        read = {
            kind: _read(settings, rows, model, everywhere)
            for kind, rows in (("safe", settings.safe), ("unsafe", settings.unsafe))
        }
        result["separation"][side] = _numbers(separation(read["safe"][0], read["unsafe"][0]))
        for kind in KINDS:
            result["loss"] |= {f"{side}.{kind}": read[kind][1]}
            result["gradient_norm"] |= {f"{side}.{kind}": read[kind][2]}
        del model
    return result | changes(kernels["before"], kernels["after"])


def changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, dict[str, list]]:
    """`Outside` of every layer's kernels, by the name of the number and of the kernel. Kernels are [L, outputs, inputs]."""
    measured = {name: [outside(*pair) for pair in zip(before[name], after[name], strict=True)] for name in before}
    names = {"outside": "share", "outside_random": "random", "directions": "directions", "change": "change"}
    return {
        key: {kernel: _numbers([of._asdict()[field] for of in layers]) for kernel, layers in measured.items()}
        for key, field in names.items()
    }


def table(result: Mapping[str, Any]) -> str:
    """Numbers for people: a line for each layer, and one for each set of rows."""
    columns = [(f"{name} outside", result["outside"][name]) for name in KERNELS]
    columns += [(f"{name} random", result["outside_random"][name]) for name in KERNELS]
    columns += [(f"separation {side}", result["separation"][side]) for side in SIDES]
    lines = [" | ".join(("layer", *(name for name, _ in columns)))]
    for layer in range(len(columns[0][1])):
        values = (values[layer] for _, values in columns)
        lines.append(" | ".join((str(layer), *("-" if value is None else f"{value:.4f}" for value in values))))
    lines.append("rows | norm of the gradient before | after | loss before | after")
    for kind in KINDS:
        values = [result[name][f"{side}.{kind}"] for name in ("gradient_norm", "loss") for side in SIDES]
        lines.append(" | ".join((kind, *(f"{value:.4f}" for value in values))))
    return "\n".join(lines)


def _read(settings: Settings, path: str, model: Pretrained, everywhere: Mesh) -> tuple[Float[np.ndarray, "L N D"], float, float]:
    """Residual streams at the prompts' ends, the loss in nats per token of an answer, and the norm of its gradient."""
    replicated = rules.replicated(everywhere)
    places = rules.shardings(model.params, everywhere)
    streams = jax.jit(functools.partial(_streams, model.config), out_shardings=replicated)
    descend = jax.jit(functools.partial(_gradient, model.config), donate_argnums=1, out_shardings=(places, replicated))
    grads = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like), out_shardings=places)(model.params)
    ends, loss, tokens = [], 0.0, 0.0
    for batch in answered.batches(settings, path, model, everywhere):
        real_B = hosts.to_host(batch.response_mask_BR).any(axis=1)
        ends.append(hosts.to_host(streams(model.params, batch))[:, real_B])
        grads, told = descend(model.params, grads, batch)
        loss, tokens = loss + float(told[0]), tokens + float(told[1])
    squares = hosts.to_host(jax.jit(_squares, out_shardings=replicated)(grads))
    return np.concatenate(ends, axis=1), loss / tokens, math.sqrt(float(squares)) / tokens


def _streams(config: VLMConfig, params: dict, batch: SupervisedBatch) -> Float[Array, "L B D"]:
    """The residual stream behind each layer at the last token of each prompt."""
    end = batch.tokens_BT.shape[1] - batch.response_mask_BR.shape[1]
    sequence = (x_BT[:, :end] for x_BT in (batch.tokens_BT, batch.positions_BT, batch.mask_BT))
    features = None if batch.images is None else vlm.encode_images(config, params, batch.images)
    return vlm.measure(config, params, *sequence, features, _last)[1]


def _last(taps: Taps) -> Float[Array, "B D"]:
    return taps.x_BTD[:, -1].astype(jnp.float32)


def _gradient(config: VLMConfig, params: dict, grads: dict, batch: SupervisedBatch) -> tuple[dict, tuple]:
    """`grads` and the gradient of the summed loss of a batch; that sum and its tokens."""

    def loss(params: dict) -> tuple[Float[Array, ""], Float[Array, ""]]:
        tree = {"backbone": params}
        logp_BR, _ = sequences.response_logp(config, tree, batch, sequences.encode(config, tree, batch.images))
        return sft.sft(logp_BR, batch.response_mask_BR)

    (total, count), own = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, own), (total, count)


def _squares(grads: dict) -> Float[Array, ""]:
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(grads))


def _numbers(values: Any) -> list[float | None]:
    """Values as JSON has them: None for what is no number."""
    return [None if math.isnan(value) else float(value) for value in values]


def _check_two(settings: Settings) -> None:
    if checkpoint_folder(settings.before).resolve() == checkpoint_folder(settings.after).resolve():
        raise UserError(f"--before={settings.before} and --after={settings.after} are one checkpoint: nothing has changed")
    before, after = (architecture(load_config_and_processor(path)[0]) for path in (settings.before, settings.after))
    if before != after:
        raise UserError(
            f"--before={settings.before} and --after={settings.after} have other architectures: give two of which one was trained from "
            "the other"
        )
