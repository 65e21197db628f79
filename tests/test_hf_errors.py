"""A bad checkpoint folder ends in one line that says what was expected, what came and what to do."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import load_file, save_file

from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_config_and_processor, load_pretrained, weights
from srlhfv_jax.hf.config import from_json
from srlhfv_jax.hf.heads import PLACE, SCORES, load_guard, load_heads
from srlhfv_jax.models import score_heads as heads, vlm

RUN = dict(dtype="float32", remat="none", scan_unroll=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    tiny_hf.save(folder, tiny_hf.llava_config())
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "checkpoint")


def created(config, seed: int):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def message(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_difference_is_reported_in_one_error(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.norm.weight"]
    for layer in (0, 1):
        del tensors[f"language_model.model.layers.{layer}.mlp.up_proj.weight"]
    tensors["language_model.model.layers.1.mlp.extra.weight"] = np.ones((2, 3), np.float32)
    tensors["multi_modal_projector.linear_1.weight"] = np.ones((5, 7), np.float32)
    save_file(tensors, folder / "model.safetensors")
    said = message(folder)
    assert "1 unmapped: language_model.model.layers.1.mlp.extra.weight" in said
    assert "2 missing: language_model.model.layers.0-1.mlp.up_proj.weight, language_model.model.norm.weight" in said
    assert "1 of wrong shape: multi_modal_projector.linear_1.weight is [5, 7], expected [32, 16]" in said


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors is truncated or not a safetensors file" in message(folder)


def overlapping(header: dict) -> dict:
    """Two tensors claim the same bytes."""
    first, second = [name for name in header if name != "__metadata__"][:2]
    return header | {second: header[second] | {"data_offsets": header[first]["data_offsets"]}}


def beyond_the_end(header: dict) -> dict:
    name = next(name for name in header if name != "__metadata__")
    begin, end = header[name]["data_offsets"]
    return header | {name: header[name] | {"data_offsets": [begin, end + 10**9]}}


def of_another_size(header: dict) -> dict:
    """A shape that its bytes cannot fill."""
    name = next(name for name in header if name != "__metadata__")
    return header | {name: header[name] | {"shape": [10**6, 10**6]}}


@pytest.mark.parametrize("lie", [overlapping, beyond_the_end, of_another_size])
def test_a_header_that_lies_is_refused(folder, lie):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(lie(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert "model.safetensors is truncated or not a safetensors file" in message(folder)


def test_weights_that_are_not_numbers_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.norm.weight"][3] = np.nan
    tensors["multi_modal_projector.linear_1.bias"][0] = np.inf
    save_file(tensors, folder / "model.safetensors")
    assert "multi_modal_projector.linear_1.bias holds NaN or infinite numbers" in message(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["cost", "severity.bias", "categories.kernel"])
def test_heads_that_are_not_numbers_are_named(folder, name, value):
    config, _ = load_config_and_processor(folder)
    D = config.text.width
    scores = {"reward": np.full(D, 0.25, np.float32), "cost": np.full(D, -0.5, np.float32)}
    guard = {"severity.kernel": np.full(D, 0.75, np.float32), "severity.bias": np.zeros(3, np.float32)}
    guard |= {"categories.kernel": np.full((2, D), 0.5, np.float32), "categories.bias": np.zeros(2, np.float32)}
    (scores if name in scores else guard)[name].flat[1] = value
    save_file(scores, folder / weights.HEADS_FILE)
    save_file(guard, folder / weights.GUARD_FILE)
    about = {"categories": ["a", "b"], "thresholds": {"input": 0.5}, "template": "x", "max_pixels": 0}
    about |= PLACE | {"severities": list(SEVERITIES)}
    (folder / weights.HEADS_META).write_text(json.dumps(SCORES | {"heads": ["reward", "cost"]}))
    (folder / weights.GUARD_META).write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite numbers"):
        load_heads(config, folder, None)
        load_guard(config, folder, None)


def test_code_in_a_checkpoint_is_never_run(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("tokenizer_config.json", "processor_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            kinds = {"AutoTokenizer": ["evil.Evil", None], "AutoProcessor": "evil.Evil", "AutoConfig": "evil.Evil"}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": kinds}))
    try:
        load_pretrained(folder)
    except UserError:
        pass  # refusing is as good as reading it without the code
    assert not (folder / "ran").exists()


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = message(folder)
    assert "pytorch_model.bin" in said and "refused" in said and "safetensors" in said


def test_a_folder_without_weights_or_config_says_what_is_missing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "expected model.safetensors or model.safetensors.index.json" in message(folder)
    (folder / "config.json").unlink()
    assert "config.json" in message(folder)
    assert "is not a folder" in message(tmp_path / "nowhere")


def test_a_missing_shard_is_named(folder):
    shutil.rmtree(folder)
    tiny_hf.save(folder, tiny_hf.llava_config(), max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in message(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"language_model.model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "../elsewhere.safetensors" in message(folder)


def test_another_architecture_is_refused(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mllama"}))
    assert "'mllama'" in message(folder)
    path.write_text("{not json")
    assert "is not JSON" in message(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type must be 'llama' or 'mistral', got 'gpt2'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type"),
        ({"text_config": {"hidden_act": "swish"}}, "hidden_act must be one of"),
        ({"text_config": {"rope_parameters": {"rope_type": "longrope"}}}, "rope type must be one of"),
        ({"text_config": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}}, "partial_rotary_factor"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_config": {"image_size": [336, 224]}}, "image_size must be a whole number"),
        ({"vision_feature_select_strategy": "first"}, "'default' or 'full', got 'first'"),
    ],
)
def test_an_unsupported_setting_is_named(change, said):
    with pytest.raises(UserError, match="there: ") as caught:
        from_json({"model_type": "llava"} | change, "there", **RUN)
    assert said in str(caught.value)


def test_a_folder_without_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()
    assert "no usable tokenizer or processor files" in message(folder)


def test_an_unknown_dtype_is_refused(good):
    assert "'float16'" in message(good, dtype="float16")


def test_a_score_head_of_another_width_is_refused(folder):
    save_file({"cost": np.ones(31, np.float32)}, folder / "score_heads.safetensors")
    assert "the head 'cost' has shape (31,)" in message(folder)


def test_export_refuses_a_base_of_another_shape(good, tmp_path):
    other = tmp_path / "other"
    tiny_hf.save(other, tiny_hf.llava_config(num_hidden_layers=1))
    config, _ = load_config_and_processor(good)
    with pytest.raises(UserError, match="describes another model"):
        export_pretrained(tmp_path / "out", config, created(config, 0), base=other)
    assert not list(tmp_path.glob("*out*"))


def test_a_workdir_is_read_at_its_export_and_an_export_replaces_the_one_before(good, tmp_path):
    workdir = tmp_path / "workdir"
    (workdir / "checkpoints").mkdir(parents=True)
    assert "has no export yet" in message(workdir)
    config, _ = load_config_and_processor(good)
    score_heads = heads.init(config, ("cost",), jax.random.key(1))
    for seed in (2, 3):
        params = created(config, seed)
        export_pretrained(workdir / "export", config, params, base=good, heads=score_heads, meta={"stage": "scores"})
    loaded = load_pretrained(workdir)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.path == workdir / "export" and list(loaded.heads) == ["cost"]
    described = json.loads((workdir / "export" / "score_heads.json").read_text())
    assert (
        described["stage"] == "scores" and described["pooling"] == "last_token" and "cost > 0 means unsafe" in described["sign"]
    )
    assert [path.name for path in workdir.iterdir() if "export" in path.name] == ["export"]
