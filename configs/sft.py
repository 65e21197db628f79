"""Supervised fine-tuning: srlhfv sft --workdir=W --config.init=LLAVA_FOLDER --config.data.path=rows.jsonl

LLaVA-1.5-7B has 7 B float32 masters plus two moments, about 85 GB over the chips. Not run at that size; nothing is tuned.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, sections


def default() -> ConfigDict:
    """One pass over about 30 k rows at batch 64, tower frozen."""
    return ConfigDict(
        dict(
            seed=0,  # of weights, rows and their order
            init="",  # a Hugging Face folder, an export, or the workdir of an earlier stage
            init_random=False,  # True: only its shapes and tokenizer
            steps=466,  # 29,824 rows / 64
            microbatches=1,  # parts of a batch, one after the other
            **sections.held_out(),
            **sections.supervised(batch=64, weight_decay=0.0),
        )
    )


def paper() -> ConfigDict:
    """align-anything's LLaVA-1.5 settings (Safe RLHF-V itself brings no SFT stage): 3 epochs of 30 k rows at batch 16."""
    config = default()
    config.update(
        steps=5592,  # 3 x 29,824 rows / 16
        data=dict(
            batch_size=16,  # 2 x 8 devices
            response_length=1024,  # tokens
        ),
    )
    return config


def tiny() -> ConfigDict:
    """Two steps of two rows, for tests."""
    config = default()
    config.steps = 2
    sections.tiny(config, rows=2, response=16)
    return config


PRESETS = {"default": default, "paper": paper, "tiny": tiny} | recipes.supervised(default)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
