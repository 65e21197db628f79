"""A guard: srlhfv guard --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V --config.calibration=HELD_OUT

    default   severity and 20 categories of BeaverTails-V, questions and answers, thresholds for a false-positive rate of 5 %
    pku_saferlhf, beavertails
              the same with the 19 and the 14 categories of the text data sets
    tiny      two steps of four rows, for tests
    and those of configs/recipes.py

The paper does not publish how its guard was trained: these values are ours. Not run at 7B.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import recipes, sections


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "pku_saferlhf", "beavertails", "tiny", *recipes.RECIPES)
    tiny = arg == "tiny"
    config = ConfigDict(
        dict(
            seed=0,
            init="",  # the SFT policy: its workdir, its export, or a Hugging Face folder
            taxonomy=arg if arg in ("pku_saferlhf", "beavertails") else "beavertails_v",
            parts=("input", "output"),
            category_weight=1.0,
            balance=True,
            false_positive_rate=0.05,
            thresholds="each",
            steps=2 if tiny else 2000,
            microbatches=1,
            calibration="",  # held-out rows that set the thresholds
            calibration_split="",
            evaluation="",  # other held-out rows
            evaluation_split="",
            pairs=dict(
                path="",  # dual preferences: reward and cost heads beside the guard's, on one backbone
                split="",
                batch_size=2 if tiny else 32,
                coef=1.0,
                sign="label",
                sign_weight=1.0,
                score_l2=1e-3,
                evaluation="",  # held-out pairs
                evaluation_split="",
            ),
            lora=sections.lora(),
            model=sections.model(tiny),
            mesh=sections.mesh(),
            data=sections.data(batch=4 if tiny else 64, prompt=32 if tiny else 1024, response=16 if tiny else 512),
            # Heads start from nothing: ten times the backbone's rate lets thresholds come apart by the nats that levels need.
            optimizer=sections.optimizer(2e-5, schedule="cosine", weight_decay=0.1, freeze=("vision/",), heads=2e-4),
            checkpoint=sections.checkpoint(1 if tiny else 100),
            log=sections.log(1 if tiny else 10),
        )
    )
    return recipes.supervised(arg, config)
