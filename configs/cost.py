"""A cost model of its own: srlhfv cost --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

    default, paper, tiny, recipes   as configs/scores.py, with the cost head alone

Cost > 0 means unsafe. For ppo_lag with sharing="separate". Not run at 7B.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import recipes, scores, sections


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "paper", "tiny", *recipes.RECIPES)
    return scores.scores(arg, heads=("cost",), schedule="cosine")
