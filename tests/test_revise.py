"""`srlhfv revise` from pairs to an export that everything loads, what is refused of it, and the same policy in `transformers`."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_data
import tiny_families as families
import tiny_hf
import torch
from safetensors.numpy import load_file, save_file
from test_activated import continued
from tiny_stages import picture_task, rows, settings

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.cli.main import main
from srlhfv_jax.config import PPOLagConfig, SFTConfig
from srlhfv_jax.data import loader, sources
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import load_pretrained, revision
from srlhfv_jax.hf.revision import Revision
from srlhfv_jax.models import sequences, vlm
from srlhfv_jax.ppo_lag import check
from srlhfv_jax.quickstart.pipeline import read_rows, write_rows
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.runs import revise
from srlhfv_jax.supervised import sft

FLAGS = ["--response_length=24", "--batch_size=8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random LLaVA of the embedded task as `policy`, and `pairs.parquet`: 12 with a safe and an unsafe answer, 4 with two safe ones."""
    folder = picture_task(tmp_path_factory.mktemp("picture"))
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder)), folder / "policy")
    asked = task_rows.sft_rows(0, task_rows.split_cells(0), 16)
    pairs = [
        {name: row[name] for name in ("question", "image")}
        | {"responses": ["sorry .", f"it is for {'one two'.split()[i % 2]} ."], "unsafe": [False, i < 12]}
        for i, row in enumerate(asked)
    ]
    write_rows(folder / "pairs.parquet", pairs)
    return folder


def command(place, out, *changes: str) -> int:
    given = [f"--policy={place / 'policy'}", f"--data={place / 'pairs.parquet'}", f"--out={out}", "--strength=4", "--top=2"]
    return main(["revise", *given, *FLAGS, *changes])


@pytest.fixture(scope="module")
def revised(place):
    """Folders by site."""
    for site in ("heads", "layer"):
        assert command(place, place / site, f"--site={site}") == 0
    return place


@pytest.mark.parametrize("site", ["heads", "layer"])
def test_an_export_has_the_policys_weights_and_a_revision(site, revised, capsys):
    folder, policy = revised / site, revised / "policy" / "export"
    assert (folder / "model.safetensors").samefile(policy / "model.safetensors")
    said = json.loads((folder / "revision.json").read_text())
    assert (said["site"], said["strength"], len(said["units"])) == (site, 4.0, 2)
    assert said["weights"] == revision.fingerprint(policy)
    vector_LD = load_file(folder / "revision.safetensors")["revision"]
    assert {layer for layer, *_ in said["units"]} == set(np.flatnonzero(np.abs(vector_LD).sum(axis=1)))
    model = load_pretrained(folder)
    layers = model.params["text"]["layers"]
    leaf = (layers["self_attn"] if site == "heads" else layers)["revision"]
    np.testing.assert_allclose(leaf, 4 * vector_LD, rtol=1e-6)
    assert len(model.config.activation) == 1
    assert "from revision import load" in (folder / "README.md").read_text()


def test_of_layers_the_vector_is_the_difference_of_the_means(revised, tmp_path):
    """Over the streams behind the "." of each answer, in rows of one answer each."""
    model, means = load_pretrained(revised / "policy"), []
    read = jax.jit(lambda params, *given: vlm.measure(model.config, params, *given, lambda taps: taps.x_BTD)[1])
    for side in (0, 1):
        asked = [row for row in read_rows(revised / "pairs.parquet") if True in row["unsafe"]]
        write_rows(tmp_path / f"{side}.parquet", [_one_answer(row, side) for row in asked])
        data = tiny_data.settings(
            str(tmp_path / f"{side}.parquet"), prompt_length=40, response_length=24, batch_size=12, workers=0
        )
        rows_of = loader.fit("supervised", sources.load_examples(data), model.processor, data)
        batch = next(iter(loader.all_batches(rows_of, "supervised", None, data, batch_size=12)))[0]
        features = vlm.encode_images(model.config, model.params, batch.images)
        x_LBTD = read(model.params, batch.tokens_BT, batch.positions_BT, batch.mask_BT, features)
        last_B = batch.tokens_BT.shape[1] - 24 + np.asarray(batch.response_mask_BR).sum(axis=1) - 2
        means.append(np.asarray(x_LBTD)[:, np.arange(12), last_B].mean(axis=1))
    found = load_file(revised / "layer" / "revision.safetensors")["revision"]
    np.testing.assert_allclose(found, means[0] - means[1], atol=1e-5)
    assert np.abs(found).max() > 1e-3


