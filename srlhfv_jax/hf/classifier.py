"""An export with one score head as a classifier of `transformers`: AutoModelForSequenceClassification with one label.

The class reads the score at the rightmost token that is not padding, which must be the end of the answer: config.json and the
tokenizer get a padding token that is not. The folder stays what it was besides: the causal model, and the head in its own file.
"""

import json
from pathlib import Path
from typing import Any

from srlhfv_jax import files
from srlhfv_jax.data import chat
from srlhfv_jax.hf.processor import load_processor
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts

CLASSES = {  # family -> its class in transformers
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "gemma3": "Gemma3ForSequenceClassification",
}
BARE = {  # the class of the same model without a score
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
}
TENSOR = "score.weight"
PADDING = ("pad", "reserved", "unused")  # in the names of special tokens that no text has


def possible(config: VLMConfig, heads: dict[str, Any] | None) -> bool:
    """Whether there is a class for this model: one head, and a family that has one."""
    return config.family in CLASSES and len(heads or {}) == 1


def describe(draft: Path, config: VLMConfig, head: str) -> bool:
    """Note in the export's config.json that it is a classifier with the label `head`, and which token is its padding.

    Returns False, and notes nothing, where no token can be the padding; that is said.
    """
    if not (draft / "tokenizer_config.json").is_file():
        return False
    codec = chat.codec(load_processor(config, draft))
    pad_id = _padding(codec, config.text.vocab)
    if pad_id is None:
        hosts.say(
            f"no {CLASSES[config.family]} is written: the tokenizer pads with the end of an answer, at which the score is read, and has "
            "no other token for it"
        )
        return False
    described = files.read_json(draft / "config.json")
    described |= {"architectures": [CLASSES[config.family]], "id2label": {"0": head}, "label2id": {head: 0}}
    described["pad_token_id"] = pad_id
    if described.get("text_config"):
        described["text_config"] = described["text_config"] | {"pad_token_id": pad_id}
    _write(draft / "config.json", described)
    if pad_id != codec.tokenizer.pad_token_id:
        path = draft / "tokenizer_config.json"
        _write(path, files.read_json(path) | {"pad_token": codec.tokenizer.convert_ids_to_tokens(pad_id)})
    return True


def undo(draft: Path, config: VLMConfig) -> None:
    """Take out of config.json what `describe` noted for the base of this export, which itself is no classifier."""
    described = files.read_json(draft / "config.json")
    if described.get("architectures") == [CLASSES.get(config.family)]:
        kept = {name: value for name, value in described.items() if name not in ("id2label", "label2id")}
        _write(draft / "config.json", kept | {"architectures": [BARE[config.family]]})


def _padding(codec: chat.Codec, rows: int) -> int | None:
    """The tokenizer's padding, unless it ends answers; else a token that no text has. The embedding has `rows`."""
    tokenizer, ends = codec.tokenizer, {codec.eos_id, *codec.stop_ids, None}
    added = tokenizer.added_tokens_decoder.items()
    spare = [index for index, token in added if token.special and any(word in token.content.lower() for word in PADDING)]
    known = [index for index in (tokenizer.pad_token_id, *sorted(spare), tokenizer.unk_token_id) if index not in ends]
    return next((index for index in known if index != tokenizer.bos_token_id and index < rows), None)


def _write(path: Path, described: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(described, indent=2, sort_keys=True) + "\n")
