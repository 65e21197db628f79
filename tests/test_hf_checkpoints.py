"""Heads, tokens, processors and copies of a checkpoint are read as transformers reads them, or refused in one line."""

import json
import shutil

import numpy as np
import pytest
import tiny_hf
import transformers
from safetensors.numpy import load_file, save_file

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_config_and_processor, load_pretrained
from srlhfv_jax.hf.heads import SCORES, load_guard

FAMILIES = {"llama": tiny_hf.llama_config(), "llava": tiny_hf.llava_config(), "qwen2_vl": tiny_hf.qwen2_vl_config()}
BROKEN = (b"", b"[]", b"{", b'"x"', b"\xff\xfe{", b'{"a": 1}', b"[" * 100_000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for family, config in FAMILIES.items():
        made[family] = tmp_path_factory.mktemp(family)
        tiny_hf.save(made[family], config)
    return made


def said(folder, read=load_pretrained) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(folder)) + 500
    return str(caught.value)


HEADS = {"another": lambda embedding: embedding[::-1].copy(), "the embedding again": lambda embedding: embedding.copy()}


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_beside_a_tied_embedding_is_used_where_it_differs(family, kind, tmp_path):
    """transformers 5.24: "both are present in the checkpoints with different values, so we will NOT tie them"."""
    config = tiny_hf.llama_config(tie_word_embeddings=True) if family == "llama" else tiny_hf.llava_config(tied=True)
    tiny_hf.save(tmp_path / "base", config)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = "lm_head.weight" if family == "llama" else "language_model.lm_head.weight"
    save_file(tensors | {head: HEADS[kind](tensors[embedding])}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    auto = transformers.AutoModelForCausalLM if family == "llama" else transformers.AutoModelForImageTextToText
    theirs = auto.from_pretrained(tmp_path / "base").get_output_embeddings().weight.detach().numpy()
    loaded = load_pretrained(tmp_path / "base")
    assert loaded.config.text.tied_head == (kind == "the embedding again")
    ours = (
        loaded.params["text"]["embed"]["embedding"] if loaded.config.text.tied_head else loaded.params["text"]["head"]["kernel"]
    )
    np.testing.assert_array_equal(ours, theirs)
    export_pretrained(tmp_path / "out", loaded.config, loaded.params, base=loaded.path)
    back = auto.from_pretrained(tmp_path / "out").get_output_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(back, theirs)
    assert load_pretrained(tmp_path / "out").config == loaded.config


def test_a_tied_model_whose_file_has_the_head_alone_has_it_as_its_embedding(tmp_path):
    tiny_hf.save(tmp_path, tiny_hf.llama_config(tie_word_embeddings=True))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = embedding = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(theirs, embedding)
    np.testing.assert_array_equal(load_pretrained(tmp_path).params["text"]["embed"]["embedding"], embedding)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_without_a_row_of_the_embedding_are_refused(family, folders, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["harmless", "harmful"])
    tokenizer.save_pretrained(folder)
    assert f"the tokenizer has 2 tokens beyond the {tiny_hf.VOCAB} rows of the embedding, such as 'harmful'" in said(folder)


def test_a_padding_without_a_row_is_no_fault(folders, tmp_path):
    """It is never read: many a tokenizer got one without the embedding being resized."""
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert load_pretrained(folder).processor.pad_token_id == tiny_hf.VOCAB


def test_of_several_copies_the_one_is_read_that_transformers_reads(tmp_path):
    tiny_hf.save(tmp_path / "one", tiny_hf.llama_config(), seed=1)
    tiny_hf.save(tmp_path / "two", tiny_hf.llama_config(), seed=2, max_shard_size="10KB")
    for path in (*(tmp_path / "two").glob("model*"), tmp_path / "one" / "model.safetensors"):
        shutil.copy(path, tmp_path / "one" / (path.name if path.parent.name == "two" else "consolidated.safetensors"))
    (tmp_path / "one" / "pytorch_model.bin").write_bytes(b"a pickle")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one").get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(load_pretrained(tmp_path / "one").params["text"]["embed"]["embedding"], theirs)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantised_tensors_are_called_so(dtype, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(dtype)}, folder / "model.safetensors", {"format": "pt"})
    assert "quantised weights are not read" in said(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_file_in_any_state_is_read_or_refused_in_one_line(family, folders, tmp_path):
    refused = 0
    for path in sorted(folders[family].glob("*.json")):
        for state in (b"[]", b'{"a": 1}', path.read_bytes()[: path.stat().st_size // 2]):
            folder = shutil.copytree(folders[family], tmp_path / "m")
            (folder / path.name).write_bytes(state)
            try:
                load_config_and_processor(folder)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < len(str(folder)) + 500, (path.name, state[:20])
            shutil.rmtree(folder)
    assert refused >= 5


@pytest.mark.parametrize("state", BROKEN)
def test_a_broken_index_is_one_line(state, tmp_path):
    tiny_hf.save(tmp_path, tiny_hf.llama_config(), max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_bytes(state)
    assert "model.safetensors.index.json" in said(tmp_path)


@pytest.mark.parametrize("weight_map", [None, 3, [], {"a": 1}, {"a": {"b": "c"}}, {"lm_head.weight": "x" * 5000}])
def test_an_index_of_other_types_is_one_line(weight_map, tmp_path):
    tiny_hf.save(tmp_path, tiny_hf.llama_config(), max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model.safetensors.index.json" in said(tmp_path)


def test_a_processor_of_another_model_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"image_token_index": 7}))
    assert "image token: 4 by the processor's files, 7 by config.json" in said(folder)
    vision = settings["vision_config"] | {"image_size": 16}
    (folder / "config.json").write_text(json.dumps(settings | {"vision_config": vision}))
    assert "of wrong shape" in said(folder) or "features of a tile" in said(folder)


GUARD = {"categories": ["a"], "thresholds": {"input": 0.5}, "template": "x", "max_pixels": 0}
GUARD |= {"pooling": "last_token", "after": "final_norm", "severities": ["safe", "minor", "moderate", "severe"]}


@pytest.mark.parametrize("name", GUARD)
def test_a_fact_of_a_guard_that_is_missing_or_of_another_type_is_one_line(name, folders, tmp_path):
    loaded, path = load_pretrained(folders["llama"]), tmp_path / "guard.json"
    (tmp_path / "guard_heads.safetensors").write_bytes(b"")
    for value in (None, "x" * 5000, {"a": "b"}, [1], -1, float("nan")):
        path.write_text(json.dumps(GUARD | {name: value}))
        if not (name == "template" and isinstance(value, str)):
            assert "guard.json" in said(tmp_path, lambda folder: load_guard(loaded.config, folder, None))
    path.write_text(json.dumps({key: value for key, value in GUARD.items() if key != name}))
    assert f"has no {name}" in said(tmp_path, lambda folder: load_guard(loaded.config, folder, None))


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholds": {}},
        {"thresholds": {"input": 1.5}},  # nothing would be unsafe
        {"thresholds": {"output": -0.1}},  # everything would be
        {"categories": ["unsafe"]},  # its probability would stand in the place of P(unsafe)
        {"severities": ["severe", "moderate", "minor", "safe"]},
        {"pooling": "mean"},
        {"after": 3},
    ],
)
def test_a_guard_that_means_something_else_is_one_line(changes, folders, tmp_path):
    loaded = load_pretrained(folders["llama"])
    (tmp_path / "guard_heads.safetensors").write_bytes(b"")
    (tmp_path / "guard.json").write_text(json.dumps(GUARD | changes))
    assert next(iter(changes)) in said(tmp_path, lambda folder: load_guard(loaded.config, folder, None))


@pytest.mark.parametrize(
    "changes", [None, b"[1", {"sign": "cost < 0 means unsafe"}, {"heads": ["reward"]}, {"heads": 3}, {"pooling": "mean"}]
)
def test_score_heads_without_what_they_mean_are_one_line(changes, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    save_file({"cost": np.ones(32, np.float32)}, folder / "score_heads.safetensors")
    about = SCORES | {"heads": ["cost"]}
    if changes is not None:
        content = changes if isinstance(changes, bytes) else json.dumps(about | changes).encode()
        (folder / "score_heads.json").write_bytes(content)
    assert "score_heads.json" in said(folder)
    (folder / "score_heads.json").write_text(json.dumps(about))
    assert list(load_pretrained(folder).heads) == ["cost"]


@pytest.mark.parametrize("sign", ["label", "graded"])
def test_heads_of_earlier_exports_which_name_their_labels_load(sign, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    save_file({"cost": np.ones(32, np.float32)}, folder / "score_heads.safetensors")
    (folder / "score_heads.json").write_text(json.dumps(SCORES | {"heads": ["cost"], "sign": sign}))
    assert list(load_pretrained(folder).heads) == ["cost"]


def test_heads_that_are_not_numbers_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    save_file({"cost": np.full(32, np.nan, np.float32)}, folder / "score_heads.safetensors")
    assert "cost holds NaN or infinite numbers" in said(folder)
