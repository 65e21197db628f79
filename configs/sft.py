"""Supervised fine-tuning: srlhfv sft --workdir=W --config.init=LLAVA_FOLDER --config.data.path=rows.jsonl

    default   one pass over about 30 k rows at batch 64, tower frozen
    paper     align-anything's LLaVA-1.5 settings (Safe RLHF-V itself brings no SFT stage): 3 epochs of 30 k rows at batch 16
    tiny      two steps of two rows, for tests
    and those of configs/recipes.py

LLaVA-1.5-7B has 7 B float32 masters plus two moments, about 85 GB over the chips. Not run at that size; nothing is tuned.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import recipes, sections


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "paper", "tiny", *recipes.RECIPES)
    tiny, paper = arg == "tiny", arg == "paper"
    config = ConfigDict(
        dict(
            seed=0,
            init="",  # a Hugging Face folder, an export, or the workdir of an earlier stage
            init_random=False,
            steps=2 if tiny else 5592 if paper else 466,
            microbatches=1,
            lora=sections.lora(),
            model=sections.model(tiny),
            mesh=sections.mesh(),
            data=sections.data(
                batch=2 if tiny else 16 if paper else 64,
                prompt=32 if tiny else 1024,
                response=16 if tiny else 1024 if paper else 512,
            ),
            optimizer=sections.optimizer(2e-5, schedule="cosine", weight_decay=0.0, freeze=("vision/",)),
            checkpoint=sections.checkpoint(1 if tiny else 100),
            log=sections.log(1 if tiny else 10),
        )
    )
    return recipes.supervised(arg, config)
