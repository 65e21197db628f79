"""Numbers of other models on both answers of a pair, before training begins: two a row, and the model leaves memory.

The log-probability of an answer is the sum over its tokens, its end included. Of the same rows another method computes nothing, and
of one more answer one number (numbers.py).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from srlhfv_jax.batches import Features, PreferenceBatch
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import scoring
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.hf.fingerprint import digests
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.microbatches import over_rows
from srlhfv_jax.preference import numbers
from srlhfv_jax.runs import checkpoints, inputs

PART = 4096  # numbers of a file, at least: what a kill may cost
LOGP = "log_probability"
LIMITS = {"float32": 1e-4, "bfloat16": 0.02}  # of |h| at step 0: the largest, and the mean

Pairs = Float[np.ndarray, "N A"]  # A answers of each row: both of its pair, and one to another prompt where it has that
Read = Callable[[dict, dict | None, PreferenceBatch], Mapping[str, Float[Array, "B A"]]]  # tree, base, batch


class Reader(NamedTuple):
    """Rows, as a model reads them: as it will in training."""

    data: DataConfig
    model: ModelConfig
    mesh: Mesh
    microbatches: int
    folder: Path  # of numbers


class Readout(NamedTuple):
    """Numbers that a model is asked for."""

    names: tuple[str, ...]
    jit: Callable[[VLMConfig, Mesh, int], Read]  # (config, mesh, microbatches) -> them by name
    by_token: bool = False  # of each token of an answer


class Policy(NamedTuple):
    """A model in memory."""

    config: VLMConfig
    tree: dict
    base: dict | None  # the backbone under a tree that holds an adapter


def logp(path: str, prepared: loader.Prepared, reader: Reader, policy: Policy | None = None) -> Pairs:
    """log pi of the answers of every row, by the checkpoint at `path`.

    Args:
        policy: that checkpoint, where it is in memory anyway; None: it is loaded if a number is missing, and leaves again.
    """
    return _as_array(_kept(Readout((LOGP,), jit_logp), path, prepared, reader, policy)[LOGP])


def scores(path: str, prepared: loader.Prepared, reader: Reader) -> dict[str, Pairs]:
    """Reward and cost of both answers of every row, by the scorer at `path`."""
    told = _kept(Readout((REWARD, COST), _jit_scores), path, prepared, reader, None)
    return {name: _as_array(values) for name, values in told.items()}


def token_scores(head: str, path: str, prepared: loader.Prepared, reader: Reader) -> list[tuple[Float[np.ndarray, "R"], ...]]:
    """The score of a head after each token of both answers of every row, by the scorer at `path`."""
    name = f"token_{head}"
    return _kept(Readout((name,), functools.partial(_jit_token_scores, {name: head}), True), path, prepared, reader, None)[name]


def _as_array(values: Sequence[tuple[float, ...]]) -> Pairs:
    return np.array(values, np.float32)


def answer_logp(config: VLMConfig, tree, batch: PreferenceBatch) -> Float[Array, "B A"]:
    """log pi of both answers, and of that to another prompt where rows have one; float32."""
    features = sequences.encode(config, tree, batch.images)
    logp_BS = kept_logp(config, tree, batch, features)
    if batch.unpaired is None:
        return logp_BS
    return jnp.concatenate([logp_BS, other_logp(config, tree, batch, features)[:, None]], axis=1)


def kept_logp(config: VLMConfig, tree, batch: PreferenceBatch, features: Features | None) -> Float[Array, "B 2"]:
    """log pi of both answers, summed over the tokens that count; float32."""
    logp_BSR = sequences.pair_logp(config, tree, batch, features)
    return jnp.sum(logp_BSR if batch.keep_BSR is None else jnp.where(batch.keep_BSR, logp_BSR, 0.0), axis=2)


def other_logp(config: VLMConfig, tree, batch: PreferenceBatch, features: Features | None) -> Float[Array, "B"]:
    """log pi of the answers to other prompts; float32."""
    return jnp.sum(sequences.response_logp(config, tree, batch.unpaired.sequences, features)[0], axis=1)


def jit_logp(config: VLMConfig, mesh: Mesh, microbatches: int) -> Read:
    """(tree, base, batch) -> log pi of the answers, jitted."""

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def read(tree: dict, base: dict | None, batch: PreferenceBatch) -> dict[str, Float[Array, "B A"]]:
        whole = with_backbone(base, tree)
        return over_rows(lambda rows: {LOGP: answer_logp(config, whole, rows)}, batch, microbatches)

    return read


def self_test(policy: Policy, prepared: loader.Prepared, reader: Reader) -> None:
    """A policy that starts from its reference has h = 0, of any two answers of a row: checked on the first rows.

    Raises:
        UserError: it has not.
    """
    read = jit_logp(policy.config, reader.mesh, reader.microbatches)
    batch, real_B = next(inputs.in_order(prepared, reader.data, reader.mesh))
    others = () if batch.unpaired is None else (batch.unpaired.reference_B,)
    logp_BA, *by_reference = hosts.to_host((read(policy.tree, policy.base, batch)[LOGP], batch.reference_BS, *others))
    h_B = np.abs(np.diff(logp_BA - np.column_stack(by_reference), axis=1))[real_B]
    dtype = policy.config.dtype
    exact = dtype == "float32"
    value = float(h_B.max() if exact else h_B.mean())
    if not value <= LIMITS[dtype]:
        raise UserError(
            f"self-test: the policy starts from its reference, so h must be 0, and the {'largest' if exact else 'mean'} |h| of the first rows is "
            f"{value:.3g} (limit {LIMITS[dtype]}): numbers of the reference are of other weights or rows; remove {reader.folder}"
        )
    hosts.say(f"preference: self-test passed: |h| of the first rows {value:.1e}")


def _kept(
    readout: Readout, path: str, prepared: loader.Prepared, reader: Reader, policy: Policy | None
) -> dict[str, list[tuple[numbers.Value, ...]]]:
    """Numbers of every answer, in the order of the rows: what is kept of them, and the rest computed."""
    fingerprint = _fingerprint(path, reader.model, policy)
    keys = [numbers.keys(row) for row in prepared.rows]
    answers = itertools.chain.from_iterable(row.responses for row in prepared.rows)
    sizes = {key: len(answer) if readout.by_token else 1 for key, answer in zip(itertools.chain(*keys), answers, strict=True)}
    known = {name: _from_first(reader.folder, f"{fingerprint}-{name}", sizes, readout.by_token) for name in readout.names}
    absent = numbers.missing(known, keys)
    hosts.say(f"{' and '.join(readout.names)} of the answers of {len(keys)} pairs by {path}: {len(absent)} to compute")
    if absent:
        _compute(readout, policy or _load(path, prepared, reader), prepared, keys, known, absent, reader, fingerprint)
    return {name: [tuple(of[key] for key in row) for row in keys] for name, of in known.items()}


def _from_first(folder: Path, fingerprint: str, sizes: Mapping[bytes, int], by_token: bool) -> dict[bytes, numbers.Value]:
    """The numbers that are kept of these answers, as the first process finds them: its folder need not be everybody's."""
    kept = numbers.read(folder, fingerprint) if hosts.process_index() == 0 else {}
    every = [np.ravel(kept.get(key, np.full(size, np.nan))) for key, size in sizes.items()]
    values = np.split(hosts.array_from_first(np.concatenate(every).astype(np.float32)), np.cumsum([*sizes.values()])[:-1])
    known = {key: value for key, value in zip(sizes, values, strict=True) if not np.isnan(value[0])}
    return known if by_token else {key: float(value[0]) for key, value in known.items()}


