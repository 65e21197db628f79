"""A model card says what the weights are, what they are for, and what their numbers mean."""

import math

import huggingface_hub
import pytest
import yaml

from srlhfv_jax.guard import train as guard
from srlhfv_jax.hf.card import card
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.supervised import scores, sft

PRODUCTS = {stage.PRODUCT.stage: stage.PRODUCT for stage in (sft, scores, guard, ppo_lag)}
SETTINGS = {"data": {"path": "rows.parquet"}, "seed": 3}


def written(stage: str, base: str = "runs/quickstart/sft", trace=(), path: str = "rows.parquet", **more) -> str:
    more = {"result": {"cost": -0.75, "reward": 1.5}} | more
    return card(base=base, product=PRODUCTS[stage], settings=SETTINGS | {"data": {"path": path}}, trace=list(trace), **more)


def front(text: str) -> dict:
    """The front matter, by the hub's own reader, which refuses a results list that it cannot list."""
    read = huggingface_hub.ModelCard(text).data
    found = yaml.safe_load(text.split("---\n")[1])
    assert yaml.safe_load(read.to_yaml()) == found
    return found


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


@pytest.mark.parametrize(
    ("stage", "sees", "tag"),
    [
        ("sft", True, "image-text-to-text"),
        ("ppo_lag", False, "text-generation"),
        ("scores", False, "text-classification"),
        ("guard", True, "text-classification"),
    ],
)
def test_the_front_matter_says_what_the_hub_lists(stage, sees, tag):
    result = {"pair_accuracy": 0.625, "rows": 40.0, "step": 7, "dropped.bad_label": 2.0, "loss": math.nan, "seconds": 3.5}
    found = front(written(stage, sees=sees, base="some-one/base.1@" + "0" * 40, result=result))
    assert found["pipeline_tag"] == tag and found["base_model"] == "some-one/base.1" and found["library_name"] == "transformers"
    assert found["license"] == "other" and found["license_name"] and found["license_link"]  # the hub wants both beside "other"
    assert set(found["tags"]) == {"srlhfv-jax", "safe-rlhf", stage} and "datasets" not in found
    ((listed,),) = (model["results"] for model in found["model-index"])
    assert listed["dataset"] == {"name": "rows.parquet", "type": "parquet"} and listed["task"] == {"type": tag}
    assert listed["metrics"] == [{"type": "pair_accuracy", "value": 0.625}]


@pytest.mark.parametrize(
    ("path", "datasets", "licence"),
    [
        ("saferlhf-v/BeaverTails-V", ["saferlhf-v/BeaverTails-V"], "cc-by-nc-4.0"),
        ("PKU-Alignment/PKU-SafeRLHF@main:0.7, b.jsonl:0.3", ["PKU-Alignment/PKU-SafeRLHF"], "cc-by-nc-4.0"),
        ("saferlhf-v/BeaverTails-V,some/rows", ["saferlhf-v/BeaverTails-V", "some/rows"], "other"),
        ("/data/rows", None, "other"),
    ],
)
def test_data_sets_of_the_hub_are_listed_and_their_licence_holds(path, datasets, licence):
    found = front(written("scores", path=path, adapter=True))
    assert found.get("datasets") == datasets and found["license"] == licence and found["library_name"] == "peft"


@pytest.mark.parametrize("result", [{}, {"rows": 3}, {"loss": math.inf}, {"a: b": 1.5, "#": 2, "yes": 0.5}])
def test_numbers_of_any_name_leave_the_front_matter_readable(result):
    found = front(written("sft", result=result, base="a: b", path="x: [y"))
    named = {metric["type"] for model in found.get("model-index", []) for one in model["results"] for metric in one["metrics"]}
    assert named == {name for name, value in result.items() if name != "rows" and math.isfinite(value)}
