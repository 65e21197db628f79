"""Merged weights: the formula and its ends, and the command from two checkpoints to exports that `transformers` loads."""

import functools
import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tiny_stages import picture_task, rows, settings

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import LoraConfig, SFTConfig
from srlhfv_jax.data.quickstart import processor
from srlhfv_jax.hf import card, peft
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import load_config_and_processor, load_pretrained
from srlhfv_jax.models import lora, score_heads as heads, vlm
from srlhfv_jax.runs.merge import RECORD, numbers
from srlhfv_jax.supervised import sft
from srlhfv_jax.weights.merge import difference, merge

SMALL = 1e-30


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def tree(seed: int, dtype: str) -> dict:
    rng = np.random.default_rng(seed)
    odd = np.array([-0.0, 0.0, SMALL, -SMALL, 3e38, 0.1])
    values = {"a": {"kernel": rng.standard_normal((3, 5))}, "b": rng.permutation(odd)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_0_and_1_are_the_ends_bit_for_bit(dtype):
    a, b = tree(1, dtype), tree(2, dtype)
    assert bits(merge(a, b, 0)) == bits(merge(a, b, 0.0)) == bits(merge(a, b, -0.0)) == bits(a)
    assert bits(merge(a, b, 1)) == bits(merge(a, b, 1.0)) == bits(b) != bits(a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("q", [0.1, 0.25, 1 / 3, 0.9])
def test_what_both_share_stays_what_it_is(dtype, q):
    a = tree(1, dtype)
    assert bits(merge(a, a, q)) == bits(a)


def test_a_quarter_and_a_half_by_hand():
    a, b = {"x": jnp.array([0.5, -1.25, 3.0])}, {"x": jnp.array([1.5, 0.25, -0.75])}
    np.testing.assert_array_equal(merge(a, b, 0.25)["x"], [0.75, -0.875, 2.0625])
    np.testing.assert_array_equal(merge(a, b, 0.5)["x"], [1.0, -0.5, 1.125])


def test_sums_are_in_float32_and_stored_in_the_dtype_of_the_leaf():
    """0.9 * 3 + 0.1 * 1 = 2.8: the nearest of bfloat16 is 2.796875. With products and shares in bfloat16 it would be 2.78125."""
    a, b = {"x": jnp.array([3.0], jnp.bfloat16)}, {"x": jnp.array([1.0], jnp.bfloat16)}
    found = merge(a, b, 0.1)["x"]
    assert found.dtype == jnp.bfloat16 and float(found[0]) == 2.796875


def test_it_is_linear_in_q_and_the_same_from_the_other_end():
    a, b = ({"x": jax.random.normal(jax.random.key(seed), (7, 3))} for seed in (1, 2))
    line = [np.asarray(merge(a, b, q)["x"]) for q in (0.2, 0.5, 0.8)]
    np.testing.assert_allclose(line[1] - line[0], line[2] - line[1], atol=1e-6)
    np.testing.assert_allclose(line[0], merge(b, a, 0.8)["x"], atol=1e-6)


def test_other_leaves_shapes_dtypes_and_shares_are_no_merge():
    a = {"x": jnp.ones((2, 3))}
    others = ({"y": jnp.ones((2, 3))}, {"x": jnp.ones((3, 2))}, {"x": jnp.ones((2, 3), jnp.bfloat16)})
    for b, q in (*((other, 0.5) for other in others), (a, 1.5), (a, -0.1)):
        with pytest.raises((AssertionError, ValueError)):
            merge(a, b, q)


def test_the_first_difference_is_named_with_both_values():
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) == ""
    assert difference({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "c": 6}) == "b is 2 and 5"
    assert difference({"a": 1}, {"a": 1, "d": None}) == "d is missing and None"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture task with `a`, the workdir of a stage, `b`, other weights of the same model, and `adapted`, an adapter over a's."""
    folder = picture_task(tmp_path_factory.mktemp("picture"))
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder)), folder / "a")
    jax.set_mesh(None)
    config, _ = load_config_and_processor(folder / "base")
    export_pretrained(
        folder / "b", config, created(config, 5), base=folder / "base", heads=heads.init(config, ("cost",), jax.random.key(6))
    )
    fresh = lora.init(
        LoraConfig(rank=2, alpha=4.0, targets=("text/layers/.*_proj",), activated=False, int8=False),
        created(config, 5),
        jax.random.key(7),
    )
    moved = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim > 1 else leaf, fresh)
    export_pretrained(folder / "adapted", config, None, base=folder / "a", adapter=moved)
    return folder


