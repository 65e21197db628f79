"""The same few prompts, answered by the policy every `config.log.samples_every` steps of sft (evaluation/same_prompts.py).

They are the first of the held-out rows, or of the training's where there are none. No random number of the training changes.
"""

import dataclasses
from collections.abc import Callable

from srlhfv_jax.config import SFTConfig
from srlhfv_jax.data import loader
from srlhfv_jax.evaluation import answering, same_prompts
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel.mesh import row_shards
from srlhfv_jax.runs.run import Started

TEMPERATURE = 1.0  # the distribution that is trained


def make(
    settings: SFTConfig, model: Pretrained, base: dict | None, started: Started, rows: loader.Prepared
) -> Callable[[dict, int], None]:
    """(trained tree, step) -> answers in the workdir, where they are due.

    Args:
        base: the frozen backbone under a tree that holds an adapter.
        rows: whose first prompts are answered.
    """
    every = settings.log.samples_every
    if not every:
        return lambda tree, step: None
    prompts = same_prompts.first(rows, settings.log.samples)._replace(kind="prompts")
    shards = row_shards(started.mesh)
    data = dataclasses.replace(settings.data, batch_size=-(-len(prompts.rows) // shards) * shards)
    sampler, keys = answering.Sampler(started.mesh, data, temperature=TEMPERATURE), answering.keys(settings.seed)

    def sample(tree: dict, step: int) -> None:
        if step % every and step != settings.steps:
            return
        policy = model._replace(params=with_backbone(base, tree)["backbone"])
        same_prompts.record(started.writer, prompts, step, sampler.answers(policy, prompts, keys), {}, started.verdicts)

    return sample