def _one_answer(row: dict, side: int) -> dict:
    return {"question": row["question"], "image": row["image"], "response": row["responses"][side]}


def test_what_is_dropped_is_counted(place, tmp_path, capsys):
    assert command(place, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "pairs: 12" in out and "dropped.not_safe_and_unsafe: 4" in out


def test_strength_0_is_the_policy_itself(place, tmp_path):
    assert command(place, tmp_path / "out", "--strength=0") == 0
    ours, theirs = load_pretrained(tmp_path / "out"), load_pretrained(place / "policy")
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_generate_and_evaluate_say_what_the_revision_says(revised, tmp_path, capsys):
    strong = tmp_path / "strong"
    shutil.copytree(revised / "layer", strong)
    said = json.loads((strong / "revision.json").read_text())
    (strong / "revision.json").write_text(json.dumps(said | {"strength": 300.0}))
    answers = []
    for folder in (strong, revised / "policy"):
        assert main(["generate", f"--policy={folder}", "--temperature=0", "--response_length=6", "--prompt=what is this ?"]) == 0
        answers.append(json.loads(capsys.readouterr().out.splitlines()[-1])["answer"])
    assert answers[0] != answers[1]


def test_what_a_revision_cannot_do_is_refused(revised, tmp_path, capsys):
    folder = revised / "heads"
    for given, said in (
        (["export", f"--workdir={folder}", f"--out={tmp_path / 'o'}"], "no weights can be merged with: it acts from the end"),
        (
            ["weights", "merge", f"--from={folder}", f"--to={revised / 'policy'}", "--q=0.5", f"--out={tmp_path / 'o'}"],
            "has a revision",
        ),
        (
            ["revise", f"--policy={folder}", "--data=x", "--strength=1", "--top=1", f"--out={tmp_path / 'o'}"],
            "has a revision already",
        ),
    ):
        assert main(given) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="config.init=.* has a revision, which is not trained"):
        sft.run(settings(SFTConfig, "sft", init=str(folder), **rows(revised)), tmp_path / "sft")
    with pytest.raises(UserError, match="config.policy=.* has a revision, which is not trained"):
        check.check_checkpoints(settings(PPOLagConfig, "ppo_lag", policy=str(folder), scorer=str(folder)))


