"""Models on benchmark cases: answers of a policy, and reward and cost of answers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from srlhfv_jax.config import DataConfig, EvaluateConfig
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import policies
from srlhfv_jax.evaluation.judging import choose as judges
from srlhfv_jax.evaluation.judging.verdict import Opinion
from srlhfv_jax.evaluation.suites.case import Case, picture
from srlhfv_jax.models import sequences
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.training import state as states

BATCHES = 1 << 20  # more than any benchmark fills: keeps the keys of several answers to one case apart


class Cases(Sequence[Example]):
    """Cases as the rows that a loader reads; pictures are fetched anew at every access."""

    def __init__(self, cases: Sequence[Case], responses: Sequence[str] | None = None):
        self._cases, self._responses = cases, responses

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Example:
        encoded = picture(self._cases[index])
        images = () if encoded is None else (encoded,)
        if self._responses is None:
            return Example(images, self._cases[index].prompt, ())
        return Example(images, self._cases[index].prompt, (self._responses[index],), unsafe=(None,), severity=(None,))


def sampler(loaded: Any, settings: EvaluateConfig, mesh: Any) -> Callable:
    """(params, prompts, key) -> rollout, jitted, for one policy."""
    return jax.jit(
        functools.partial(
            generate,
            loaded.config,
            response_length=settings.data.response_length,
            vocabulary=checkpoints.vocabulary(loaded),
            sampling=Sampling(settings.temperature),
        ),
        out_shardings=hosts.row_sharding(mesh),
    )


def answer(
    loaded: Any,
    draw: Callable,
    settings: EvaluateConfig,
    mesh: Any,
    cases: Sequence[Case],
    sample: int,
    *,
    keep: Callable[[Case, str, bool], None],
    drop: Callable[[Case, str], None],
) -> None:
    """One more answer to each case, as soon as its batch is done.

    Args:
        draw: `sampler(loaded, settings, mesh)`.
        sample: which answer to these cases it is; seeds the sampling.
        keep: told case, text, and whether the answer ended by itself.
        drop: told cases that the policy cannot read, and the reason (`data.drops.REASONS`).

    Raises:
        UserError: it can read none of them.
    """
    data = settings.data
    prompts = inputs.fit_loosely("prompts", Cases(cases), data, loaded)
    for dropped in prompts.dropped:
        drop(cases[dropped.row], dropped.reason)
    readable = [row.row for row in prompts.rows]
    for index, batch in enumerate(inputs.in_order(prompts, data, mesh)):
        key = states.key(settings.seed, sample * BATCHES + index, "evaluation")
        done, end = (min(number * data.batch_size, len(readable)) for number in (index, index + 1))
        said, _ = policies.sample_answers(
            lambda asked, _, key=key: draw(loaded.params, asked, key),
            [batch],
            readable[done:end],
            prompts.codec.spoken,
            temperature=settings.temperature,
        )
        for row, text, ended in zip(said.prompts.tolist(), said.texts, said.ended.tolist(), strict=True):
            keep(cases[row], text, ended)
        hosts.say(f"  {end} of {len(readable)} answers")


def score(loaded: Any, data: DataConfig, mesh: Any, cases: Sequence[Case], answers: Sequence[str]) -> list[Opinion | None]:
    """What a checkpoint with the heads reward and cost says of each answer; None of one it cannot read (an empty one).

    An answer that was cut at its longest is read as if it had ended there.

    Raises:
        UserError: it has not both heads, or can read no answer.
    """
    if not {judges.REWARD, judges.COST} <= loaded.heads.keys():
        raise UserError(f"{loaded.path} has the heads {sorted(loaded.heads)}: a judge needs reward and cost on one backbone")
    any_length = dataclasses.replace(data, prompt_length=0, response_length=0)
    rows = inputs.fit_loosely("supervised", Cases(cases, answers), any_length, loaded, literal=True)
    tree = {"backbone": loaded.params, "heads": loaded.heads}

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def ends(tree, batch):
        return sequences.end_scores(loaded.config, tree, batch, sequences.encode(loaded.config, tree, batch.images))

    found = judges.model_scores(lambda batch: hosts.to_host(ends(tree, batch)), inputs.in_order(rows, data, mesh))
    opinions: list[Opinion | None] = [None] * len(cases)
    for row, reward, cost in zip(rows.rows, found[judges.REWARD], found[judges.COST], strict=True):
        opinions[row.row] = Opinion(float(reward), float(cost))
    return opinions
