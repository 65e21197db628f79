"""Sizes and layouts for published checkpoints on slices that people can get: `--config=configs/ppo_lag.py:llava15_7b_adapters`.

The same names are presets of sft, scores, reward and cost. Each function below names its slice, its command and the memory that
`srlhfv plan` found (benchmarks/plans.py asks for all of them). Rewards, budgets and constraint are those of `default`. Nothing
here was trained: rates of adapters are ten times those of whole models, as is usual, and the rest is what fits.

From checkpoint to policy, each stage on the same slice with the same preset:

    srlhfv sft     --config=configs/sft.py:NAME     --workdir=W/sft    --config.data.path=ROWS
    srlhfv scores  --config=configs/scores.py:NAME  --workdir=W/scores --config.init=W/sft --config.data.path=PAIRS
    srlhfv ppo_lag --config=configs/ppo_lag.py:NAME --workdir=W/ppo    --config.policy=W/sft --config.scorer=W/scores \
                   --config.data.path=PROMPTS
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from ml_collections import ConfigDict

from srlhfv_jax.configs.sections import Presets


@dataclass(frozen=True)
class Recipe:
    """What a preset changes of `default`. A response has 512 tokens."""

    checkpoint: str  # its shape is planned, and sft starts from it; later stages start from a workdir
    topology: str  # the smallest slice that it is meant for
    sharing: str
    answers: int  # of one iteration; as many prompts, where an answer has no group
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    prompt_length: int = 1024  # with the features of a picture in it
    max_pixels: int = 0  # where pictures are of any size; 0 = the family has a fixed one
    microbatches: int = 1  # of a PPO minibatch
    step_rows: int = 32  # of sft; scores take half as many pairs
    step_microbatches: int = 1
    logp_chunk: int = 0  # where a vocabulary is so large that all logits of a response would be most of the memory
    group_size: int = 1  # answers to a prompt: above 1 without critics
    int8: bool = False  # the backbone under adapters
    rollout_microbatches: int = 1
    score_microbatches: int = 1


def smolvlm_256m_shared() -> Recipe:
    """SmolVLM-256M with its pictures cut into 17 tiles (1,088 features), everything trained: one v5e chip, as in Colab.

    srlhfv plan --config=configs/ppo_lag.py:smolvlm_256m_shared --topology=v5e:1x1
    8 prompts an iteration: 9.10 of 16.91 GB on each chip, in generate.
    """
    return Recipe("HuggingFaceTB/SmolVLM-256M-Instruct", "v5e:1x1", "shared", 8, (1, 1, 1), prompt_length=1280, step_rows=8)


def gemma3_4b_adapters() -> Recipe:
    """Gemma 3 4B, one frozen backbone under all six roles.

    srlhfv plan --config=configs/ppo_lag.py:gemma3_4b_adapters --topology=v5e:2x2
    32 prompts an iteration: 6.49 of 16.91 GB on each chip, in generate.
    """
    return Recipe(
        "google/gemma-3-4b-it", "v5e:2x2", "adapters", 32, (-1, 1, 4), microbatches=4, step_microbatches=8, logp_chunk=64
    )


def llava15_7b_adapters() -> Recipe:
    """LLaVA-1.5-7B, one frozen backbone under all six roles. On one v6e chip: 8 prompts and --config.mesh.tensor=1; on one v5e
    chip, with all 32: --config.mesh.tensor=1 --config.lora.int8=True --config.microbatches=16 --config.rollout.microbatches=8
    --config.rollout.score_microbatches=4.

    srlhfv plan --config=configs/ppo_lag.py:llava15_7b_adapters --topology=v5e:2x2
    32 prompts an iteration: 12.77 of 16.91 GB on each chip, in generate.
    """
    return Recipe("llava-hf/llava-1.5-7b-hf", "v5e:2x2", "adapters", 32, (-1, 1, 4), microbatches=4, step_microbatches=8)


def llava15_7b_group() -> Recipe:
    """LLaVA-1.5-7B without critics, eight answers to each prompt compared, on one v5e chip: one frozen int8 backbone under all roles.

    srlhfv plan --config=configs/ppo_lag.py:llava15_7b_group --topology=v5e:1x1
    8 prompts, 64 answers an iteration: 11.83 of 16.91 GB, in generate.
    """
    return Recipe(
        "llava-hf/llava-1.5-7b-hf",
        "v5e:1x1",
        "adapters",
        64,
        (1, 1, 1),
        group_size=8,
        int8=True,
        microbatches=16,
        rollout_microbatches=8,
        score_microbatches=8,
        step_microbatches=16,
    )


def qwen2vl_7b_adapters() -> Recipe:
    """Qwen2-VL-7B, one frozen backbone under all six roles; pictures of at most 401,408 pixels (512 features).

    srlhfv plan --config=configs/ppo_lag.py:qwen2vl_7b_adapters --topology=v5e:2x4
    32 prompts an iteration: 6.86 of 16.91 GB on each chip, in generate.
    """
    return Recipe(
        "Qwen/Qwen2-VL-7B-Instruct",
        "v5e:2x4",
        "adapters",
        32,
        (-1, 1, 4),
        max_pixels=401_408,
        logp_chunk=64,
        microbatches=4,
        step_microbatches=8,
    )


def qwen25vl_7b_group() -> Recipe:
    """Qwen2.5-VL-7B without critics, eight answers to each prompt compared; pictures of at most 401,408 pixels (512 features).

    srlhfv plan --config=configs/ppo_lag.py:qwen25vl_7b_group --topology=v5e:2x4
    16 prompts, 128 answers an iteration: 8.01 of 16.91 GB on each chip, in update.
    """
    return Recipe(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "v5e:2x4",
        "adapters",
        128,
        (-1, 1, 4),
        max_pixels=401_408,
        logp_chunk=64,
        group_size=8,
        microbatches=8,
        score_microbatches=4,
        step_microbatches=8,
    )


def llava15_7b_shared() -> Recipe:
    """LLaVA-1.5-7B, policy and critic trained whole, float32 masters; reference and scorer frozen.

    srlhfv plan --config=configs/ppo_lag.py:llava15_7b_shared --topology=v5p:2x2x1
    32 prompts an iteration: 73.27 of 102.80 GB on each chip, in update.
    """
    return Recipe("llava-hf/llava-1.5-7b-hf", "v5p:2x2x1", "shared", 32, (1, -1, 1), microbatches=2, step_microbatches=2)


def llava15_7b_separate() -> Recipe:
    """LLaVA-1.5-7B, the paper's six models: policy and two critics trained whole, reference, reward and cost frozen.

    srlhfv plan --config=configs/ppo_lag.py:llava15_7b_separate --topology=v5e:4x8
    64 prompts an iteration: 14.41 of 16.91 GB on each chip, in generate.
    """
    return Recipe("llava-hf/llava-1.5-7b-hf", "v5e:4x8", "separate", 64, (1, 8, 4), microbatches=2)


def qwen25vl_32b_adapters() -> Recipe:
    """Qwen2.5-VL-32B, one frozen backbone under all six roles; pictures of at most 401,408 pixels (512 features).

    srlhfv plan --config=configs/ppo_lag.py:qwen25vl_32b_adapters --topology=v6e:2x4
    32 prompts an iteration: 17.15 of 33.55 GB on each chip, in generate.
    """
    return Recipe(
        "Qwen/Qwen2.5-VL-32B-Instruct",
        "v6e:2x4",
        "adapters",
        32,
        (-1, 1, 8),
        max_pixels=401_408,
        logp_chunk=64,
        microbatches=8,
        step_microbatches=16,
    )


def qwen25vl_72b_adapters() -> Recipe:
    """Qwen2.5-VL-72B, one frozen backbone under all six roles; pictures of at most 401,408 pixels (512 features).

    srlhfv plan --config=configs/ppo_lag.py:qwen25vl_72b_adapters --topology=v6e:4x4
    32 prompts an iteration: 22.67 of 33.55 GB on each chip, in update.
    """
    return Recipe(
        "Qwen/Qwen2.5-VL-72B-Instruct",
        "v6e:4x4",
        "adapters",
        32,
        (1, 1, 16),
        max_pixels=401_408,
        logp_chunk=64,
        microbatches=8,
        step_microbatches=16,
    )


ALL = (
    smolvlm_256m_shared,
    gemma3_4b_adapters,
    llava15_7b_adapters,
    llava15_7b_group,
    qwen2vl_7b_adapters,
    qwen25vl_7b_group,
    llava15_7b_shared,
    llava15_7b_separate,
    qwen25vl_32b_adapters,
    qwen25vl_72b_adapters,
)
RECIPES = {recipe.__name__: recipe() for recipe in ALL}
RANK = 16  # of adapters


def ppo_lag(default: Callable[[], ConfigDict]) -> Presets:
    """The presets of configs/ppo_lag.py, one for each recipe."""
    return _presets(default, _ppo_lag)


def supervised(default: Callable[[], ConfigDict], sequences: int = 1) -> Presets:
    """The presets of configs/sft.py, of a score model or of a guard, whose rows have `sequences` answers each."""
    return _presets(default, functools.partial(_supervised, sequences))


def _presets(default: Callable[[], ConfigDict], change: Callable[[ConfigDict, Recipe], None]) -> Presets:
    def preset(name: str) -> ConfigDict:
        config, recipe = default(), RECIPES[name]
        change(config, recipe)
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = recipe.mesh
        config.data.update(prompt_length=recipe.prompt_length, max_pixels=recipe.max_pixels)
        return config

    made = {recipe.__name__: functools.partial(preset, recipe.__name__) for recipe in ALL}
    for recipe in ALL:
        made[recipe.__name__].__doc__ = recipe.__doc__
    return made


def _ppo_lag(config: ConfigDict, recipe: Recipe) -> None:
    config.policy, config.sharing, config.microbatches = recipe.checkpoint, recipe.sharing, recipe.microbatches
    config.data.batch_size, config.model.logp_chunk = recipe.answers, recipe.logp_chunk
    config.rollout.update(microbatches=recipe.rollout_microbatches, score_microbatches=recipe.score_microbatches)
    if recipe.group_size > 1:
        config.ppo.update(advantage="group", group_size=recipe.group_size)
        _adapters(config, recipe, config.policy_optimizer)
        return
    _adapters(config, recipe, config.policy_optimizer, config.critic_optimizer)
    if recipe.sharing == "adapters":
        config.critic_warmup_rate *= 10


def _supervised(sequences: int, config: ConfigDict, recipe: Recipe) -> None:
    config.init, config.microbatches = recipe.checkpoint, recipe.step_microbatches
    config.data.batch_size = recipe.step_rows // sequences
    if "pairs" in config:
        config.pairs.batch_size = recipe.step_rows // 2
    if "heads" not in config and "taxonomy" not in config:  # score models and guards make no logits
        config.model.logp_chunk = recipe.logp_chunk
    _adapters(config, recipe, config.optimizer)


def _adapters(config: ConfigDict, recipe: Recipe, *optimizers: ConfigDict) -> None:
    if recipe.sharing == "adapters":
        config.lora.rank, config.lora.int8 = RANK, recipe.int8
        for one in optimizers:
            one.learning_rate *= 10
