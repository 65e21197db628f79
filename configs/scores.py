"""Reward and cost heads on one backbone: srlhfv scores --workdir=W --config.init=SFT_WORKDIR --config.data.path=BEAVERTAILS_V

Both answers of a pair stand in one sequence; raise config.microbatches if a batch does not fit. Pairs longer than 1,024 tokens of
prompt or 512 of an answer are dropped and counted; the released code reads 4,096 in all. Not run at 7B.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, sections


def default() -> ConfigDict:
    """Both heads jointly, one pass over BeaverTails-V's 29,824 dual preferences at batch 32, +-1 sign terms."""
    return ConfigDict(
        dict(
            seed=0,  # of heads, rows and their order
            init="",  # the SFT policy: its workdir, its export, or a Hugging Face folder
            heads=("reward", "cost"),
            sign="label",  # +-1 from the safety label
            sign_weight=1.0,  # of the sign terms beside the preference
            score_l2=1e-3,  # on squared scores
            steps=932,  # 29,824 pairs / 32
            microbatches=1,  # parts of a batch, one after the other
            **sections.held_out(),
            **sections.supervised(batch=32, weight_decay=0.1),
        )
    )


def paper() -> ConfigDict:
    """The published constants for both heads together; the paper trains two models, by configs/reward.py:paper and cost.py:paper."""
    config = default()
    config.update(  # Safe RLHF-V, rm.yaml and cm.yaml
        sign="graded",  # -harmless_rate
        steps=2796,  # 3 epochs at batch 32 = 4 x 8 devices
        optimizer=dict(
            learning_rate=3e-5,
            weight_decay=0.0,
        ),
    )
    return config


def tiny() -> ConfigDict:
    """Two steps of two pairs, for tests."""
    config = default()
    config.steps = 2
    sections.tiny(config, rows=2, response=16)
    return config


PRESETS = {"default": default, "paper": paper, "tiny": tiny} | recipes.supervised(default, sequences=2)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