def created(config, seed: int) -> dict:
    return jax.jit(functools.partial(vlm.init, config))(jax.random.key(seed))


def asked(*arguments, **flags) -> list[str]:
    return ["weights", "merge", *arguments, *(f"--{name}={value}" for name, value in flags.items())]


def merged(folder, out, q: str, start="a", end="b") -> None:
    assert main(asked(**{"from": folder / start}, to=folder / end, q=q, out=out)) == 0


@pytest.fixture(scope="module")
def between(picture, tmp_path_factory):
    """Merges of a and b, for tests that change nothing in them."""
    out = tmp_path_factory.mktemp("between") / "out"
    merged(picture, out, "0,0.25,.5,1")
    return out


def test_exports_have_the_averaged_weights_and_go_on_from_the_first(picture, between):
    a, b, found = (load_pretrained(path) for path in (picture / "a", picture / "b", between / "q0.25"))
    for one, other, mixed in zip(*(jax.tree.leaves(model.params) for model in (a, b, found)), strict=True):
        np.testing.assert_allclose(mixed, 0.75 * np.float64(one) + 0.25 * np.float64(other), atol=1e-6, rtol=1e-6)
    assert found.config == a.config and found.heads == {}
    of_a, written = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (a.path, found.path))
    assert of_a.keys() == written.keys()
    assert sorted(name for name in of_a if of_a[name] != written[name]) == ["README.md", "model.safetensors"]


def test_the_card_says_what_it_is_and_where_the_first_came_from(picture, between):
    said = (between / "q.5" / "README.md").read_text()
    assert f"# merge of {picture / 'a'} and {picture / 'b'}\n" in said and "with q = .5, " in said
    assert f"- base model of A: {picture / 'base'}\n" in said
    front = huggingface_hub.ModelCard(said).data
    assert front.license == "other" and "merge" in front.tags and front.base_model is None
    again = card.merged("org/a@main", "org/b", q="0.5", origin=card.base_named_in(said), sees=False)
    assert huggingface_hub.ModelCard(again).data.base_model == ["org/a", "org/b"]
    assert f"- base model of A: {picture / 'base'}\n" in again and card.base_named_in("# theirs") == ""


def test_transformers_gives_the_logits_of_the_averaged_weights(picture, between):
    torch = pytest.importorskip("torch")
    a, b, found = (
        transformers.AutoModelForImageTextToText.from_pretrained(path).eval()
        for path in (picture / "a" / "export", picture / "b", between / "q0.25")
    )
    averaged, other = a.state_dict(), b.state_dict()
    logits = {"a": _logits(torch, a)}
    a.load_state_dict({name: 0.75 * value + 0.25 * other[name] for name, value in averaged.items()})
    logits |= {"averaged": _logits(torch, a), "found": _logits(torch, found)}
    np.testing.assert_allclose(logits["found"], logits["averaged"], atol=1e-5)
    assert np.abs(logits["found"] - logits["a"]).max() > 1e-2


def _logits(torch, model) -> np.ndarray:
    config = model.config
    side, count = config.vision_config.image_size, config.image_seq_length
    tokens = torch.tensor([[1, *[config.image_token_index] * count, 7, 9, 11]])
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    with torch.no_grad():
        return model(input_ids=tokens, pixel_values=pixels, attention_mask=torch.ones_like(tokens)).logits.numpy()


def tensors(folder) -> dict[str, tuple[str, bytes]]:
    return {name: (str(value.dtype), value.tobytes()) for name, value in load_file(folder / "model.safetensors").items()}


def test_at_0_and_1_the_tensors_of_an_export_are_those_of_the_two(picture, between):
    assert tensors(between / "q0") == tensors(picture / "a" / "export")
    assert tensors(between / "q1") == tensors(picture / "b")


@pytest.mark.slow
def test_between_two_in_bfloat16_all_is_bfloat16_and_with_one_in_float32_nothing_is_lost(picture, tmp_path):
    config, _ = load_config_and_processor(picture / "base")
    for name, seed in (("c", 8), ("d", 9)):
        export_pretrained(tmp_path / name, config, created(config, seed), base=picture / "base", dtype="bfloat16")
    held = load_file(tmp_path / "c" / "model.safetensors")
    first = sorted(held)[0]
    held[first].flat[0] = -0.0
    save_file(held, tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})
    merged(tmp_path, tmp_path / "out", "0,0.5,1", "c", "d")
    assert tensors(tmp_path / "out" / "q0") == tensors(tmp_path / "c")
    assert tensors(tmp_path / "out" / "q1") == tensors(tmp_path / "d")
    half = {dtype for dtype, _ in tensors(tmp_path / "out" / "q0.5").values()}
    assert half == {"bfloat16"} and json.loads((tmp_path / "out" / "q0.5" / "config.json").read_text())["dtype"] == "bfloat16"
    shutil.copytree(picture / "b", tmp_path / "b")
    merged(tmp_path, tmp_path / "wide", "1", "c", "b")
    assert tensors(tmp_path / "wide" / "q1") == tensors(picture / "b")


@pytest.mark.slow
def test_an_adapter_is_merged_into_its_backbone_first(picture, tmp_path):
    merged(picture, tmp_path / "out", "0,0.5", "adapted", "a")
    whole, below = load_pretrained(picture / "adapted").params, load_pretrained(picture / "a").params
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "out" / "q0").params, whole)
    half = load_pretrained(tmp_path / "out" / "q0.5").params
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(z, (x + y) / 2, atol=1e-6), whole, below, half)
    assert bits(half["vision"]) == bits(below["vision"])  # no adapter is over it: the same tower
    assert not (tmp_path / "out" / "q0.5" / peft.CONFIG).exists()


def test_a_folder_takes_more_merges_of_the_same_two_and_of_no_others(picture, between, tmp_path, capsys):
    out = shutil.copytree(between, tmp_path / "out")
    (out / "q0.25" / "model.safetensors").unlink()
    merged(picture, out, "0.25,0.75")
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"wrote {out / name}" for name in ("q0.25", "q0.75")]
    assert f"{picture / 'b'} has heads (cost), which are not merged" in said.err
    assert tensors(out / "q0.25") == tensors(between / "q0.25")
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "q.5", "q0", "q0.25", "q0.75", "q1"]
    refused(capsys, "has merges of", **{"from": picture / "b"}, to=picture / "a", q="0.5", out=out)
    (out / RECORD).write_text("[]")
    refused(capsys, f"{out / RECORD} must hold an object", **{"from": picture / "a"}, to=picture / "b", q="0.5", out=out)


