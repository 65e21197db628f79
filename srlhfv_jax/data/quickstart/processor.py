"""Writes the folder a random model of the embedded task starts from: a word-level tokenizer, an image processor and config.json.

The folder is an ordinary Hugging Face LLaVA folder without weights, so the stages need no special case for this task. Nothing
here needs torch. Tokens are whole words and punctuation marks, lower-cased; every word of the questions and of the answer grammar
has one.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from srlhfv_jax.data.quickstart.answers import BODIES, PREFIX, words
from srlhfv_jax.data.quickstart.concepts import CONCEPTS
from srlhfv_jax.data.quickstart.pictures import SIZE
from srlhfv_jax.data.quickstart.questions import NAMING_QUESTION, QUESTIONS

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<bos>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BOS, EOS, UNK, IMAGE)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %} {% endif %}{{ message['role'] }} :"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %} </s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token in id order: the special ones, then all words of questions and answers."""
    texts = ["user : assistant :", NAMING_QUESTION, PREFIX.format("."), *CONCEPTS, *BODIES]
    texts += [question for phrasings in QUESTIONS.values() for question in phrasings]
    return [*SPECIAL, *sorted({word for text in texts for word in words(text)})]


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, one id per word; decoding joins words with single spaces, as answers are written."""
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary())}, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # words, and runs of punctuation, as answers.words splits them
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def processor(patch: int) -> LlavaProcessor:
    """Tokenizer, chat template and a PIL image processor; pixels come out in [-1, 1]."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, dropped again by the "default" strategy
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def config_json(*, patch: int, vision_layers: int, vision_width: int, text_layers: int, text_width: int, heads: int) -> dict:
    """config.json of a small LLaVA-1.5. `vision_layers` are those that features pass through.

    LLaVA reads the tower one layer before its last (feature layer -2), so the tower has one layer more, and nothing reads it.
    """
    ids = {word: index for index, word in enumerate(vocabulary())}
    vision = {
        "model_type": "clip_vision_model",
        "image_size": SIZE,
        "patch_size": patch,
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "projection_dim": vision_width,
        "num_hidden_layers": vision_layers + 1,
        "num_attention_heads": heads,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(ids),
        "hidden_size": text_width,
        "intermediate_size": 8 * text_width // 3 // 8 * 8,  # Llama's proportion, a multiple of 8
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": text_width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "pad_token_id": ids[PAD],
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": ids[IMAGE],
        "image_seq_length": (SIZE // patch) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": vision,
    }


def write_base(
    folder: Path,
    *,
    patch: int = 8,
    vision_layers: int = 3,
    vision_width: int = 128,
    text_layers: int = 4,
    text_width: int = 128,
    heads: int = 4,
) -> Path:
    """Write tokenizer, processor and config.json into `folder`; hf.load reads it for a random start."""
    folder.mkdir(parents=True, exist_ok=True)
    processor(patch).save_pretrained(folder)
    sizes = {"vision_layers": vision_layers, "vision_width": vision_width, "text_layers": text_layers, "text_width": text_width}
    config = config_json(patch=patch, heads=heads, **sizes)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder
