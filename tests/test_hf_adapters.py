"""Adapters mean what they mean to PEFT, whichever of its settings they have; what is not plain LoRA is refused by name."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import peft
import pytest
import tiny_hf
import torch
import transformers
from safetensors.numpy import load_file, save_file

from srlhfv_jax.data import chat
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import adapter_config, export_pretrained, load_pretrained

SETTINGS = {
    "plain": {},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 64, r"layers\.1\.mlp\.up_proj": 3}},
    "rank_pattern": {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "up_proj": 5}},
    "both, rooted": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}, "use_rslora": True},
    "one layer": {"layers_to_transform": [1]},
    "one layer of a list with a name": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "by an expression, but for some": {"target_modules": r".*\.(q|up)_proj", "exclude_modules": ["layers.0.mlp.up_proj"]},
    "what does not matter": {"lora_dropout": 0.5, "init_lora_weights": "gaussian", "task_type": "CAUSAL_LM"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_hf.save(folder, tiny_hf.llama_config())
    return folder


def adapted(base, folder, **settings):
    """An adapter that PEFT saved over a checkpoint, and the merged weights by their names."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, about transformers
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped.save_pretrained(folder)
    return merged_by_peft(base, folder)


def merged_by_peft(base, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


def compare(params, state):
    for name, ours in (("self_attn", "q_proj"), ("mlp", "up_proj")):
        expected = np.stack([state[f"model.layers.{i}.{name}.{ours}.weight"].numpy() for i in (0, 1)])
        np.testing.assert_allclose(params["text"]["layers"][name][ours]["kernel"], expected, atol=1e-5)


@pytest.mark.parametrize("case", SETTINGS)
def test_an_adapter_is_read_as_peft_reads_it_and_goes_back(case, base, tmp_path):
    state = adapted(base, tmp_path / "adapter", **SETTINGS[case])
    compare(load_pretrained(tmp_path / "adapter").params, state)
    kept = load_pretrained(tmp_path / "adapter", keep_adapter=True)
    export_pretrained(tmp_path / "out", kept.config, None, base=kept.path, adapter=kept.adapter)
    compare(load_pretrained(tmp_path / "out").params, state)
    back = merged_by_peft(base, tmp_path / "out")
    assert all(torch.allclose(back[name], tensor, atol=1e-5) for name, tensor in state.items())


NOT_READ = sorted(
    {field.name for field in dataclasses.fields(peft.LoraConfig)}
    - set(adapter_config.HONOURED)
    - set(adapter_config.WITHOUT_EFFECT)
)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    adapted(base, folder)
    return folder


def said(folder, read=load_pretrained) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(folder)) + 400
    return str(caught.value)


def with_settings(plain, folder, changes):
    shutil.copytree(plain, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
    return folder


@pytest.mark.parametrize("name", [*NOT_READ, "a_setting_of_tomorrow"])
def test_a_setting_that_is_not_read_is_refused_by_its_name(name, plain, tmp_path):
    changes = {name: "pissa" if "init" in name else {"x": 1}}
    assert name in said(with_settings(plain, tmp_path / "a", changes), adapter_config.read)


@pytest.mark.parametrize("name", sorted(adapter_config.HONOURED))
@pytest.mark.parametrize("value", [{"a": "x"}, "x" * 5000, [["x"]], -1, True, 1e400])
def test_a_setting_of_another_type_is_one_line(name, value, plain, tmp_path):
    folder = with_settings(plain, tmp_path / "a", {name: value})
    try:
        adapter_config.read(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < len(str(folder)) + 400
    else:
        assert value == "x" * 5000 or (name, value) in (("layers_to_transform", -1), ("use_rslora", True))


@pytest.mark.parametrize("changes", [{"lora_alpha": 1e-300}, {"alpha_pattern": {"q_proj": 1e300}}])
def test_a_scale_that_float32_does_not_hold_is_refused(changes, plain, tmp_path):
    """A scale of 0 would leave the adapter out in silence."""
    assert "is a scale that float32 does not hold" in said(with_settings(plain, tmp_path / "a", changes))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": "\xff"}', b"null"])
def test_broken_settings_are_one_line(content, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in said(tmp_path / "a", adapter_config.read)


def edited(plain, folder, change):
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t[f"{Q}A.weight"].__setitem__((0, 1), np.nan), "holds NaN"),
        (lambda t: t.update({f"{Q}A.weight": np.ones((4, 31), np.float32)}), "expected [4, 32]"),
        (lambda t: t.update({f"{Q}A.weight": np.ones((4, 32, 1), np.float32)}), "expected [4, 32]"),
        (
            lambda t: t.update({f"{Q}A.weight": np.ones((3, 32), np.float32), f"{Q}B.weight": np.ones((32, 3), np.float32)}),
            "expected [4,",
        ),
        (lambda t: t.update({f"{Q}A.weight": np.ones((4, 32), np.int8)}), "of I8"),
        (lambda t: t.pop(f"{Q}A.weight"), "layers.1.self_attn.q_proj.lora_A, which adapter_config.json names"),
        (lambda t: [t.pop(f"{Q}{part}.weight") for part in "AB"], "which adapter_config.json names"),
        (lambda t: t.update({n.replace("q_proj", "k_proj"): t[n] for n in list(t) if "q_proj" in n}), "does not name"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[f"{Q}A.weight"]}), "fit no kernel"),
        (lambda t: t.update({f"{Q}magnitude_vector": np.ones(3, np.float32)}), "fit no kernel"),
        (lambda t: t.clear(), "lacks"),
    ],
)
def test_tensors_that_do_not_belong_are_one_line(change, message, plain, tmp_path):
    assert message in said(edited(plain, tmp_path / "a", change))