@pytest.mark.parametrize(
    "changes, said",
    [
        (["--top=99"], "--top must be from 1 to 4, the heads of"),
        (["--site=layer", "--top=3"], "--top must be from 1 to 2, the layers of"),
        (["--strength=nan"], "--strength must be a finite number, got nan"),
        (["--strength=inf"], "--strength must be a finite number, got inf"),
        (["--top=0"], "top"),
        (["--site=neck"], "site"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(changes, said, place, tmp_path, capsys):
    assert command(place, tmp_path / "out", *changes) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and not (tmp_path / "out").exists()


def test_pairs_without_a_safe_and_an_unsafe_answer_are_refused(place, tmp_path, capsys):
    asked = task_rows.sft_rows(0, task_rows.split_cells(0), 4)
    for flags in ([True, True], [False, False]):
        pairs = [
            {"question": row["question"], "image": row["image"], "responses": ["a .", "b ."], "unsafe": flags} for row in asked
        ]
        write_rows(tmp_path / "alike.parquet", pairs)
        assert command(place, tmp_path / "out", f"--data={tmp_path / 'alike.parquet'}") == 2
        assert "none has one answer labelled safe and one labelled unsafe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, said",
    [
        ({"weights": "0" * 32}, "was fitted on other weights than it lies beside"),
        ({"site": "neck"}, "site must be heads or layer, got 'neck'"),
        ({"strength": "much"}, "strength must be a number"),
        ({"begins": []}, "begins must name the last tokens"),
    ],
)
def test_a_damaged_or_foreign_revision_is_named(change, said, revised, tmp_path):
    shutil.copytree(revised / "heads", tmp_path / "out")
    meta = tmp_path / "out" / "revision.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path / "out")


def test_other_weights_a_lost_file_and_another_shape_are_named(revised, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(revised / "heads", folder)
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + np.float32(1e-3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="was fitted on other weights"):
        load_pretrained(folder)
    save_file({"revision": np.zeros((3, 5), np.float32)}, folder / "revision.safetensors")
    with pytest.raises(UserError, match=r"this model needs revision \[2, 16\]"):
        load_pretrained(folder)
    (folder / "revision.safetensors").unlink()
    with pytest.raises(UserError, match="has a revision without revision.safetensors"):
        load_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["heads", "layer"])
@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_vl", "mistral"])
def test_transformers_gives_the_same_logits_and_greedy_tokens(kind, site, tmp_path):
    family, base, out = families.VARIANTS[kind], tmp_path / "base", tmp_path / "out"
    tiny_hf.save(base, family)
    text = load_pretrained(base).config.text
    vector_LD = np.random.default_rng(1).normal(size=(text.layers, text.width)).astype(np.float32)
    revise.write(out, str(base), Revision(site, 0.6, (7,), vector_LD, (), revision.fingerprint(base)), "pairs")
    ours = load_pretrained(out)
    spec = importlib.util.spec_from_file_location("revision_of_export", out / "revision.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    prompts = families.batch(ours)
    P = prompts.tokens_BP.shape[1]
    whole = continued(prompts, (11, 12, 13))
    positions = {} if whole.positions_BP.ndim == 3 else {"position_ids": torch.tensor(whole.positions_BP)}
    with torch.no_grad():
        logits = script.load(str(out), prompt=P)(**families.theirs(family, ours, whole), **positions).logits[:, -4:-1]
    expected = torch.log_softmax(logits, -1).gather(2, torch.tensor(whole.tokens_BP[:, -3:, None]).long())[..., 0]
    features = None if prompts.images is None else vlm.encode_images(ours.config, ours.params, prompts.images)
    answered = SupervisedBatch(*whole[:3], np.ones((3, 3), bool), None)
    found, _ = sequences.response_logp(ours.config, {"backbone": ours.params}, answered, features)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    vocabulary = Vocabulary(pad=0, eos=(2,), never=())
    how = dict(response_length=6, vocabulary=vocabulary, sampling=Sampling(0.0))
    rollout = generate(ours.config, ours.params, prompts, jax.random.key(0), **how)
    drawn = script.load(str(out)).generate(
        **families.theirs(family, ours, prompts), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2
    )[:, P:]
    mask_BR = np.asarray(rollout.response_mask_BR)[:, : drawn.shape[1]]
    np.testing.assert_array_equal(
        np.where(mask_BR, rollout.tokens_BT[:, P : P + drawn.shape[1]], 0), np.where(mask_BR, drawn.numpy(), 0)
    )


def test_an_activated_adapter_is_refused(revised, tmp_path):
    """Of the policy, and beside a revision: it begins to act at a place of its own."""
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            {
                "base_model_name_or_path": "x",
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 2,
                "target_modules": "x",
                "alora_invocation_tokens": [5],
            }
        )
    )
    with pytest.raises(UserError, match="is an activated adapter, which begins to act at a place of its own"):
        revise._check_policy(str(tmp_path))
    activated = dataclasses.replace(load_pretrained(revised / "policy").config, activation=(5,))
    with pytest.raises(UserError, match="has a revision and an activated adapter"):
        revision.read(activated, revised / "heads", revised / "heads")
