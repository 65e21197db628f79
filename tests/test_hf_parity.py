"""The model computes what `transformers` computes, from the same files, and its exports go back unchanged."""

import json

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
import torch
import transformers

from srlhfv_jax.batches import Images
from srlhfv_jax.hf import export_pretrained, load_pretrained
from srlhfv_jax.hf.config import from_json, read_config
from srlhfv_jax.models import score_heads as heads, vlm

LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
VARIANTS = {
    "gqa untied": tiny_hf.llava_config(),
    "tied, linear rope": tiny_hf.llava_config(tied=True, rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=3.0)),
    "llama3 rope, one head per key, full features": tiny_hf.llava_config(
        num_key_value_heads=4, rope_parameters=LLAMA3, layer=-1, strategy="full"
    ),
    "yarn rope, biases, wide heads": tiny_hf.llava_config(
        attention_bias=True,
        mlp_bias=True,
        head_dim=12,
        layer=1,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16),
    ),
    "text only": tiny_hf.llama_config(),
    "text only, tied, dynamic rope": tiny_hf.llama_config(
        tie_word_embeddings=True, rope_parameters=dict(rope_type="dynamic", rope_theta=1000.0, factor=2.0)
    ),
    "text only, a window in the first layer alone": tiny_hf.qwen2_config(
        layer_types=["sliding_attention", "full_attention"], use_sliding_window=True, sliding_window=3
    ),
}


def batch(features: int, *, seed: int = 1):
    """Three left-padded rows: with an image, without one, and with one and more padding. No images where features is 0."""
    rng = np.random.default_rng(seed)
    T = features + 9
    tokens_BT = rng.integers(5, tiny_hf.VOCAB, (3, T))
    mask_BT = np.ones((3, T), bool)
    mask_BT[1, : T - 5] = False
    mask_BT[2, :3] = False
    for row in (0, 2) if features else ():
        tokens_BT[row, 4 : 4 + features] = tiny_hf.IMAGE_TOKEN
    tokens_BT[~mask_BT] = 0
    pixels = rng.standard_normal((3, 3, tiny_hf.SIZE, tiny_hf.SIZE)).astype(np.float32) if features else None
    return tokens_BT, np.maximum(mask_BT.cumsum(1) - 1, 0), mask_BT, pixels


def images_of(pixels) -> Images:
    """Pixels as the loader makes them: patches in reading order."""
    p = tiny_hf.PATCH
    return Images(einops.rearrange(pixels, "B C (Y y) (X x) -> B (Y X) (C y x)", y=p, x=p), None, None, None)


def torch_logits(model, tokens_BT, positions_BT, mask_BT, pixels):
    images = {} if pixels is None else {"pixel_values": torch.tensor(pixels[[0, 2]])}
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens_BT),
            position_ids=torch.tensor(positions_BT),
            attention_mask=torch.tensor(mask_BT).long(),
            **images,
        ).logits.numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant, tmp_path):
    model = tiny_hf.save(tmp_path, VARIANTS[variant])
    config, params, *_ = load_pretrained(tmp_path)
    tokens_BT, positions_BT, mask_BT, pixels = batch(config.vision.features if config.vision else 0)

    @jax.jit
    def ours(params):
        features = None if pixels is None else vlm.encode_images(config, params, images_of(pixels))
        hidden_BTD, _ = vlm.apply(config, params, tokens_BT, positions_BT, mask_BT, features)
        return vlm.logits(config, params, hidden_BTD)

    expected = torch_logits(model, tokens_BT, positions_BT, mask_BT, pixels)
    assert np.std(expected[mask_BT]) > 0.5
    np.testing.assert_allclose(np.asarray(ours(params))[mask_BT], expected[mask_BT], atol=1e-4)


@pytest.mark.parametrize("variant", ["gqa untied", "text only"])
def test_greedy_generation_equals_that_of_transformers_token_for_token(variant, tmp_path):
    model = tiny_hf.save(tmp_path, VARIANTS[variant])
    config, params, *_ = load_pretrained(tmp_path)
    tokens_BP, positions_BP, mask_BP, pixels = batch(config.vision.features if config.vision else 0)
    B, P, R = 3, tokens_BP.shape[1], 12

    @jax.jit
    def ours(params):
        features = None if pixels is None else vlm.encode_images(config, params, images_of(pixels))
        cache = vlm.init_cache(config, B, P + R, jnp.float32)
        hidden_BTD, cache = vlm.apply(config, params, tokens_BP, positions_BP, mask_BP, features, cache)

        def step(carry, t):
            hidden_BD, cache = carry
            token_B = jnp.argmax(vlm.logits(config, params, hidden_BD), axis=1).astype(jnp.int32)
            position_B = jnp.asarray(mask_BP.sum(1)) + t
            hidden_B1D, cache = vlm.apply(
                config, params, token_B[:, None], position_B[:, None], jnp.ones((B, 1), bool), cache=cache
            )
            return (hidden_B1D[:, 0], cache), token_B

        return jax.lax.scan(step, (hidden_BTD[:, -1], cache), jnp.arange(R))[1].T

    images = {} if pixels is None else {"pixel_values": torch.tensor(pixels[[0, 2]])}
    theirs = model.generate(
        input_ids=torch.tensor(tokens_BP),
        attention_mask=torch.tensor(mask_BP).long(),
        do_sample=False,
        min_new_tokens=R,
        max_new_tokens=R,
        eos_token_id=None,
        **images,
    ).numpy()[:, P:]
    np.testing.assert_array_equal(np.asarray(ours(params)), theirs)


