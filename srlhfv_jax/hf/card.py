"""The model card of an export: where the weights come from, what they were trained on and with, what came out, what they are for."""

import json
from typing import Any, NamedTuple

from srlhfv_jax.hf import hub

SIGNS = "cost > 0 means unsafe; a higher reward is more helpful."
USE = "research on alignment; evaluate it yourself before anybody depends on it"
LICENCES = (
    "BeaverTails-V and PKU-SafeRLHF are CC-BY-NC-4.0, and so is what was trained on them; the base model's licence holds too."
)


class Product(NamedTuple):
    """The weights that a stage makes, for their card."""

    stage: str
    meaning: str  # of the weights: what they are, what they were not made for


def card(
    *, base: str, product: Product, settings: dict[str, Any], result: dict[str, float], trace: list[tuple[int, float]]
) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        base: what the weights started from; of a model of the hub with its revision.
        settings: of the stage, as in WORKDIR/config.json.
        result: its final numbers.
        trace: (iteration, multiplier) pairs; [] where there is none.
    """
    known = f"base_model: {hub.name(base)}\n" if hub.is_model_id(base) else ""  # the hub knows nothing of folders here
    numbers = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(result.items()))
    parts = [
        f"---\nlibrary_name: transformers\n{known}tags: [srlhfv-jax, safe-rlhf, {product.stage}]\n---",
        f"# {product.stage} of {base}",
        product.meaning,
        f"Made with srlhfv_jax, an implementation of Safe RLHF-V (arXiv 2503.17682).\n\n"
        f"- base model: {base}\n- data: {settings['data']['path']}\n- licence: {LICENCES}\n"
        f"- intended use: {USE}",
        f"## Numbers at the end\n\n| | |\n|---|---|\n{numbers}",
    ]
    if trace:
        steps = "\n".join(f"| {step} | {value:.4f} |" for step, value in trace)
        parts.append(f"## The multiplier\n\n| iteration | lambda |\n|---|---|\n{steps}")
    parts.append(f"## Settings\n\n```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```")
    return "\n\n".join(parts) + "\n"
