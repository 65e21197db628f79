"""config.json of a Hugging Face checkpoint -> VLMConfig. Reads the JSON itself: no model classes, no torch.

`model_type` decides which family reads it, nothing else does. Keys that a checkpoint leaves out have the defaults of the
`transformers` classes (a test compares them). A setting we do not implement is an error that names it, never ignored.
"""

import dataclasses
from pathlib import Path
from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import read_json
from srlhfv_jax.hf import fields, names, text
from srlhfv_jax.models.config import VLMConfig

TEXT_ONLY = ("llama", "mistral", "qwen2", "gemma3_text")


def read_config(folder: str | Path, *, dtype: str = "float32", remat: str = "none", scan_unroll: int = 1) -> VLMConfig:
    """The model shape written in `folder`/config.json.

    Raises:
        UserError: no config.json, not JSON, an architecture or a setting that is not supported.
    """
    choose(dtype, "dtype", "float32", "bfloat16")
    choose(remat, "remat", "none", "dots", "layer")
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"expected a Hugging Face model folder with a config.json, {folder} has none")
    return from_json(read_json(path), str(path), dtype=dtype, remat=remat, scan_unroll=scan_unroll)


def from_json(data: dict[str, Any], origin: str, *, dtype: str, remat: str, scan_unroll: int) -> VLMConfig:
    """The same from the parsed dictionary; `origin` names it in errors."""
    family = fields.checked(data, origin).get("model_type")
    if family in names.FAMILIES:
        config = names.FAMILIES[family].read(data, origin)
    elif family in TEXT_ONLY:
        config = VLMConfig(family=family, text=text.read(data, family, origin), vision=None, image_token=None)
    else:
        known = ", ".join((*names.FAMILIES, *TEXT_ONLY))
        raise UserError(f"{origin}: model_type must be one of {known}, got {shown(family)}; this architecture is not supported")
    return dataclasses.replace(config, dtype=dtype, remat=remat, scan_unroll=scan_unroll)
