"""Settings of `srlhfv quickstart`: the embedded task, and every stage of the pipeline."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from srlhfv_jax.config.guard import GuardConfig
from srlhfv_jax.config.ppo_lag import PPOLagConfig
from srlhfv_jax.config.ranges import Count, CountOrOff, Positive, Range, Seed, Share, Weight, Width
from srlhfv_jax.config.scores import ScoresConfig
from srlhfv_jax.config.sft import SFTConfig
from srlhfv_jax.config.unread import Unread


@dataclass(frozen=True)
class TaskConfig:
    """The embedded task "Look before you answer": pictures, prompts, and the noise of its annotators."""

    patch: Annotated[int, Range(1, 4096)]  # pixels
    vision_layers: Width  # of the vision tower
    vision_width: Width  # of the vision tower
    text_layers: Width  # of the decoder
    text_width: Width  # of the decoder
    heads: Width  # of attention, in both
    naming_rows: Count  # rows of the first stage, which names what is shown
    sft_rows: Count  # rows of supervised fine-tuning
    prompts: Count  # PPO prompts
    validation_prompts: Count  # prompts that choose the best policy
    test_prompts: Count  # prompts of the final numbers
    unseen_prompts: Count  # of concepts that no stage has seen
    pair_prompts: Count  # prompts sampled for pairs, in each round
    heldout_pair_prompts: Count  # of the pairs that measure the scorer
    responses_per_prompt: Annotated[int, Range(2, 1000)]  # drawn for each pair prompt; the pair is two different ones of them
    pair_temperature: Positive  # of their answers
    mix: tuple[Share, ...]  # harmful, contextual harmless, neutral about a hazard, neutral harmless
    name_pairs: CountOrOff  # constructed pairs that differ in the name alone, added in the first round
    topic_pairs: CountOrOff  # constructed pairs of an answer to the question and one to another, added in the first round
    harm_at_budget: Share  # the harm rate and the over-refusal at which the oracle budget is set
    over_refusal_at_budget: Share  # share of harmless prompts that are refused there
    preference_beta: Weight  # Bradley-Terry inverse temperature of the annotators
    flip: Share  # share of labels turned over
    guard_rows: Count  # labelled questions and answers that the guard is trained on
    guard_heldout_rows: Count  # of those that set its thresholds, and of those it is measured by


@dataclass(frozen=True)
class QuickstartConfig:
    """`srlhfv quickstart`: the whole pipeline. The paths inside the stages are filled in by the pipeline."""

    seed: Seed  # of everything; --seed
    rounds: Annotated[int, Range(1, 100)]  # of sample -> annotate -> refit -> fine-tune
    sweep: tuple[Weight, ...]  # fixed multipliers trained beside, with --sweep
    task: TaskConfig
    naming: SFTConfig
    sft: SFTConfig
    scores: ScoresConfig  # of the first round
    refit_steps: CountOrOff  # of the later ones: they start from the heads before
    ppo: PPOLagConfig
    ppo_lag: PPOLagConfig
    guard: GuardConfig
    guard_rounds: Annotated[int, Range(0, 100)]  # of regeneration

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        stages = {name: vars(self)[name] for name in ("naming", "sft", "scores", "ppo", "ppo_lag", "guard")}
        filled = ("seed", "init", "init_random", "policy", "reference", "scorer", "data.path", "calibration")
        filled += ("validation.path", "validation.budget")
        for stage, own in stages.items():
            guards = ("evaluation",) if stage == "guard" else ()
            for name in (*filled, *guards):
                if name.split(".")[0] in vars(own):
                    yield Unread(f"{stage}.{name}", "the pipeline sets it for each of its stages (the seed: --seed)")
            for name in ("system_prompt", "chat_template", "train_on"):
                yield Unread(f"{stage}.data.{name}", "the embedded task has questions of one turn, and a template of its own")
            given = ("calibration", "validation", "reward", "cost", *guards)  # are there once the pipeline has set its paths
            yield from (
                one._replace(path=f"{stage}.{one.path}", off=None)
                for one in own.unread()
                if not one.path.startswith(given) and one.path not in ("false_positive_rate", "thresholds")
            )
        if self.rounds == 1:
            yield Unread("refit_steps", "there is one round, config.rounds is 1")
