"""Small tokenizers with the special tokens, chat templates and generation settings of the families people use, and a decoder that
says what a test wants it to say: built here, no download."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers
from safetensors.numpy import save_file
from tiny_data import PATCH, SIZE
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from srlhfv_jax.data.families import Bundle

VOCAB = 640  # rows of the decoder's vocabulary: more than any of these tokenizers has
CORPUS = [
    "what is this? a cat, a dog.",
    "user assistant model system",
    "how do I use it?\n\nyes no " * 3,
    "The answer of the cat is no.",
]
SMALL = {"family": "", "patch": 4, "merge": 3}


class Family(NamedTuple):
    """One family's settings."""

    tokenizer: Callable[[], transformers.PreTrainedTokenizerFast]
    processor: Callable[[transformers.PreTrainedTokenizerFast], object] | None  # None: text-only
    generation: tuple[str, ...]  # what generation_config.json says ends an answer
    stops: frozenset[str]
    end: str  # what the chat template writes after an assistant's turn
    vision: tuple[str, ...]


def _byte_level(specials: list[str], words: list[str], template: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    """As Qwen's and Llama 3's: the special tokens have ids behind the vocabulary."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **named)


def _sentencepiece(first: list[str], *, prefix: bool) -> Tokenizer:
    """As Vicuna's and Gemma's: the special tokens come first, spaces are a character."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 320, special_tokens=first, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|box_start|>"]
QWEN_SPECIALS += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


def qwen() -> transformers.PreTrainedTokenizerFast:
    words = ["<tool_call>", "</tool_call>", "<|fim_prefix|>"]
    return _byte_level(QWEN_SPECIALS, words, QWEN_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen_vl(tokenizer) -> Bundle:
    images = transformers.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 768})
    return Bundle(tokenizer, images, "<|image_pad|>", "qwen2_vl", 4, 2)


LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + "
    "content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>"
    "\n\n' }}{% endif %}"
)
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>"]
LLAMA3_SPECIALS += ["<|end_header_id|>", "<|eot_id|>"]


def llama3() -> transformers.PreTrainedTokenizerFast:
    """As first published: the tokenizer's own end is not that of a turn."""
    made = _byte_level(LLAMA3_SPECIALS, [], LLAMA3_TEMPLATE, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    begin = ("<|begin_of_text|>", made.convert_tokens_to_ids("<|begin_of_text|>"))
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin])
    return made


GEMMA_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}{{ '<start_of_turn>' + role + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def gemma3() -> transformers.PreTrainedTokenizerFast:
    """With the ids of the real one up to the end of a turn, 106; line breaks are added tokens as well."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", *(f"<unused{index}>" for index in range(99))]
    core = _sentencepiece([*first, "<start_of_turn>", "<end_of_turn>"], prefix=False)
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("\n", "\n\n", "▁▁", "<table>")])
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    named = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", extra_special_tokens=marks)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, chat_template=GEMMA_TEMPLATE, **named)
    assert made.convert_tokens_to_ids("<end_of_turn>") == 106
    return made


def _gemma_vl(tokenizer) -> Bundle:
    images = transformers.Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
    return Bundle(tokenizer, images, "<image_soft_token>", "gemma3", 4, 3)


SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
SMOLVLM_SPECIALS += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))]


def smolvlm() -> transformers.PreTrainedTokenizerFast:
    named = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    return _byte_level(SMOLVLM_SPECIALS, ["<repo_name>"], SMOLVLM_TEMPLATE, **named)


def _smolvlm_vl(tokenizer) -> Bundle:
    images = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 28}, max_image_size={"longest_edge": 14})
    return Bundle(tokenizer, images, "<image>", "smolvlm", 4, 3)


LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava() -> transformers.PreTrainedTokenizerFast:
    """Vicuna's tokenizer with LLaVA's placeholder."""
    core = _sentencepiece(["<unk>", "<s>", "</s>"], prefix=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=["<image>", "<pad>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **named)


def _llava_vl(tokenizer) -> transformers.LlavaProcessor:
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )


ROWS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
FAMILIES = {
    "gemma3": Family(
        gemma3,
        _gemma_vl,
        ("<eos>", "<end_of_turn>"),
        frozenset({"<eos>", "<end_of_turn>"}),
        "<end_of_turn>",
        ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    ),
    "llama3": Family(
        llama3,
        None,
        ("<|end_of_text|>", "<|eot_id|>"),
        frozenset({"<|end_of_text|>", "<|eot_id|>"}),
        "<|eot_id|>",
        (),
    ),
    "qwen": Family(
        qwen,
        _qwen_vl,
        ("<|im_end|>", "<|endoftext|>"),
        frozenset({"<|im_end|>", "<|endoftext|>"}),
        "<|im_end|>",
        ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    "smolvlm": Family(
        smolvlm,
        _smolvlm_vl,
        ("<end_of_utterance>",),
        frozenset({"<end_of_utterance>", "<|im_end|>"}),
        "<end_of_utterance>",
        ("<fake_token_around_image>", "<global-img>", "<image>", *ROWS),
    ),
    "llava": Family(llava, _llava_vl, ("</s>",), frozenset({"</s>"}), "</s>", ("<image>",)),
}


def processor(name: str):
    """The processor of a family, or its tokenizer."""
    family = FAMILIES[name]
    made = family.tokenizer()
    return made if family.processor is None else family.processor(made)


def write_tokenizer(name: str, folder: Path) -> None:
    """The tokenizer alone, with a template for it, and generation_config.json."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    if tokenizer.chat_template is None:
        tokenizer.chat_template = LLAVA_TEMPLATE
    tokenizer.save_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(word) for word in family.generation]
    transformers.GenerationConfig(eos_token_id=stops if len(stops) > 1 else stops[0]).save_pretrained(folder)


def write_speaker(folder: Path, chain: list[int], tempting: list[int]) -> None:
    """A text-only decoder that goes from each id of the chain to the next, whatever it was asked, and from any other id to the
    first. It would like the tempting ids even better."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=VOCAB,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    following = dict(zip(chain, chain[1:]))
    head = np.zeros((VOCAB, VOCAB), np.float32)  # from id, to id
    for index in range(VOCAB):
        head[index, following.get(index, chain[0])] = 2.0
        head[index, tempting] = 3.0
    layer = "model.layers.0."
    ones, shapes = np.ones(VOCAB, np.float32), {"q": (16, VOCAB), "k": (4, VOCAB), "v": (4, VOCAB), "o": (VOCAB, 16)}
    tensors = {f"{layer}self_attn.{name}_proj.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {f"{layer}mlp.{name}_proj.weight": np.zeros((4, VOCAB), np.float32) for name in ("gate", "up")}
    tensors |= {f"{layer}mlp.down_proj.weight": np.zeros((VOCAB, 4), np.float32), "model.norm.weight": ones}
    tensors |= {f"{layer}{name}_layernorm.weight": ones for name in ("input", "post_attention")}
    tensors |= {"model.embed_tokens.weight": np.eye(VOCAB, dtype=np.float32), "lm_head.weight": np.ascontiguousarray(head.T)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    described = json.loads(config.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(described))