def refused(capsys, message: str, **flags) -> None:
    capsys.readouterr()
    assert main(asked(**flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith("srlhfv: error: ") and said.count("\n") == 1 and message in said, said


@pytest.mark.parametrize(
    ("q", "message"),
    [
        ("1.5", "--q must be numbers from 0 to 1, such as 0.25,0.5,0.75, got '1.5'"),
        ("-0.1", "got '-0.1'"),
        ("0.5,half", "got 'half'"),
        ("nan", "got 'nan'"),
        ("inf", "got 'inf'"),
        ("1e999", "got '1e999'"),
        ("0_1", "got '0_1'"),
        ("0.5,", "got ''"),
        ("", "got ''"),
        ("../1", "got '../1'"),
        ("0.5,0.50", "--q has 0.5 twice"),
        ("0,-0", "--q has -0 twice"),
    ],
)
def test_shares_that_are_none_are_refused(picture, tmp_path, capsys, q, message):
    refused(capsys, message, **{"from": picture / "a"}, to=picture / "b", q=q, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_are_named_as_the_numbers_are_written():
    assert numbers(" .5,0.250,1e-2,1") == {".5": 0.5, "0.250": 0.25, "1e-2": 0.01, "1": 1.0}


def test_what_is_missing_is_named(picture, tmp_path, capsys):
    given = {"from": picture / "a", "to": picture / "b", "q": 0.5, "out": tmp_path / "out"}
    for name in given:
        refused(capsys, f"--{name} is needed: ", **{other: value for other, value in given.items() if other != name})
    refused(capsys, "is not a folder", **(given | {"to": picture / "none"}))
    refused(capsys, "expected model.safetensors", **(given | {"to": picture / "base"}))
    refused(capsys, "are one checkpoint: nothing lies between", **(given | {"to": picture / "a" / "export"}))
    assert not (tmp_path / "out").exists()
    assert main(["weights"]) == 0 and "srlhfv weights merge --from=A" in capsys.readouterr().out
    assert (
        main(["weights", "merg"]) == 2
        and "srlhfv weights takes merge, patch, units, diagnose, got 'merg'" in capsys.readouterr().err
    )


def test_a_place_with_something_else_in_it_is_refused(picture, tmp_path, capsys):
    given = {"from": picture / "a", "to": picture / "b", "q": 0.5}
    (tmp_path / "notes.txt").write_text("mine")
    refused(capsys, "has 'notes.txt', which srlhfv weights merge did not write", **given, out=tmp_path)
    refused(capsys, "is a file: give a folder", **given, out=tmp_path / "notes.txt")
    (tmp_path / "like" / "q0.5").mkdir(parents=True)  # named as ours are, without the record
    refused(capsys, "has 'q0.5', which", **given, out=tmp_path / "like")
    refused(capsys, "is a URL", **given, out="gs://bucket/merged")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_that_are_not_of_one_model_are_refused(picture, tmp_path, capsys):
    given = {"from": picture / "a", "q": 0.5, "out": tmp_path / "out"}
    (tmp_path / "wide").mkdir()
    wide = another_base(tmp_path / "wide", text_width=32)
    refused(capsys, "have other architectures (projector/linear_1/bias is [16] and [32])", **given, to=wide)
    other = changed(picture, tmp_path / "theta", "config.json", lambda said: said["text_config"].update(rope_theta=500.0))
    refused(capsys, "have other architectures (text.rope.theta is 10000.0 and 500.0)", **given, to=other)
    swap = functools.partial(_swap, "user", "assistant")
    other = changed(picture, tmp_path / "words", "tokenizer.json", lambda said: swap(said["model"]["vocab"]))
    refused(capsys, "have other tokenizers (assistant is ", **given, to=other)
    untied = shutil.copytree(picture / "b", tmp_path / "untied")
    held = load_file(untied / "model.safetensors")
    embedding = next(name for name in held if name.endswith("embed_tokens.weight"))
    save_file(held | {"lm_head.weight": held[embedding] + 1}, untied / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(asked(**given, to=untied)) == 2 and "have other architectures (text/" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def another_base(folder, **sizes):
    processor.write_base(
        folder, **(dict(patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2) | sizes)
    )
    return folder


def changed(picture, folder, name: str, change):
    """A copy of b in which one JSON file is changed."""
    shutil.copytree(picture / "b", folder)
    described = json.loads((folder / name).read_text())
    change(described)
    (folder / name).write_text(json.dumps(described))
    return folder


def _swap(one: str, other: str, ids: dict) -> None:
    ids[one], ids[other] = ids[other], ids[one]


def test_activated_adapters_are_refused(picture, tmp_path, capsys):
    other = shutil.copytree(picture / "adapted", tmp_path / "activated")
    described = json.loads((other / peft.CONFIG).read_text())
    (other / peft.CONFIG).write_text(json.dumps(described | {peft.ACTIVATION: [5, 6]}))
    for start, end in ((other, picture / "a"), (picture / "a", other)):
        flags = {"from": start, "to": end, "q": 0.5, "out": tmp_path / "out"}
        refused(capsys, "is an activated adapter, which cannot be merged", **flags)
        assert not (tmp_path / "out").exists()
