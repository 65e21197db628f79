"""Tiny random Hugging Face checkpoints for parity tests: built here with torch, no download. Tests are skipped where it is missing."""

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from srlhfv_jax.data.families import Bundle

IMAGE_TOKEN, VOCAB, SIZE, PATCH = 4, 53, 12, 4
FEATURES = (SIZE // PATCH) ** 2
PINPOINTS = [[12, 24], [24, 12], [24, 24], [36, 12]]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(f"w{i}" for i in range(5, VOCAB))]


TEXT = dict(
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=256,
    pad_token_id=0,
    initializer_range=0.2,  # ten times the usual: differences in logits would show
)


def llama_config(**changes) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**(TEXT | changes))


def llava_config(*, tied: bool = False, layer: int = -2, strategy: str = "default", **changes) -> transformers.LlavaConfig:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=16,
        initializer_range=0.2,
    )
    return transformers.LlavaConfig(
        text_config=llama_config(tie_word_embeddings=tied, **changes),
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=FEATURES,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tied,
    )


def llava_next_config(decoder: str = "llama") -> transformers.LlavaNextConfig:
    one_tile = llava_config()
    text = one_tile.text_config if decoder == "llama" else mistral_config()
    return transformers.LlavaNextConfig(
        text_config=text,
        vision_config=one_tile.vision_config,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=FEATURES,
    )


def mistral_config(**changes) -> transformers.MistralConfig:
    return transformers.MistralConfig(**(TEXT | {"sliding_window": None} | changes))


def qwen2_config(**changes) -> transformers.Qwen2Config:
    return transformers.Qwen2Config(**(TEXT | changes))


def qwen2_vl_config(*, tied: bool = False) -> transformers.Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]}
    text = TEXT | {"rope_parameters": rope, "tie_word_embeddings": tied}
    vision = dict(depth=3, embed_dim=16, num_heads=2, mlp_ratio=2, hidden_size=32, patch_size=PATCH, initializer_range=0.2)
    return transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, video_token_id=5, tie_word_embeddings=tied
    )


def qwen2_5_vl_config() -> transformers.Qwen2_5_VLConfig:
    """Windows of 2 x 2 features in the first and last layer, the whole picture in the middle one."""
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 2, 1]}
    vision = dict(depth=3, hidden_size=16, intermediate_size=28, num_heads=2, out_hidden_size=32, patch_size=PATCH)
    vision |= dict(window_size=16, fullatt_block_indexes=[1], initializer_range=0.2)
    return transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE_TOKEN, video_token_id=5
    )


def siglip(**changes) -> dict:
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE)
    return sizes | dict(patch_size=PATCH, initializer_range=0.2) | changes


def smolvlm_config(kind=transformers.SmolVLMConfig) -> transformers.PretrainedConfig:
    """Also of Idefics3. Tiles of 14 pixels, of which patches of 4 leave two over."""
    text = TEXT | {"model_type": "llama"}
    return kind(
        text_config=text,
        vision_config=siglip(image_size=14),
        image_token_id=IMAGE_TOKEN,
        scale_factor=3,
        tie_word_embeddings=False,
    )


GEMMA_TEXT = TEXT | {"head_dim": 12, "query_pre_attn_scalar": 9, "num_hidden_layers": 3, "sliding_window": 7}
GEMMA_TEXT |= {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
    },
}


def gemma3_text_config() -> transformers.Gemma3TextConfig:
    return transformers.Gemma3TextConfig(**GEMMA_TEXT)


def gemma3_config() -> transformers.Gemma3Config:
    """Windows shorter than the prompts, and images of four features."""
    return transformers.Gemma3Config(
        text_config=GEMMA_TEXT,
        vision_config=siglip(model_type="siglip_vision_model", vision_use_head=False, image_size=24),
        image_token_index=IMAGE_TOKEN,
        boi_token_index=49,
        eoi_token_index=50,
        mm_tokens_per_image=4,
    )


def model(config, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model in which nothing is trivially one or zero."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    kind = transformers.AutoModelForCausalLM if text_only(config) else transformers.AutoModelForImageTextToText
    made = kind.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def text_only(config) -> bool:
    return "vision_config" not in config.to_dict()


def processor(family: str = "llava"):
    """Of a family: its processor, or (Qwen2-VL, whose own needs torchvision) tokenizer and image processor; else a tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if family in ("llama", "mistral", "qwen2", "gemma3_text"):
        return tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if family in ("qwen2_vl", "qwen2_5_vl"):
        images = transformers.Qwen2VLImageProcessorPil(patch_size=PATCH, size={"shortest_edge": 64, "longest_edge": 768})
        return Bundle(tokenizer, images, "<image>", family, PATCH, 2)
    if family in ("smolvlm", "idefics3"):
        smol = family == "smolvlm"
        kind = transformers.SmolVLMImageProcessorPil if smol else transformers.Idefics3ImageProcessorPil
        images = kind(size={"longest_edge": 28}, max_image_size={"longest_edge": 14})
        return Bundle(tokenizer, images, "<image>", family, PATCH, 3)
    if family == "gemma3":
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens={"boi_token": "w49", "eoi_token": "w50", "image_token": "<image>"},
        )
        images = transformers.Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
        return Bundle(tokenizer, images, "<image>", family, PATCH, 3)
    square = dict(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    cutting = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    if family == "llava_next":
        images = transformers.LlavaNextImageProcessorPil(**square, image_grid_pinpoints=PINPOINTS)
        return transformers.LlavaNextProcessor(images, tokenizer, **cutting)
    return transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(**square), tokenizer, **cutting)


def save(folder, config, seed: int = 0, **options) -> transformers.PreTrainedModel:
    """Write a whole checkpoint folder; returns its torch model."""
    made = model(config, seed)
    made.save_pretrained(folder, **options)
    made_for = processor(config.model_type)
    for part in made_for[:2] if isinstance(made_for, Bundle) else (made_for,):
        part.save_pretrained(folder)
    return made
