"""`srlhfv weights patch`: from three checkpoints of one model to an export with the patched weights."""

import functools
import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from tiny_stages import picture_task, rows, settings, write_rows

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import LoraConfig, SFTConfig
from srlhfv_jax.data.quickstart import processor, rows as task_rows
from srlhfv_jax.hf import peft
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models import lora
from srlhfv_jax.runs import patch as command
from srlhfv_jax.supervised import sft
from srlhfv_jax.weights.patch import Recipe, patch


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """`base`, the workdir of a stage, `safety` and `utility`, other weights of the same model with one tower, and pairs."""
    folder = picture_task(tmp_path_factory.mktemp("three"))
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder)), folder / "sft")
    jax.set_mesh(None)
    model = load_pretrained(folder / "sft")
    for seed, name in enumerate(("safety", "utility")):
        keys = iter(jax.random.split(jax.random.key(seed), 99))
        noisy = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), model.params)
        export_pretrained(folder / name, model.config, noisy | {"vision": model.params["vision"]}, base=folder / "base")
    cells, noise = task_rows.split_cells(0), task_rows.Noise()
    write_rows(folder / "pairs.parquet", task_rows.topic_rows(3, cells, "train", 24, noise))
    return folder


def flags(three, out, **changes) -> list[str]:
    given = dict(base=three / "sft", safety=three / "safety", utility=three / "utility", data=three / "pairs.parquet", out=out)
    given |= dict(batch_size=8, alpha=1, beta=1, keep=0.7, top_safety=0.25) | changes
    return ["weights", "patch", *(f"--{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def patched(three, tmp_path_factory):
    """A patched policy, for tests that change nothing in it."""
    out = tmp_path_factory.mktemp("patched") / "out"
    assert main(flags(three, out)) == 0
    return out


def test_the_export_has_the_patched_weights_and_goes_on_from_the_base(three, patched):
    base, safety, utility, found = (
        load_pretrained(path) for path in (three / "sft", three / "safety", three / "utility", patched)
    )
    result = json.loads((patched / "result.json").read_text())
    given = command.Settings(**json.loads((patched / "config.json").read_text()))
    gradient, numbers = command._gradient(given)
    recipe = Recipe(alpha=1.0, beta=1.0, top_safety=0.25, top_utility=given.top_utility, keep=0.7)
    expected, sizes = patch(base.params, safety.params, utility.params, gradient, recipe, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    assert result["loss"] == pytest.approx(numbers["loss"]) and 0 < result["rows"] <= 24
    assert {name: result[f"entries.{name}"] for name in sizes._fields} == sizes._asdict() and sizes.safety_only > 0
    assert found.config == base.config and (patched / "export" / "tokenizer.json").is_file()
    jax.tree.map(np.testing.assert_array_equal, found.params["vision"], base.params["vision"])
    text = (patched / "export" / "README.md").read_text()
    assert f"- safety: {three / 'safety'}\n" in text and f"- base model of A: {three / 'base'}\n" in text
    assert f"| entries.overlap | {sizes.overlap:.6g} |" in text
    assert "merge" not in huggingface_hub.ModelCard(text).data.tags


@pytest.mark.slow
def test_the_gradient_is_that_of_the_less_safe_answers_of_pairs(three, patched, tmp_path):
    """The same answers as rows of their own give the same gradient, whatever the batches."""
    pairs = task_rows.topic_rows(3, task_rows.split_cells(0), "train", 24, task_rows.Noise())
    other = {"1": "2", "2": "1"}
    single = [
        {name: row[name] for name in ("question", "image")} | {"response": row[f"response_{other[row['safer_response_id']]}"]}
        for row in pairs
        if row["safer_response_id"] in other
    ]
    write_rows(tmp_path / "single.parquet", single)
    given = json.loads((patched / "config.json").read_text())
    apart, numbers = command._gradient(command.Settings(**given))
    alone, numbers_alone = command._gradient(
        command.Settings(**given | {"data": str(tmp_path / "single.parquet"), "batch_size": 16})
    )
    assert numbers_alone == pytest.approx(numbers, rel=1e-5) and numbers["rows"] == len(single)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), apart, alone)


def refused(capsys, message: str, arguments: list[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("srlhfv: error: ") and message in said[-1], said
    assert sum(line.startswith("srlhfv: error: ") for line in said) == 1


def test_mistakes_are_one_line_and_nothing_is_written(three, tmp_path, capsys):
    for name in ("top_safety", "top_utility", "keep"):
        for value in ("1.5", "-0.1"):
            refused(capsys, f"--{name} must be from 0 to 1, got {value}", flags(three, tmp_path / "out", **{name: value}))
    refused(capsys, "--alpha must be a finite number", flags(three, tmp_path / "out", alpha="nan"))
    refused(
        capsys, "are one checkpoint: there is nothing to patch", flags(three, tmp_path / "out", safety=three / "sft" / "export")
    )
    refused(capsys, "are one checkpoint: there is nothing to patch", flags(three, tmp_path / "out", safety=three / "utility"))
    refused(capsys, "is not a folder", flags(three, tmp_path / "out", utility=three / "none"))
    refused(capsys, "has something in it: give a new folder", flags(three, three))
    refused(capsys, "has something in it: give a new folder", flags(three, three / "pairs.parquet"))
    refused(capsys, "none.parquet", flags(three, tmp_path / "out", data=three / "none.parquet"))
    for name in ("base", "safety", "utility", "data", "out"):
        arguments = [flag for flag in flags(three, tmp_path / "out") if not flag.startswith(f"--{name}=")]
        refused(capsys, f"--{name} is needed: ", arguments)
    (tmp_path / "wide").mkdir()
    sizes = dict(patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=32, heads=2)
    processor.write_base(tmp_path / "wide", **sizes)
    shutil.copyfile(three / "utility" / "model.safetensors", tmp_path / "wide" / "model.safetensors")
    refused(capsys, "have other architectures (projector/", flags(three, tmp_path / "out", utility=tmp_path / "wide"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_policy_with_the_weights_of_the_base_is_no_patch(three, tmp_path, capsys):
    shutil.copytree(three / "sft" / "export", tmp_path / "same")
    message = f"--safety={tmp_path / 'same'} has the weights of --base={three / 'sft'}: there is nothing to patch"
    refused(capsys, message, flags(three, tmp_path / "out", safety=tmp_path / "same"))
    assert not (tmp_path / "out" / "export").exists()


def test_rows_of_both_kinds_and_rows_without_an_answer_are_refused(three, tmp_path, capsys):
    prompts = [{"question": row["question"], "image": row["image"]} for row in task_rows.sft_rows(0, task_rows.split_cells(0), 4)]
    write_rows(tmp_path / "prompts.parquet", prompts)
    refused(capsys, "missing_response", flags(three, tmp_path / "out", data=tmp_path / "prompts.parquet"))
    mixed = f"{three / 'sft.parquet'},{three / 'pairs.parquet'}"
    refused(capsys, "has rows with one answer and pairs: give either", flags(three, tmp_path / "mixed", data=mixed))
    assert not any((tmp_path / name / "export").exists() for name in ("out", "mixed"))


@pytest.mark.slow
def test_an_adapter_is_merged_first_and_an_activated_one_refused(three, tmp_path, capsys):
    model = load_pretrained(three / "sft")
    fresh = lora.init(
        LoraConfig(rank=2, alpha=4.0, targets=("text/layers/.*_proj",), activated=False, int8=False),
        model.params,
        jax.random.key(7),
    )
    moved = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim > 1 else leaf, fresh)
    export_pretrained(tmp_path / "adapted", model.config, None, base=three / "sft", adapter=moved)
    arguments = flags(three, tmp_path / "out", safety=tmp_path / "adapted", beta=0, top_safety=1, top_utility=0, keep=1)
    assert main(arguments) == 0
    whole, found = load_pretrained(tmp_path / "adapted").params, load_pretrained(tmp_path / "out").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, found)
    described = json.loads((tmp_path / "adapted" / peft.CONFIG).read_text())
    (tmp_path / "adapted" / peft.CONFIG).write_text(json.dumps(described | {peft.ACTIVATION: [5, 6]}))
    refused(capsys, "is an activated adapter, which cannot be merged", flags(three, tmp_path / "no", safety=tmp_path / "adapted"))
