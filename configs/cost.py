"""A cost model of its own: srlhfv cost --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

The presets are those of configs/scores.py, with the cost head alone. Cost > 0 means unsafe. For ppo_lag with sharing="separate". Not run at 7B.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, scores, sections


def default() -> ConfigDict:
    """One pass over BeaverTails-V's 29,824 preferences at batch 32."""
    config = scores.default()
    config.heads = ("cost",)
    return config


def paper() -> ConfigDict:
    """The published constants: 3 epochs at batch 32, 3e-5, graded signs."""
    config = scores.paper()
    config.heads = ("cost",)
    return config


def tiny() -> ConfigDict:
    """Two steps of two pairs, for tests."""
    config = scores.tiny()
    config.heads = ("cost",)
    return config


PRESETS = {"default": default, "paper": paper, "tiny": tiny} | recipes.supervised(default, sequences=2)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
