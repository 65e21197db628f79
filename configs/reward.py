"""A reward model of its own: srlhfv reward --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

    default, paper, tiny, recipes   as configs/scores.py; the published schedule of the reward model is constant after the warm-up

For ppo_lag with sharing="separate". Not run at 7B.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import recipes, scores, sections


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "paper", "tiny", *recipes.RECIPES)
    return scores.scores(arg, heads=("reward",), schedule="constant" if arg == "paper" else "cosine")
