"""`srlhfv revise`: a policy with a revision beside its weights, fitted on safe and unsafe answers to the same prompts.

models/revision.py says what it adds, weights/directions.py how directions are found and heads chosen, hf/revision.py what the files are.
"""

import functools
import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from srlhfv_jax import files
from srlhfv_jax.batches import PairBatch
from srlhfv_jax.config import DataConfig, MeshConfig, ModelConfig, inference
from srlhfv_jax.data import chat, loader, sources, tokens
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import card, export, hub, peft, revision, weights
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder, load_config_and_processor
from srlhfv_jax.hf.revision import Revision
from srlhfv_jax.models import revision as vectors, sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.weights import directions
from srlhfv_jax.weights.directions import Directions

ALL_DEVICES = MeshConfig(data=-1, fsdp=1, tensor=1)
HELD_OUT = 4  # one prompt in so many measures the probes
OF_THE_POLICY_AS_IT_WAS = (
    *(weights.HEADS_FILE, weights.HEADS_META, weights.HEADS_LOADER, weights.CALIBRATION),
    *(weights.GUARD_FILE, weights.GUARD_META, weights.CERTIFICATE, "README.md"),
)


@dataclass(frozen=True)
class Settings(RowSettings):
    """Settings of the command."""

    policy: str
    data: str
    site: str
    strength: float
    top: int
    out: str
    prompt_length: int  # tokens (P); 0: that of the longest prompt
    response_length: int  # tokens (R); 0: that of the longest answer
    batch_size: int  # pairs
    dtype: str


class Fitted(NamedTuple):
    """A revision, and what was found on the way to it."""

    revision: Revision  # of strength 1
    numbers: dict[str, float]


def run(settings: Settings) -> dict[str, float]:
    """Fit a revision and write the revised policy to `settings.out`; returns what was found.

    Raises:
        UserError: a mistake in what was given.
    """
    check(settings)
    data = single_pass(
        settings.data,
        settings,
        prompt_length=settings.prompt_length,
        response_length=settings.response_length,
        batch_size=settings.batch_size,
    )
    fitted = fit(settings.policy, inference(settings.dtype), data, settings.site, settings.top)
    write(settings.out, settings.policy, fitted.revision._replace(strength=settings.strength), settings.data)
    return fitted.numbers


def check(settings: Settings) -> None:
    """Check the numbers and places, before anything is read.

    Raises:
        UserError: a mistake in what was given.
    """
    hosts.initialize()
    if not math.isfinite(settings.strength):
        raise UserError(f"--strength must be a finite number, got {settings.strength}")
    if Path(settings.out).exists():
        raise UserError(f"--out={settings.out} exists: give a folder that does not")
    hosts.check_batch(settings.batch_size, use_mesh(ALL_DEVICES), "--batch_size of")
    checkpoints.check_policy(settings.policy, "--policy")
    _check_policy(settings.policy)


def _check_policy(path: str) -> None:
    folder = checkpoint_folder(path)
    if revision.is_revised(folder):
        raise UserError(f"--policy={path} has a revision already: give the policy that it was fitted on")
    if peft.is_adapter(folder) and peft.activation(folder):
        raise UserError(
            f"--policy={path} is an activated adapter, which begins to act at a place of its own: give whole weights, or an adapter that "
            "acts everywhere"
        )


def fit(policy: str, model: ModelConfig, data: DataConfig, site: str, top: int) -> Fitted:
    """Directions of a policy's activations from its unsafe answers to its safe ones, at the last token, in the `top` best places.

    Args:
        data: pairs of answers; those of which one is labelled safe and the other unsafe are read.
        site: "heads" or "layer".
        top: heads, or layers, by the accuracy of a linear probe on prompts that are held out.

    Raises:
        UserError: no such pair, too few prompts, or no so many places.
    """
    mesh = use_mesh(ALL_DEVICES)
    _check_policy(policy)
    loaded = checkpoints.load(policy, model, mesh)
    text = loaded.config.text
    places = text.layers * (text.heads if site == "heads" else 1)
    if not 1 <= top <= places:
        raise UserError(
            f"--top must be from 1 to {places}, the {'heads' if site == 'heads' else 'layers'} of {policy}, got {top}"
        )
    begins = tokens.prompt_suffix(chat.codec(loaded.processor))[-1:]
    examples = sources.load_examples(data)
    rows = _safe_and_unsafe(data.path, inputs.fit_loosely("pairs", examples, data, loaded))
    left_out = examples.drops + rows.drops
    hosts.say(f"{data.path}: {len(rows.rows)} of {examples.source_rows} rows used; {sources.describe_drops(left_out)}")
    fitted = directions.fit(*_activations(loaded, rows, data, mesh, site), _held_out(rows, data.path))
    units = directions.best(fitted.accuracy_LH, top)
    vector_LD = _vectors(loaded.params, site, fitted, units)
    folder = loaded.path
    strength_1 = Revision(
        site,
        1.0,
        begins,
        vector_LD,
        units if site == "heads" else tuple(unit[:1] for unit in units),
        revision.fingerprint(folder, checkpoint_folder(loaded.base)),
    )
    accuracy = [float(fitted.accuracy_LH[unit]) for unit in units]
    numbers = {"pairs": float(len(rows.rows)), "probe.best": max(accuracy), "probe.least": min(accuracy)}
    numbers |= {"probe.median_of_all": float(np.median(fitted.accuracy_LH))}
    return Fitted(strength_1, numbers | {f"dropped.{name}": float(count) for name, count in sorted(left_out.items())})


