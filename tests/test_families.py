"""Every family computes what `transformers` computes, from the same files and the same pictures, and goes back unchanged.

A row with a picture, one without and one with two pictures among its words, all of different shapes, left-padded to one length,
read from disk to logits by the code that the stages run.
"""

import importlib.util
import io

import jax
import numpy as np
import pytest
import tiny_hf
import torch
import transformers
from PIL import Image

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.rows import Example
from srlhfv_jax.hf import export_pretrained, load_pretrained, names
from srlhfv_jax.hf.config import from_json
from srlhfv_jax.hf.leaves import leaf as leaf_at, stored_shape
from srlhfv_jax.models import heads, projector, vlm
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.sampling import Sampling

R = 32
VARIANTS = {
    "llava": tiny_hf.llava_config(),
    "llava_next, llama": tiny_hf.llava_next_config(),
    "llava_next, mistral": tiny_hf.llava_next_config("mistral"),
    "qwen2_vl": tiny_hf.qwen2_vl_config(),
    "qwen2_vl, tied": tiny_hf.qwen2_vl_config(tied=True),
    "qwen2_5_vl": tiny_hf.qwen2_5_vl_config(),
    "smolvlm": tiny_hf.smolvlm_config(),
    "idefics3": tiny_hf.smolvlm_config(transformers.Idefics3Config),
    "gemma3": tiny_hf.gemma3_config(),
    "mistral": tiny_hf.mistral_config(),
    "mistral with a window": tiny_hf.mistral_config(sliding_window=6),
    "qwen2": tiny_hf.qwen2_config(),
    "gemma3_text": tiny_hf.gemma3_text_config(),
}
SIZES = (((40, 17),), (), ((13, 33), (26, 21)))  # width and height of the pictures of each row
QUESTIONS = ("w7 w9 w8", "w11 w12", "w20 <image> w21 w22 <image> w23")


def picture(size: tuple[int, int]) -> Image.Image:
    """A gradient with an edge: turned, mirrored or shifted it would be another picture."""
    rng = np.random.default_rng(size)
    smooth = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0], 1)
    return Image.fromarray(((smooth + rng.uniform(0, 200, (size[1], size[0], 3))) % 256).astype(np.uint8))


def examples(with_images: bool) -> list[Example]:
    if not with_images:
        return [Example((), question.replace("<image>", "w30"), ()) for question in QUESTIONS]
    return [Example(tuple(map(png, sizes)), question, ()) for question, sizes in zip(QUESTIONS, SIZES)]


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    picture(size).save(buffer, "PNG")
    return buffer.getvalue()


def settings(max_pixels: int = 0) -> DataConfig:
    return DataConfig(
        path="",
        split="",
        image_dir="",
        prompt_length=80,
        response_length=R,
        batch_size=3,
        workers=0,
        max_pixels=max_pixels,
        picture_buckets=1,
    )


def batch(pretrained):
    """The prompts as the stages read them, a little longer than the longest."""
    data = settings()
    prepared = loader.fit("prompts", examples(pretrained.config.vision is not None), pretrained.processor, data)
    assert len(prepared.rows) == 3
    return next(iter(loader.all_batches(prepared, "prompts", None, data, batch_size=3)))[0]


def theirs(config, pretrained, prompts) -> dict:
    """Keyword arguments of the torch model."""
    inputs = {"input_ids": torch.tensor(prompts.tokens_BP).long(), "attention_mask": torch.tensor(prompts.mask_BP).long()}
    if pretrained.config.vision is None:
        return inputs
    images = [[picture(size) for size in sizes] for sizes in SIZES if sizes]
    if config.model_type not in ("smolvlm", "idefics3"):
        images = sum(images, [])
    made = pretrained.processor.image_processor(images=images, return_tensors="pt")
    inputs |= {"pixel_values": made["pixel_values"]}
    if config.model_type == "llava_next":
        inputs |= {"image_sizes": made["image_sizes"]}
    if config.model_type in ("qwen2_vl", "qwen2_5_vl"):
        kinds = torch.tensor(prompts.tokens_BP == tiny_hf.IMAGE_TOKEN).int()
        inputs |= {"image_grid_thw": made["image_grid_thw"], "mm_token_type_ids": kinds}
    if config.model_type in ("smolvlm", "idefics3"):
        inputs |= {"pixel_attention_mask": made["pixel_attention_mask"]}
    if config.model_type == "gemma3":
        inputs |= {"token_type_ids": torch.tensor(prompts.tokens_BP == tiny_hf.IMAGE_TOKEN).int()}
    return inputs