@pytest.mark.parametrize("name", ["non_lora_trainables.bin", "mm_projector.bin", "model.safetensors"])
def test_what_was_trained_beside_an_adapter_is_not_left_out(name, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(b"")
    assert name in said(tmp_path / "a")


def test_a_whole_checkpoint_with_an_adapter_in_it_is_what_the_adapter_lies_over(base, plain, tmp_path):
    """As in transformers: the folder's own weights go before those of base_model_name_or_path."""
    tiny_hf.save(tmp_path / "whole", tiny_hf.llama_config(), seed=5)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(plain / name, tmp_path / "whole" / name)
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    found = load_pretrained(tmp_path / "whole", keep_adapter=True)
    expected = state["model.layers.1.self_attn.q_proj.base_layer.weight"].numpy()
    np.testing.assert_allclose(found.params["text"]["layers"]["self_attn"]["q_proj"]["kernel"][1], expected, atol=1e-6)


def test_an_adapter_over_itself_or_another_is_refused(plain, tmp_path):
    first = with_settings(plain, tmp_path / "first", {"base_model_name_or_path": str(tmp_path / "first")})
    assert "is an adapter over itself" in said(first)
    second = with_settings(plain, tmp_path / "second", {"base_model_name_or_path": str(plain)})
    assert "which is an adapter too" in said(second)
    assert "is not a folder" in said(with_settings(plain, tmp_path / "third", {"base_model_name_or_path": "a" * 5000}))


def test_older_and_newer_names_are_the_same_adapter(tmp_path):
    """Before transformers 4.52 the decoder of LLaVA was language_model.model, and then model.language_model."""
    tiny_hf.save(tmp_path / "base", tiny_hf.llava_config())
    rng, tensors = np.random.default_rng(0), {}
    for layer in (0, 1):
        stem = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj.lora_"
        tensors |= {f"{stem}A.weight": rng.standard_normal((4, 32)), f"{stem}B.weight": rng.standard_normal((32, 4))}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(tmp_path / "base")}
    found = []
    for kind, old in (("new", False), ("old", True)):
        (tmp_path / kind).mkdir()
        targets = r".*language_model\.model.*q_proj" if old else r".*language_model\.layers.*q_proj"
        (tmp_path / kind / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": targets}))
        named = {n.replace("model.language_model.", "language_model.model.") if old else n: t for n, t in tensors.items()}
        save_file(named, tmp_path / kind / "adapter_model.safetensors")
        found.append(load_pretrained(tmp_path / kind, keep_adapter=True).adapter)
    jax.tree.map(np.testing.assert_array_equal, *found)
    save_file(named | tensors, tmp_path / "old" / "adapter_model.safetensors")
    assert "by an older and a newer name" in said(tmp_path / "old")


def test_an_adapters_own_tokenizer_and_template_are_used_and_exported(base, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "own")
    tokenizer = tiny_hf.processor("llama")
    tokenizer.chat_template = "{% for m in messages %}ask {{ m.content }} now{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "own")
    loaded = load_pretrained(tmp_path / "own", keep_adapter=True)
    assert chat.codec(loaded.processor).prompt_text("w7", 0) == "ask w7 now"
    assert chat.codec(load_pretrained(plain).processor).prompt_text("w7", 0) == "USER: w7 ASSISTANT:"
    export_pretrained(tmp_path / "out", loaded.config, None, base=loaded.path, adapter=loaded.adapter)
    again = load_pretrained(tmp_path / "out", keep_adapter=True)
    assert chat.codec(again.processor).prompt_text("w7", 0) == "ask w7 now" and again.base == str(base)
