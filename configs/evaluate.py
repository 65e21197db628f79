"""The config of `srlhfv benchmark` under the name it had before; for one release."""

from srlhfv_jax.configs.benchmark import PRESETS, get_config

__all__ = ["PRESETS", "get_config"]
