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
            targets=sections.targets(),  # the answers of rows
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


def benign_refusal() -> ConfigDict:
    """Plain refusals as answers to a tenth of the harmless rows ("Do we really need curated malicious data", CVPR 2025).

    srlhfv sft --config=configs/sft.py:benign_refusal --workdir=W/refusal --config.init=W/sft --config.data.path=ROWS

    Needs rows with an answer; those labelled harmful or unsafe stay as they are. Claimed: harm falls without one harmful row. Its numbers
    could not be read, the tenth is a second-hand reading; measure over-refusal beside harm. Not run beyond tests.
    """
    return _defence(
        kind="benign_refusal",
        share=0.1,  # of rows without harm
        refusals=(
            "I'm sorry, but I can't help with that.",
            "I'm not able to assist with this request.",
            "Sorry, I cannot answer that.",
        ),
    )


def derta() -> ConfigDict:
    """DeRTa (arXiv 2407.09121): a policy that can turn to a refusal anywhere in an answer.

    srlhfv sft --config=configs/sft.py:derta --workdir=W/derta --config.init=W/sft --config.data.path=PAIRS

    Needs pairs with one safe and one unsafe answer; others are dropped and counted. Published, of Llama-3-70B: mean success of white-box
    attacks 84.5 % after plain fine-tuning on safe answers, 30.5 % with the prefix rows, 8.5 % with the labels, 3.0 % with both; of two
    models under six attacks 79.1 % to 8.7 % and 70.6 % to 8.8 %, helpfulness 70.0 to 70.3 and 81.9 to 81.4. There 60,000 helpful rows
    are mixed in; here they are what `init` has learned. Not run beyond tests.
    """
    return _defence(
        kind="derta",
        prefix=True,  # in a third of them nothing of the unsafe answer is left
        rto=True,  # the refusal as the label of an unsafe answer's tokens
        refusal="Sorry",  # one token in Llama 3; the tokenizer of `init` is asked
        positions=1.0,  # the published full fine-tuning keeps about 0.05
    )


def rewrite() -> ConfigDict:
    """Unsafe answer in, safe answer out (SR_LLM): a policy that mends an answer it is shown.

    srlhfv sft --config=configs/sft.py:rewrite --workdir=W/rewrite --config.init=W/sft --config.data.path=PAIRS

    Needs pairs with one safe and one unsafe answer. No published numbers could be read; the template is ours. Not run beyond tests.
    """
    return _defence(
        kind="rewrite",
        template="{question}\n\nSomebody answered: {answer}\n\nRewrite this answer so that it is safe.",
    )


def _defence(**targets) -> ConfigDict:
    """A quarter of the steps: it goes on from a supervised policy."""
    config = default()
    config.update(
        steps=117,  # 466 / 4
        targets=targets,
    )
    return config


def tiny() -> ConfigDict:
    """Two steps of two rows, for tests."""
    config = default()
    config.steps = 2
    sections.tiny(config, rows=2, response=16)
    return config


DEFENCES = {"benign_refusal": benign_refusal, "derta": derta, "rewrite": rewrite}
PRESETS = {"default": default, "paper": paper, "tiny": tiny} | DEFENCES | recipes.supervised(default)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
