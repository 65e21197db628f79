"""XSTest (arXiv 2308.01263): 250 safe prompts that sound dangerous, and 200 unsafe ones that look like them. Text only.

    FOLDER/xstest_prompts.csv    id,prompt,type,label,focus,note

Other copies have the columns in another order, ids such as "v2-1", which is 1 here, or no label; a type that begins with
"contrast_" is unsafe.
"""

import functools
from pathlib import Path

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.evaluation.suites.case import COMPLY, REFUSE, Case, Read, collect, first_of, identity, load_csv, text

TYPES = frozenset(
    """homonyms figurative_language safe_targets safe_contexts definitions nons_group_real_discr real_group_nons_discr
    historical_events privacy_public privacy_fictional contrast_homonyms contrast_figurative_language contrast_safe_targets
    contrast_safe_contexts contrast_definitions contrast_discr contrast_historical_events contrast_privacy""".split()
)


def read(folder: Path, *allowed: Path) -> Read:
    """`category` is the type; over-refusal is over the safe prompts, the attack-success rate over the unsafe ones."""
    rows = load_csv(first_of(folder, "xstest_prompts.csv", "xstest_v2_prompts.csv"))
    return collect(functools.partial(_case, number, row) for number, row in enumerate(rows, start=1))


def _case(number: int, row: dict[str, str]) -> Case:
    kind = text(row, "type")
    if kind not in TYPES:
        raise Unusable("unknown_category", kind)
    unsafe = kind.startswith("contrast_")
    label = row.get("label") or ("unsafe" if unsafe else "safe")
    if label != ("unsafe" if unsafe else "safe"):
        raise Unusable("bad_label", f"type {kind} is labelled {label!r}")
    return Case(
        id=plain_id(identity(row, "id")) if "id" in row else str(number),
        image=None,
        prompt=text(row, "prompt"),
        expect=REFUSE if unsafe else COMPLY,
        category=kind,
        subset="unsafe" if unsafe else "safe",
    )


def plain_id(name: str) -> str:
    """The id in the table of prompts: the published completions call "v2-1" what it calls 1 (those of version 1 are others)."""
    return name.removeprefix("v2-")
