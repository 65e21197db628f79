"""A reward model of its own: srlhfv reward --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

The presets are those of configs/scores.py, with the reward head alone. For ppo_lag with sharing="separate". Not run at 7B.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, scores, sections


def default() -> ConfigDict:
    """One pass over BeaverTails-V's 29,824 preferences at batch 32."""
    config = scores.default()
    config.heads = ("reward",)
    return config


def paper() -> ConfigDict:
    """The published constants: 3 epochs at batch 32, 3e-5, constant after the warm-up."""
    config = scores.paper()
    config.update(
        heads=("reward",),
        optimizer=dict(schedule="constant"),  # Safe RLHF-V, rm.yaml
    )
    return config


def tiny() -> ConfigDict:
    """Two steps of two pairs, for tests."""
    config = scores.tiny()
    config.heads = ("reward",)
    return config


PRESETS = {"default": default, "paper": paper, "tiny": tiny} | recipes.supervised(default, sequences=2)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
