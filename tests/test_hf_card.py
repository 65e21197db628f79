"""A model card says what the weights are, what they are for, and what their numbers mean."""

import pytest

from srlhfv_jax.guard import train as guard
from srlhfv_jax.hf.card import card
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.supervised import scores, sft

PRODUCTS = {stage.PRODUCT.stage: stage.PRODUCT for stage in (sft, scores, guard, ppo_lag)}
SETTINGS = {"data": {"path": "rows.parquet"}, "seed": 3}


def written(stage: str, base: str = "runs/quickstart/sft", trace=()) -> str:
    numbers = {"cost": -0.75, "reward": 1.5}
    return card(base=base, product=PRODUCTS[stage], settings=SETTINGS, result=numbers, trace=list(trace))


@pytest.mark.parametrize("stage", ["sft", "scores", "ppo_lag", "guard"])
def test_every_card_names_base_data_licence_use_numbers_and_settings(stage):
    said = written(stage)
    for part in (
        f"# {stage} of runs/quickstart/sft",
        "- data: rows.parquet",
        "CC-BY-NC",
        "- intended use: ",
        "| cost | -0.75 |",
        '"seed": 3',
    ):
        assert part in said


@pytest.mark.parametrize("stage", ["scores", "ppo_lag"])
def test_where_there_are_costs_the_card_says_what_a_positive_one_means(stage):
    assert "cost > 0 means unsafe" in written(stage)


def test_the_multiplier_is_traced_where_there_is_one():
    assert "| 20 | 1.2500 |" in written("ppo_lag", trace=[(10, 0.5), (20, 1.25)])
    assert "lambda" not in written("sft")


def test_only_a_base_of_the_hub_is_linked():
    assert "base_model: llava-hf/llava-1.5-7b-hf" in written("sft", base="llava-hf/llava-1.5-7b-hf")
    assert "base_model" not in written("sft")
