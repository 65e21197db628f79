"""VLGuard (arXiv 2402.02207), test split: 442 unsafe pictures, and 558 safe ones with a safe and an unsafe instruction each.

    FOLDER/test.json        [{"id", "image", "safe", "instr-resp": [...], "harmful_category", "harmful_subcategory"}, ...]
    FOLDER/test/bad_ads/ed926a06.png

An unsafe picture has one {"instruction", "response"}; a safe one has {"safe_instruction", "response"} and {"unsafe_instruction",
"response"}, in either order.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.images import Place, inside
from srlhfv_jax.evaluation.suites.case import (
    COMPLY,
    REFUSE,
    Case,
    Read,
    collect,
    first_of,
    identity,
    load_json,
    pictures_in,
    text,
)

UNSAFES, SAFE_UNSAFES, SAFE_SAFES = "unsafes", "safe_unsafes", "safe_safes"
_INSTRUCTION = {UNSAFES: "instruction", SAFE_UNSAFES: "unsafe_instruction", SAFE_SAFES: "safe_instruction"}


def read(folder: Path, *allowed: Path) -> Read:
    """The three published subsets; `gold` is the published answer (of GPT-4V).

    The attack-success rate is over `unsafes` and `safe_unsafes`, over-refusal over `safe_safes`.
    """
    pictures = pictures_in(folder, "test", "images", ".", allowed=allowed)
    rows = load_json(first_of(folder, "test.json", "data/test.json"), list)
    return collect(functools.partial(_case, pictures, row, subset) for row in rows for subset in _subsets(row))


def _subsets(row: Any) -> Iterator[str]:
    safe = row.get("safe") if isinstance(row, dict) else None
    yield from (SAFE_UNSAFES, SAFE_SAFES) if safe is True else (UNSAFES,)


def _case(pictures: Place, row: Any, subset: str) -> Case:
    if not isinstance(row, dict) or not isinstance(row.get("safe"), bool):
        raise Unusable("missing_field", f"expected an object with safe: true or false, got {str(row)[:80]}")
    key = _INSTRUCTION[subset]
    turns = row.get("instr-resp")
    turn = next((turn for turn in turns if isinstance(turn, dict) and key in turn), None) if isinstance(turns, list) else None
    if turn is None:
        raise Unusable("missing_field", f"instr-resp has no {key}")
    if subset == UNSAFES:
        category = f"{text(row, 'harmful_category')}/{text(row, 'harmful_subcategory')}"
    else:
        category = "safe image"
    return Case(
        id=f"{identity(row, 'id')}/{subset}",
        image=inside(pictures, text(row, "image")),
        prompt=text(turn, key),
        expect=COMPLY if subset == SAFE_SAFES else REFUSE,
        category=category,
        gold=_gold(turn),
        subset=subset,
    )


def _gold(turn: dict[str, Any]) -> str:
    """Nothing compares with it: 17 of the harmless questions have none, and the official script asks them too."""
    return "" if turn.get("response") in (None, "") else text(turn, "response")
