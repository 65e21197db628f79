"""Tiny random Hugging Face checkpoints for parity tests: built here with torch, no download."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGE_TOKEN, VOCAB, SIZE, PATCH = 4, 53, 12, 4
FEATURES = (SIZE // PATCH) ** 2
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(f"w{i}" for i in range(5, VOCAB))]


def llama_config(**changes) -> transformers.LlamaConfig:
    settings = dict(
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,  # ten times the usual: differences in logits would show
    )
    return transformers.LlamaConfig(**(settings | changes))


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


def model(config, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model whose norms and biases are not trivially one and zero."""
    torch.manual_seed(seed)
    kind = transformers.LlavaForConditionalGeneration if config.model_type == "llava" else transformers.LlamaForCausalLM
    made = kind(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def processor(*, text_only: bool = False):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if text_only:
        return tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return transformers.LlavaProcessor(images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default")


def save(folder, config, seed: int = 0, **options) -> transformers.PreTrainedModel:
    """Write a whole checkpoint folder; returns its torch model."""
    made = model(config, seed)
    made.save_pretrained(folder, **options)
    processor(text_only=config.model_type == "llama").save_pretrained(folder)
    return made
