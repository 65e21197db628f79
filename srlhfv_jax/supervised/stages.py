"""The supervised stages as commands."""

from collections.abc import Callable

from srlhfv_jax.config import ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.runs.stage import INIT, Run, Stage

PAIRS = {"init": INIT, "data.path": "rows with two responses and both preferences"}


def _sft() -> Run:
    from srlhfv_jax.supervised import sft

    return sft.run


def _scores() -> Run:
    from srlhfv_jax.supervised import scores

    return scores.run


def _one_head(name: str) -> Callable[[ScoresConfig], None]:
    def check(settings: ScoresConfig) -> None:
        if settings.heads != (name,):
            raise UserError(
                f"srlhfv {name} trains one head: expected config.heads = ({name!r},), got {settings.heads}; use srlhfv scores for both"
            )

    return check


SFT = Stage(
    name="sft",
    text="Supervised fine-tuning on questions with one response.",
    settings=SFTConfig,
    needed={"init": INIT, "data.path": "rows with a question and a response"},
    example="--workdir=W/sft --config.init=LLAVA_FOLDER --config.data.path=rows.jsonl",
    load=_sft,
)
SCORES = Stage(
    name="scores",
    text="Reward and cost heads on one backbone, trained jointly from dual preferences.",
    settings=ScoresConfig,
    needed=PAIRS,
    example="--workdir=W/scores --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    load=_scores,
)
REWARD = SCORES._replace(
    name="reward",
    text='A reward model on a backbone of its own, for ppo_lag with config.sharing="separate".',
    example="--workdir=W/reward --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    check=_one_head("reward"),
)
COST = SCORES._replace(
    name="cost",
    text='A cost model on a backbone of its own, for ppo_lag with config.sharing="separate".',
    example="--workdir=W/cost --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    check=_one_head("cost"),
)
