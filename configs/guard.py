"""A guard: srlhfv guard --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V --config.calibration=HELD_OUT

The paper does not publish how its guard was trained: these values are ours. Not run at 7B.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, sections


def default() -> ConfigDict:
    """Severity and 20 categories of BeaverTails-V, questions and answers, thresholds for a false-positive rate of 5 %."""
    return ConfigDict(
        dict(
            seed=0,  # of heads, rows and their order
            init="",  # the SFT policy: its workdir, its export, or a Hugging Face folder
            taxonomy="beavertails_v",  # what the rows are labelled with
            parts=("input", "output"),  # questions and answers
            category_weight=1.0,  # of the category loss beside the severity loss
            balance=True,  # rare classes weigh more while training
            false_positive_rate=0.05,  # at most this share of safe calibration rows is called unsafe
            thresholds="each",  # part by its own calibration rows
            steps=2000,
            microbatches=1,  # parts of a batch, one after the other
            calibration="",  # held-out rows that set the thresholds
            calibration_split="",
            **sections.held_out(),  # other rows than those of the calibration
            pairs=dict(
                path="",  # dual preferences: reward and cost heads beside the guard's, on one backbone
                split="",
                batch_size=32,  # pairs of a step
                coef=1.0,  # of their loss beside the guard's
                sign="label",  # +-1 from the safety label
                sign_weight=1.0,  # of the sign terms beside the preference
                score_l2=1e-3,  # on squared scores
                evaluation="",  # held-out pairs
                evaluation_split="",
            ),
            # Heads start from nothing: ten times the backbone's rate lets thresholds come apart by the nats that levels need.
            **sections.supervised(batch=64, weight_decay=0.1, heads=2e-4),
        )
    )


def pku_saferlhf() -> ConfigDict:
    """The same with the 19 categories of PKU-SafeRLHF, text alone."""
    config = default()
    config.taxonomy = "pku_saferlhf"
    return config


def beavertails() -> ConfigDict:
    """The same with the 14 categories of BeaverTails, text alone."""
    config = default()
    config.taxonomy = "beavertails"
    return config


def tiny() -> ConfigDict:
    """Two steps of four rows, for tests."""
    config = default()
    config.steps = 2
    config.pairs.batch_size = 2
    sections.tiny(config, rows=4, response=16)
    return config


PRESETS = {"default": default, "pku_saferlhf": pku_saferlhf, "beavertails": beavertails, "tiny": tiny}
PRESETS |= recipes.supervised(default)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
