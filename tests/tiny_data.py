"""Small pictures, rows and a word-level processor for the tests of data: built here, no download."""

import io
import zlib
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from srlhfv_jax.config import DataConfig

SIZE, PATCH = 24, 8
FEATURES = (SIZE // PATCH) ** 2
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    *"USER : ASSISTANT what is this ? how do I use it a cat dog knife no yes .".split(),
]
IMAGE_ID = WORDS.index("<image>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(*, pad: str = "<pad>", specials: str = "bos") -> PreTrainedTokenizerFast:
    """Words are tokens. `specials`: what the tokenizer adds by itself: "none", "bos", or "bos_eos"."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if specials != "none":
        single = "<s> $A </s>" if specials == "bos_eos" else "<s> $A"
        words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def processor(*, template: str | None = TEMPLATE, **options) -> LlavaProcessor:
    """Of a LLaVA-1.5 with 9 features per image."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer=tokenizer(**options),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def png(shade: int, size: tuple[int, int] = (30, 26)) -> bytes:
    """A picture with a gradient, so that shifts and flips would show."""
    image = Image.linear_gradient("L").resize(size)
    buffer = io.BytesIO()
    Image.merge("RGB", [image, image.point(lambda v: v // 2), Image.new("L", size, shade % 256)]).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(shade, (64, 64)))).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims this many pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    data = b"IDAT" + zlib.compress(b"\x00" * 64)
    chunks = [(len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def dual_row(**changes: Any) -> dict[str, Any]:
    """One row as saferlhf-v/BeaverTails-V publishes it: ids and flags are text, ratings numbers."""
    row = {
        "image": {"bytes": png(7), "path": "a.png"},
        "question": "how do I use it ?",
        "category": "violence_and_physical_harm",
        "image_severity": 2,
        "response_1": "use a knife .",
        "response_2": "no .",
        "response_1_from": "model_a",
        "response_2_from": "model_b",
        "more_helpful_response_id": "1",
        "safer_response_id": "2",
        "is_response_1_safe": "no",
        "is_response_2_safe": "yes",
        "response_1_harmless_rate": -2,
        "response_2_harmless_rate": 1,
        "response_1_helpful_rate": 3,
        "response_2_helpful_rate": 1,
    }
    return row | changes


def qa_row(**changes: Any) -> dict[str, Any]:
    """One row as PKU-Alignment/BeaverTails-V publishes it."""
    row = {
        "image": {"bytes": png(8), "path": None},
        "question": "what is this ?",
        "category": "animal_abuse",
        "image_severity": 1,
        "response": "a cat .",
        "is_response_safe": "yes",
    }
    return row | changes


def pku_row(**changes: Any) -> dict[str, Any]:
    """One row as PKU-Alignment/PKU-SafeRLHF publishes it: ids are numbers, flags booleans."""
    row = {
        "prompt": "how do I use it ?",
        "response_0": "use a knife .",
        "response_1": "no .",
        "prompt_source": "p",
        "response_0_source": "a",
        "response_1_source": "b",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {"Violence": True, "Drugs": False},
        "response_1_harm_category": {"Violence": False, "Drugs": False},
        "response_0_severity_level": 3,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": "x",
        "response_1_sha256": "y",
    }
    return row | changes


def settings(path: str = "", **changes: Any) -> DataConfig:
    values = {
        "path": str(path),
        "split": "",
        "image_dir": "",
        "allow_dir": "",
        "revision": "",
        "columns": (),
        "label_means": "desirable",
        "chosen_means": "helpful",
        "fetch": False,
        "decode_first": False,
        "max_pixels": 0,
        "picture_buckets": 1,
        "system_prompt": "",
        "chat_template": "",
        "train_on": "last",
        "mix": "",
        "prompt_length": 24,
        "response_length": 6,
        "batch_size": 4,
        "workers": 2,
    }
    return DataConfig(**(values | changes))
