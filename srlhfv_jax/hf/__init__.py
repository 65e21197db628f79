"""Hugging Face checkpoints in and out: `load_pretrained` and `export_pretrained`."""

from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import Pretrained, load_config_and_processor, load_pretrained

__all__ = ["Pretrained", "export_pretrained", "load_config_and_processor", "load_pretrained"]