@pytest.mark.parametrize("variant", ["gqa untied", "tied, linear rope", "text only, tied, dynamic rope"])
def test_an_export_reloads_in_transformers_with_identical_tensors(variant, tmp_path):
    model = tiny_hf.save(tmp_path / "base", VARIANTS[variant])
    pretrained = load_pretrained(tmp_path / "base")
    score_heads = heads.init(pretrained.config, ("reward", "cost"), jax.random.key(3))
    out = export_pretrained(
        tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base", heads=score_heads, max_shard_bytes=2e4
    )
    assert len(list(out.glob("model-*.safetensors"))) > 1
    kind = transformers.AutoModelForImageTextToText if pretrained.config.vision else transformers.AutoModelForCausalLM
    again, report = kind.from_pretrained(out, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    reloaded = load_pretrained(out)
    assert reloaded.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, pretrained.params)
    jax.tree.map(np.testing.assert_array_equal, reloaded.heads, score_heads)


@pytest.mark.parametrize(("said", "written"), [(None, ["LlamaForCausalLM"]), (["OwnForCausalLM"], ["OwnForCausalLM"])])
def test_an_export_names_the_class_of_its_decoder(said, written, tmp_path):
    """vLLM looks it up there; a base that names one keeps it."""
    tiny_hf.save(tmp_path / "base", tiny_hf.llava_config())
    path = tmp_path / "base" / "config.json"
    described = json.loads(path.read_text())
    described["text_config"] = {key: value for key, value in described["text_config"].items() if key != "architectures"}
    path.write_text(json.dumps(described | {"text_config": described["text_config"] | ({"architectures": said} if said else {})}))
    pretrained = load_pretrained(tmp_path / "base")
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base")
    assert json.loads((out / "config.json").read_text())["text_config"]["architectures"] == written


def test_every_historical_name_layout_loads_to_the_same_parameters(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = tiny_hf.save(tmp_path / "disk", VARIANTS["gqa untied"])
    disk = load_pretrained(tmp_path / "disk")
    published = export_pretrained(tmp_path / "published", disk.config, disk.params, base=tmp_path / "disk")
    names = load_file(published / "model.safetensors").keys()
    assert "language_model.lm_head.weight" in names and "vision_tower.vision_model.pre_layrnorm.bias" in names
    memory = export_pretrained(tmp_path / "memory", disk.config, disk.params, base=tmp_path / "disk")
    in_memory = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert "model.language_model.embed_tokens.weight" in in_memory
    in_memory["model.vision_tower.embeddings.position_ids"] = np.arange(10)[None]  # a buffer old versions saved
    save_file(in_memory, memory / "model.safetensors")
    for folder in (published, memory):
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, disk.params)


def test_bfloat16_is_kept_through_load_and_export(tmp_path):
    tiny_hf.save(tmp_path / "base", VARIANTS["gqa untied"])
    half = load_pretrained(tmp_path / "base", dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half.params))
    export_pretrained(tmp_path / "out", half.config, half.params, base=tmp_path / "base")
    full = load_pretrained(tmp_path / "base")
    export_pretrained(tmp_path / "asked", full.config, full.params, base=tmp_path / "base", dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "asked", dtype="bfloat16").params, half.params)
    again = load_pretrained(tmp_path / "out", dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, half.params)
    masters = load_pretrained(tmp_path / "out", dtype="bfloat16", param_dtype="float32")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(masters.params))
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    tokens_BT, positions_BT, mask_BT, pixels = batch(half.config.vision.features)

    @jax.jit
    def hidden(params):
        features = vlm.encode_images(half.config, params, images_of(pixels))
        return vlm.apply(half.config, params, tokens_BT, positions_BT, mask_BT, features)[0]

    hidden_BTD = hidden(half.params)
    assert hidden_BTD.dtype == jnp.bfloat16
    ours = np.asarray(vlm.logits(half.config, half.params, hidden_BTD))[mask_BT]
    theirs = torch_logits(tiny_hf.model(VARIANTS["gqa untied"]), tokens_BT, positions_BT, mask_BT, pixels)[mask_BT]
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.03 * np.std(theirs)


def test_what_a_config_leaves_out_has_the_defaults_of_transformers(tmp_path):
    run = dict(dtype="float32", remat="none", scan_unroll=1)
    even = {"vision_config": {"image_size": 128}}  # with the 224 of these two no square of 2 patches fits
    for kind, given in (
        (transformers.LlavaConfig, {}),
        (transformers.LlavaNextConfig, {}),
        (transformers.SmolVLMConfig, even),
        (transformers.Idefics3Config, even),
        (transformers.Gemma3TextConfig, {}),
        (transformers.LlamaConfig, {}),
        (transformers.MistralConfig, {}),
        (transformers.Qwen2Config, {}),
    ):
        kind(**given).save_pretrained(tmp_path)
        assert from_json({"model_type": kind.model_type, **given}, "here", **run) == read_config(tmp_path)


def test_every_spelling_of_rope_scaling_is_read():
    run = dict(dtype="float32", remat="none", scan_unroll=1)
    new = from_json({"model_type": "llama", "rope_parameters": LLAMA3}, "new", **run)
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_type", "rope_theta")}
    for spelling in ("rope_type", "type"):
        old = {"model_type": "llama", "rope_theta": 1000.0, "rope_scaling": {spelling: "llama3", **scaling}}
        assert from_json(old, "old", **run) == new
