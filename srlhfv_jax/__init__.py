"""Safe RLHF-V in JAX: vision-language models that become more helpful while their harm stays under a budget."""

__version__ = "0.1.0"