def _safe_and_unsafe(path: str, rows: loader.Prepared) -> loader.Prepared:
    """The pairs of one safe and one unsafe answer; others are counted.

    Raises:
        UserError: there is none.
    """
    used = tuple(row for row in rows.rows if sorted(row.example.unsafe, key=str) == [False, True])
    if not used:
        raise UserError(
            f"{path}: of {len(rows.rows)} pairs none has one answer labelled safe and one labelled unsafe: label some"
        )
    drops = rows.drops + Counter({"not_safe_and_unsafe": len(rows.rows) - len(used)})
    return rows._replace(rows=used, drops=+drops)


def _held_out(rows: loader.Prepared, path: str) -> Bool[np.ndarray, "B"]:
    """Pairs of one prompt in `HELD_OUT`, which their content decides.

    Raises:
        UserError: there is only one prompt.
    """
    prompts = [repr((row.prompt.tolist(), row.digests)).encode() for row in rows.rows]
    order = sorted(set(prompts), key=lambda prompt: hashlib.sha256(prompt).digest())
    if len(order) < 2:
        raise UserError(f"{path} has pairs of one prompt alone, and the probes are measured on others: give more")
    held = set(order[: max(1, len(order) // HELD_OUT)])
    return np.array([prompt in held for prompt in prompts])


def _activations(
    policy: Pretrained, rows: loader.Prepared, data: DataConfig, mesh: Mesh, site: str
) -> tuple[Float[np.ndarray, "L B H h"], Float[np.ndarray, "L B H h"]]:
    """Activations at the last token of every safe answer, and of the unsafe one to the same prompt."""
    read, parts = _jit_ends(policy.config, mesh, site), []
    for batch, real_B in inputs.in_order(rows, data, mesh):
        parts.append(np.swapaxes(hosts.to_host(read(policy.params, batch)), 0, 1)[real_B])
    both_BLSHh = np.concatenate(parts)
    unsafe_B = np.array([row.example.unsafe.index(True) for row in rows.rows])
    sides = (both_BLSHh[np.arange(len(unsafe_B)), :, side_B] for side_B in (1 - unsafe_B, unsafe_B))
    safe, unsafe = (np.swapaxes(side, 0, 1) for side in sides)
    return safe, unsafe


def _jit_ends(config: VLMConfig, mesh: Mesh, site: str) -> Callable[[dict, PairBatch], Float[Array, "L B 2 H h"]]:
    @functools.partial(jax.jit, out_shardings=rules.replicated(mesh))
    def read(params: dict, batch: PairBatch) -> Float[Array, "L B 2 H h"]:
        tree = {"backbone": params}
        return sequences.end_activations(config, tree, batch, sequences.encode(config, tree, batch.images), site)

    return read


def _vectors(params: dict, site: str, fitted: Directions, units: tuple[tuple[int, int], ...]) -> Float[np.ndarray, "L D"]:
    """Vectors of strength 1, added to each layer: the shift of its stream, or what shifts of its heads by one spread each make of it."""
    if site == "layer":
        return directions.chosen(fitted.shift_LHh, units)[:, 0].astype(np.float32)
    shift_LHh = fitted.spread_LH[:, :, None] * directions.unit(fitted.shift_LHh)
    kernel_LFD = params["text"]["layers"]["self_attn"]["o_proj"]["kernel"]
    return hosts.to_host(vectors.of_heads(kernel_LFD, directions.chosen(shift_LHh, units).astype(np.float32)))


def write(out: str | Path, policy: str, revised: Revision, data: str) -> None:
    """Write a policy with a revision to the new folder `out`. Its weights are the policy's own files, linked where that is possible.

    Args:
        data: what the revision was fitted on, for the card.
    """
    out, source = Path(out), checkpoint_folder(policy)
    if hosts.process_index() == 0:
        export.clear(out.absolute().parent)
        draft = out.with_name(f".{out.name}.draft-0-{os.getpid()}")
        draft.mkdir(parents=True)
        try:
            for file in sorted(source.iterdir()):
                if file.is_file() and file.name not in OF_THE_POLICY_AS_IT_WAS:
                    _link(file.resolve(), draft / file.name)
            revision.write(draft, revised)
            sees = load_config_and_processor(policy)[0].vision is not None
            files.write_text(draft / "README.md", card.revised(hub.pinned(policy), revised, data, sees=sees))
            files.sync_tree(draft)
            os.replace(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    hosts.barrier(f"{out} is written")


def _link(file: Path, place: Path) -> None:
    """The file at another place too: a second name of it, or, where the file system has none, a copy."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
