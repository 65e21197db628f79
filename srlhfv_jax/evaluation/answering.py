"""A trained policy's answers to a set of prompts: for preference pairs, for comparisons, for samples a person can read."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from srlhfv_jax.config import DataConfig, MeshConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.evaluation import policies
from srlhfv_jax.evaluation.answers import Answers
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.training import state as states


class Answerer(NamedTuple):
    """Prompts that are read, and one jitted sampler for policies of one architecture."""

    prompts: loader.Prepared
    data: DataConfig
    model: ModelConfig
    mesh: jax.sharding.Mesh
    sample: Callable  # (params, prompts, key) -> Rollout
    temperature: float


def prepare(path: Path, base: str, data: DataConfig, model: ModelConfig, mesh: MeshConfig, *, temperature: float) -> Answerer:
    """Read the prompts at `path` with the processor of the checkpoint `base`, whose shape every policy asked later must have."""
    data = dataclasses.replace(data, path=str(path))
    on = make_mesh(mesh)
    jax.set_mesh(on)
    shape = checkpoints.load_shape(base, model)
    sample = jax.jit(
        functools.partial(
            generate,
            response_length=data.response_length,
            vocabulary=checkpoints.vocabulary(shape),
            sampling=Sampling(temperature),
        ),
        static_argnums=0,
        out_shardings=hosts.row_sharding(on),
    )
    return Answerer(inputs.prepare("prompts", data, shape), data, model, on, sample, temperature)


def answers(asked: Answerer, policy: str | Path, *, seed: int) -> Answers:
    """One answer to every prompt, in order, drawn with `seed`."""
    loaded = checkpoints.load(str(policy), asked.model, asked.mesh)

    def draw(batch, index: int):
        return asked.sample(loaded.config, loaded.params, batch, states.key(seed, index, "evaluation"))

    said, _ = policies.sample_answers(
        draw,
        inputs.in_order(asked.prompts, asked.data, asked.mesh),
        [row.row for row in asked.prompts.rows],
        asked.prompts.codec.spoken,
        temperature=asked.temperature,
    )
    return said


def two_different(drawn: Sequence[Answers], row: int) -> tuple[str, str] | None:
    """The first two different texts among several answers to one prompt; None if all are alike."""
    first, *rest = (said.texts[row] for said in drawn)
    return next(((first, other) for other in rest if other != first), None)