@pytest.fixture(scope="module", params=VARIANTS)
def family(request, tmp_path_factory):
    """(transformers config, its torch model, the checkpoint as we read it, prompts, the folder)"""
    folder = tmp_path_factory.mktemp("family")
    model = tiny_hf.save(folder, VARIANTS[request.param])
    pretrained = load_pretrained(folder)
    if request.param == "qwen2":  # transformers reads every tokenizer beside this model as Qwen2's own
        pretrained = pretrained._replace(processor=tiny_hf.processor("qwen2"))
    return VARIANTS[request.param], model, pretrained, batch(pretrained), folder


def test_logits_are_equal(family):
    config, model, pretrained, prompts, _ = family

    @jax.jit
    def ours(params):
        features = None if prompts.images is None else vlm.encode_images(pretrained.config, params, prompts.images)
        hidden = vlm.apply(pretrained.config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)[0]
        return vlm.logits(pretrained.config, params, hidden)

    positions = {} if prompts.positions_BP.ndim == 3 else {"position_ids": torch.tensor(prompts.positions_BP)}
    with torch.no_grad():
        expected = model(**theirs(config, pretrained, prompts), **positions).logits.numpy()
    assert np.std(expected[prompts.mask_BP]) > 0.5
    np.testing.assert_allclose(np.asarray(ours(pretrained.params))[prompts.mask_BP], expected[prompts.mask_BP], atol=1e-4)


def test_image_features_are_equal(family):
    config, model, pretrained, prompts, _ = family
    if prompts.images is None:
        pytest.skip("text only")
    is_image = prompts.tokens_BP == tiny_hf.IMAGE_TOKEN

    @jax.jit
    def ours(params):
        features = vlm.encode_images(pretrained.config, params, prompts.images)
        zeros = np.zeros((*is_image.shape, pretrained.config.text.width), np.float32)
        return projector.project(pretrained.config, params["projector"], features, zeros, is_image)

    inputs = theirs(config, pretrained, prompts)
    wanted = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    with torch.no_grad():
        found = model.get_image_features(**{name: inputs[name] for name in wanted if name in inputs}).pooler_output
    expected = np.concatenate([one.numpy().reshape(-1, pretrained.config.text.width) for one in found])
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(np.asarray(ours(pretrained.params))[is_image], expected, atol=1e-4)


def test_greedy_generation_is_equal_token_for_token(family):
    config, model, pretrained, prompts, _ = family
    endless = Vocabulary(pad=0, eos=(tiny_hf.VOCAB,), never=())
    run = jax.jit(
        lambda params, prompts: generate(
            pretrained.config,
            params,
            prompts,
            jax.random.key(0),
            response_length=R,
            vocabulary=endless,
            sampling=Sampling(temperature=0.0),
        )
    )
    ours = run(pretrained.params, prompts).tokens_BT[:, -R:]
    options = dict(do_sample=False, min_new_tokens=R, max_new_tokens=R, eos_token_id=None)
    expected = model.generate(**theirs(config, pretrained, prompts), **options).numpy()[:, -R:]
    np.testing.assert_array_equal(ours, expected)


def test_positions_are_equal(family):
    config, model, pretrained, prompts, _ = family
    if prompts.positions_BP.ndim == 2:
        pytest.skip("one position a token")
    inputs = theirs(config, pretrained, prompts)
    wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    expected = model.model.get_rope_index(**{name: inputs[name] for name in wanted})[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(prompts.positions_BP[prompts.mask_BP], expected[prompts.mask_BP])


def test_an_export_is_the_same_checkpoint(family, tmp_path):
    _, model, pretrained, _, folder = family
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, max_shard_bytes=2e4)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    kind = transformers.AutoModelForImageTextToText if pretrained.config.vision else transformers.AutoModelForCausalLM
    again, report = kind.from_pretrained(out, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reloaded = load_pretrained(out)
    assert reloaded.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, pretrained.params)


CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
CLIP |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}
VICUNA = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
MISTRAL = {"model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336, "num_key_value_heads": 8}
MISTRAL |= {"max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6, "rms_norm_eps": 1e-5}


def llava(family: str, **text) -> dict:
    return {"model_type": family, "text_config": text, "vision_config": CLIP, "image_token_index": 32000}


def qwen2_vl(width, mlp, layers, heads, kv_heads, vocab, tied=False) -> dict:
    """As published: the decoder's settings at the top."""
    return {
        "model_type": "qwen2_vl",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"model_type": "qwen2_vl", "depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": width},
        "image_token_id": 151655,
    }


def qwen2_5_vl(*shape, **options) -> dict:
    data = qwen2_vl(*shape, **options)
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": shape[0]}
    tower |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"}
    return data | {"model_type": "qwen2_5_vl", "vision_config": tower}


def test_exported_heads_give_the_same_scores_in_torch(family, tmp_path):
    config, _, pretrained, prompts, folder = family
    score_heads = heads.init(pretrained.config, ("reward", "cost"), jax.random.key(3))
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, heads=score_heads)
    spec = importlib.util.spec_from_file_location("exported_scores", out / "score_heads.py")
    loader_of_export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader_of_export)
    model, exported = loader_of_export.load(str(out))
    theirs_by_name = loader_of_export.scores(model, exported, **theirs(config, pretrained, prompts))

    @jax.jit
    def ours(params):
        features = None if prompts.images is None else vlm.encode_images(pretrained.config, params, prompts.images)
        hidden = vlm.apply(pretrained.config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)[0]
        return heads.scores(score_heads, hidden[:, -1:])

    for name, score_B1 in ours(pretrained.params).items():
        np.testing.assert_allclose(score_B1[:, 0], theirs_by_name[name].numpy(), atol=1e-4)


SMOL = {"model_type": "llama", "vocab_size": 49280, "rms_norm_eps": 1e-5, "rope_theta": 100000, "max_position_embeddings": 8192}


def smolvlm(text: dict, tower: dict, scale: int) -> dict:
    tower = {"model_type": "smolvlm_vision", "image_size": 512, "patch_size": 16} | tower
    return {"model_type": "smolvlm", "text_config": SMOL | text, "vision_config": tower, "scale_factor": scale}


SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SIGLIP_LARGE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def gemma3(width: int, mlp: int, layers: int, **heads) -> dict:
    tower = SIGLIP_LARGE | {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14, "vision_use_head": False}
    text = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "sliding_window": 1024}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "model_type": "gemma3_text"}
    return {"model_type": "gemma3", "text_config": text | heads, "vision_config": tower, "mm_tokens_per_image": 256}


# Shapes as the authors published them.
PUBLISHED = {
    "LLaVA-1.5 7B": llava("llava", **VICUNA),
    "LLaVA-1.5 13B": llava(
        "llava", **VICUNA, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "LLaVA-NeXT Vicuna 7B": llava("llava_next", **VICUNA),
    "LLaVA-NeXT Mistral 7B": llava("llava_next", **MISTRAL),
    "Qwen2-VL 2B": qwen2_vl(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen2-VL 7B": qwen2_vl(3584, 18944, 28, 28, 4, 152064),
    "Qwen2-VL 72B": qwen2_vl(8192, 29568, 80, 64, 8, 152064),
    "Qwen2.5-VL 3B": qwen2_5_vl(2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen2.5-VL 7B": qwen2_5_vl(3584, 18944, 28, 28, 4, 152064),
    "Qwen2.5-VL 32B": qwen2_5_vl(5120, 27648, 64, 40, 8, 152064),
    "Qwen2.5-VL 72B": qwen2_5_vl(8192, 29568, 80, 64, 8, 152064),
    "SmolVLM 256M": smolvlm(
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        SIGLIP_BASE,
        4,
    ),
    "SmolVLM 500M": smolvlm(
        {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
        },
        SIGLIP_BASE,
        4,
    ),
    "SmolVLM 2.2B": smolvlm(
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 49155},
        SIGLIP_LARGE | {"image_size": 384, "patch_size": 14},
        3,
    ),
    "Gemma 3 4B": gemma3(2560, 10240, 34),
    "Gemma 3 12B": gemma3(3840, 15360, 48, num_attention_heads=16, num_key_value_heads=8),
    "Gemma 3 27B": gemma3(
        5376, 21504, 62, num_attention_heads=32, num_key_value_heads=16, head_dim=128, query_pre_attn_scalar=168
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_size_has_its_leaf(name, tmp_path):
    """On torch's meta device, which stores nothing: names and shapes on both sides, with nothing left over."""
    data = PUBLISHED[name]
    config = from_json(data, name, dtype="float32", remat="none", scan_unroll=1)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model(**data))
    found = {names.published(config, key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: shape for key, shape in found.items() if not names.ignored(config, key)}
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    table = names.table(config)
    expected = {}
    for leaf in table:
        stored = stored_shape(config, leaf, leaf_at(shapes, leaf.path).shape)
        expected |= {key: stored for key in leaf.names}
    assert found == expected
    assert len(table) == len(jax.tree.leaves(shapes))
