"""Numbers of a data set, for `srlhfv data inspect`: one pass over the usable rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from srlhfv_jax.data import images, tokens
from srlhfv_jax.data.chat import Codec
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.loader import UNLIMITED
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.sources import Examples

HEADS = {  # head -> whether it learns from a row
    "reward": lambda e: e.chosen is not None and not e.helpful_tie,
    "cost": lambda e: e.safer is not None and not e.safety_tie,
    "cost_sign": lambda e: len(e.responses) == 2 and any(flag is not None for flag in e.unsafe),
    "guard": lambda e: e.harmful is not None or bool(e.asked) or any(v is not None for v in (*e.unsafe, *e.severity)),
}


def summarise(examples: Examples) -> dict[str, Any]:
    """Flat numbers: rows, drops by reason, images, labels. Rates are over the rows or responses that have the label."""
    without_image, digests = [], []
    for example in examples:
        without_image.append(example._replace(images=()))
        digests.append([images.digest(image) for image in example.images])
    with_image = sum(map(bool, digests))
    numbers = {
        "layout": examples.layout,
        "rows": examples.source_rows,
        "usable": len(examples),
        "dropped": sum(examples.drops.values()),
        **{f"drops.{reason}": count for reason, count in examples.drops.items()},
        "with_image": with_image,
        "text_only": len(examples) - with_image,
        "with_several_images": sum(len(row) > 1 for row in digests),
        "distinct_images": len(set().union(*digests)),
        "distinct_questions": len({example.question for example in without_image}),
        "with_earlier_turns": sum(any(turn.role != "system" for turn in example.history) for example in without_image),
        "with_system_turn": sum(bool(example.history) and example.history[0].role == "system" for example in without_image),
        **{f"with_{count}_responses": sum(len(e.responses) == count for e in without_image) for count in (0, 1, 2)},
    }
    return numbers | _labels(without_image)


def _labels(examples: Sequence[Example]) -> dict[str, Any]:
    flags = [flag for example in examples for flag in example.unsafe if flag is not None]
    graded = [value for example in examples for value in example.severity if value is not None]
    both = [e for e in examples if e.chosen is not None and e.safer is not None]
    return {
        "safety_labels": len(flags),
        "unsafe_rate": float(np.mean(flags)) if flags else None,
        "graded_labels": len(graded),
        "graded_zero_rate": float(np.mean([value == 0 for value in graded])) if graded else None,
        "helpful_strict": sum(e.chosen is not None and not e.helpful_tie for e in examples),
        "helpful_ties": sum(e.helpful_tie for e in examples),
        "safety_strict": sum(e.safer is not None and not e.safety_tie for e in examples),
        "safety_ties": sum(e.safety_tie for e in examples),
        "disagree_rate": float(np.mean([e.chosen != e.safer for e in both])) if both else None,
        "desirable": sum(e.desirable is True for e in examples),
        "undesirable": sum(e.desirable is False for e in examples),
        **{f"labelled.{head}": sum(map(is_labelled, examples)) for head, is_labelled in HEADS.items()},
    }


def token_lengths(examples: Sequence[Example], codec: Codec) -> dict[str, int]:
    """Median, 95th percentile and maximum of prompt tokens (placeholders included), response tokens (with the end token) and
    placeholders of an image.

    Rows that cannot be encoded at all are left out here; `loader.fit` counts them.
    """
    prompts, responses, placeholders = [], [], []
    for index in range(len(examples)):
        try:
            row = tokens.encode(codec, examples[index], index, prompt_length=UNLIMITED, response_length=UNLIMITED)
        except Unusable:
            continue
        prompts.append(len(row.prompt))
        responses += [len(ids) for ids in row.responses]
        placeholders += [layout.placeholders for layout in row.layouts]
    lengths = {"prompt_tokens": prompts, "response_tokens": responses, "image_tokens": placeholders}
    return {
        f"{name}.{label}": int(np.percentile(values, q, method="higher"))
        for name, values in lengths.items()
        if values
        for label, q in (("p50", 50), ("p95", 95), ("max", 100))
    }
