"""Reward and cost heads on one backbone: srlhfv scores --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

    default   both heads jointly, one pass over BeaverTails-V's 29,824 dual preferences at batch 32, +-1 sign terms
    paper     the published constants (3 epochs, batch 32 = 4 x 8 devices, 3e-5, graded signs); the paper trains two separate
              models: configs/reward.py:paper and configs/cost.py:paper
    tiny      two steps of two pairs, for tests
    and those of configs/recipes.py

Both answers of a pair stand in one sequence; raise config.microbatches if a batch does not fit. Pairs longer than 1,024 tokens of
prompt or 512 of an answer are dropped and counted; the released code reads 4,096 in all. Not run at 7B.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import recipes, sections


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "paper", "tiny", *recipes.RECIPES)
    return scores(arg, heads=("reward", "cost"), schedule="cosine")


def scores(arg: str, *, heads: tuple[str, ...], schedule: str) -> ConfigDict:
    """The settings of any score model; configs/reward.py and configs/cost.py differ in heads and schedule."""
    tiny, paper = arg == "tiny", arg == "paper"
    config = ConfigDict(
        dict(
            seed=0,
            init="",  # the SFT policy: its workdir, its export, or a Hugging Face folder
            heads=heads,
            sign="graded" if paper else "label",
            sign_weight=1.0,
            score_l2=1e-3,
            steps=2 if tiny else 2796 if paper else 932,
            microbatches=1,
            evaluation="",  # held-out pairs
            evaluation_split="",
            lora=sections.lora(),
            model=sections.model(tiny),
            mesh=sections.mesh(),
            data=sections.data(batch=2 if tiny else 32, prompt=32 if tiny else 1024, response=16 if tiny else 512),
            optimizer=sections.optimizer(
                3e-5 if paper else 2e-5, schedule=schedule, weight_decay=0.0 if paper else 0.1, freeze=("vision/",)
            ),
            checkpoint=sections.checkpoint(1 if tiny else 100),
            log=sections.log(1 if tiny else 10),
        )
    )
    return recipes.supervised(arg, config, rows=2)