def _load(path: str, prepared: loader.Prepared, reader: Reader) -> Policy:
    model = dataclasses.replace(reader.model, param_dtype=reader.model.dtype)  # nobody trains it
    loaded = checkpoints.load(path, model, reader.mesh, chat_template=reader.data.chat_template)
    if prepared.room is not None:
        inputs.check_pictures(loaded, prepared.codec.reader)
    return Policy(loaded.config, {"backbone": loaded.params, "heads": loaded.heads}, None)


def _compute(
    readout: Readout,
    policy: Policy,
    prepared: loader.Prepared,
    keys: Sequence[tuple[bytes, ...]],
    known: dict[str, dict[bytes, numbers.Value]],
    absent: set[bytes],
    reader: Reader,
    fingerprint: str,
) -> None:
    """Fill `known`, batch by batch in the order of the rows: whichever are missing, a batch has the same rows."""
    size = reader.data.batch_size
    read = readout.jit(policy.config, reader.mesh, reader.microbatches)
    starts = [start for start in range(0, len(keys), size) if not absent.isdisjoint(itertools.chain(*keys[start : start + size]))]
    batches = loader.all_batches(
        prepared,
        prepared.kind,
        None,
        reader.data,
        batch_size=size,
        rows_here=hosts.own_rows(size, reader.mesh),
        chooses=lambda rows: rows.start in starts,
    )
    fresh: dict[str, dict[bytes, numbers.Value]] = {name: {} for name in known}
    for start, (batch, _) in zip(starts, batches, strict=True):
        told = hosts.to_host(read(policy.tree, policy.base, hosts.global_batch(batch, reader.mesh)))
        for place, row in enumerate(keys[start : start + size]):
            for side, (key, answer) in enumerate(zip(row, prepared.rows[start + place].responses, strict=True)):
                for name, part in fresh.items() if key in absent else ():
                    value = told[name][place, side]
                    part[key] = value[: len(answer)].copy() if readout.by_token else float(value)
        if start == starts[-1] or any(len(part) >= PART for part in fresh.values()):
            for name, part in fresh.items():
                numbers.write(reader.folder, f"{fingerprint}-{name}", part)
                known[name] |= part
                fresh[name] = {}


def _jit_scores(config: VLMConfig, mesh: Mesh, microbatches: int) -> Read:
    score = scoring.jit_scores(config, mesh, microbatches=microbatches)
    return lambda tree, base, batch: score({scoring.SCORER: tree}, batch, batch.images)


def _jit_token_scores(heads: Mapping[str, str], config: VLMConfig, mesh: Mesh, microbatches: int) -> Read:
    """(tree, base, batch) -> scores after each token by name, jitted.

    Args:
        heads: head of each name.
    """

    def of_rows(tree: dict, batch: PreferenceBatch) -> dict[str, Float[Array, "B 2 R"]]:
        scores = sequences.pair_token_scores(config, tree, batch, sequences.encode(config, tree, batch.images))
        return {name: scores[head] for name, head in heads.items()}

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def read(tree: dict, base: dict | None, batch: PreferenceBatch) -> dict[str, Float[Array, "B 2 R"]]:
        whole = with_backbone(base, tree)
        return over_rows(lambda rows: of_rows(whole, rows), batch, microbatches)

    return read


def _fingerprint(path: str, model: ModelConfig, policy: Policy | None) -> str:
    """Digest of a checkpoint's weights, adapter and architecture, and of the number formats it is held and run in."""
    if hosts.process_index() > 0:
        return hosts.text_from_first("")
    held = {model.dtype}
    if policy is not None:
        held = {str(leaf.dtype) for leaf in jax.tree.leaves(policy.tree.get("backbone", policy.base))}
    sha = hashlib.sha256(json.dumps([model.dtype, sorted(held)]).encode())
    for digest in digests(path):
        sha.update(digest)
    return hosts.text_from_first(sha.hexdigest()[:32])
