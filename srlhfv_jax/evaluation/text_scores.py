"""Reward and cost of answers as they come, by a checkpoint with score heads: for the server."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import scoring
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import checkpoints, few_shapes, inputs


class TextScorer(NamedTuple):
    """A checkpoint with score heads; from any thread."""

    checkpoint: Pretrained
    data: DataConfig  # the longest prompt and answer (0: any), and the batch size
    lengths: few_shapes.Lengths
    mesh: Mesh
    score: Callable[..., Mapping[str, Any]]  # `scoring.jit_scores`


def load_scorer(path: str, data: DataConfig, model: ModelConfig, mesh: Mesh, lengths: few_shapes.Lengths) -> TextScorer:
    """Load a scorer.

    Raises:
        UserError: there is none at `path`, or it has no score heads.
    """
    scoring.check_score_heads(path, model)
    return around(checkpoints.load(path, model, mesh), data, mesh, lengths)


def around(checkpoint: Pretrained, data: DataConfig, mesh: Mesh, lengths: few_shapes.Lengths) -> TextScorer:
    """The scorer of a checkpoint that is loaded already, and has score heads."""
    return TextScorer(checkpoint, data, lengths, mesh, scoring.jit_scores(checkpoint.config, mesh))


def unreadable(scorer: TextScorer, examples: Sequence[Example]) -> list[Unusable | None]:
    """The reason why the scorer cannot read each example with its one response; None of one it can."""
    data = scorer.data
    limits = dict(system_prompt=data.system_prompt, prompt_length=data.prompt_length, response_length=data.response_length)
    return inputs.unreadable(inputs.sizes(examples, scorer.checkpoint, data.max_pixels, **limits))


def scores(scorer: TextScorer, examples: Sequence[Example]) -> list[dict[str, float]]:
    """{head: score} of each example's one response, in order.

    Raises:
        UserError: an example that `unreadable` names, or a score that is not finite.
    """
    by_row: list[dict[str, float]] = [{} for _ in examples]
    tree = scoring.scorer_tree(scorer.checkpoint)
    with jax.set_mesh(scorer.mesh):  # the mesh in force is a thread's own
        prepared = inputs.fit_loosely("supervised", examples, scorer.data, scorer.checkpoint, literal=True)
        if prepared.dropped:
            first = prepared.dropped[0]
            raise UserError(f"answer {first.row} cannot be read by {scorer.checkpoint.path}: {first.reason}: {first.detail}")
        for group in few_shapes.groups(prepared, scorer.lengths):
            batches = inputs.in_order(group, scorer.data, scorer.mesh)
            found = scoring.model_scores(lambda batch: hosts.to_host(scorer.score(tree, batch, batch.images)), batches)
            for place, row in enumerate(group.rows):
                by_row[row.row] = {head: float(values[place]) for head, values in found.items()}
    return by_row
