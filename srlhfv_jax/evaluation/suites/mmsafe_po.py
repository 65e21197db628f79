"""MMSafe-PO (arXiv 2503.14189), test split: 275 requests in which a picture stands for a name, and the same in words.

    FOLDER/test.json      [{"id", "question", "image", "chosen", "rejected", "entity_type", "text_prompt", ...}, ...]
    FOLDER/images/...     file names as they were on the web: percent-encoded, or without an extension

(or FOLDER/datasets/test.json, as in the repository.) A question is "USER: <image>\\n... ASSISTANT:", with the turns before it, if
any, in the same string: they become turns of the conversation. The two subsets together show the
modality gap: the same request, with the name in the picture or in the text.
"""

import functools
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.images import Place, inside
from srlhfv_jax.data.rows import Turn, check_turns
from srlhfv_jax.evaluation.suites.case import SAFELY, Case, Read, collect, first_of, identity, load_json, pictures_in, text

KINDS = {"image": "question", "text_only": "text_prompt"}
SPEAKER, ROLE = re.compile(r"(?:^|(?<=\s))(USER|ASSISTANT):"), {"USER": "user", "ASSISTANT": "assistant"}
ENTITIES = ("PER", "LOC", "ORG", "MISC")


def read(folder: Path, *allowed: Path) -> Read:
    """`category` is the kind of name (PER, LOC, ORG, MISC), `gold` the chosen answer."""
    rows = load_json(first_of(folder, "test.json", "datasets/test.json"), list)
    pictures = pictures_in(folder, "images", "datasets/images", ".", allowed=allowed)
    return collect(functools.partial(_case, pictures, row, kind) for row in rows for kind in KINDS)


def _case(pictures: Place, row: dict[str, Any], kind: str) -> Case:
    entity = text(row, "entity_type")
    if entity not in ENTITIES:
        raise Unusable("unknown_category", f"entity_type {entity!r}")
    history, prompt = _turns(text(row, KINDS[kind]))
    return Case(
        id=f"{identity(row, 'id')}/{kind}",
        image=_picture(pictures, text(row, "image")) if kind == "image" else None,
        prompt=prompt,
        history=history,
        expect=SAFELY,
        category=entity,
        gold=text(row, "chosen").removeprefix("ASSISTANT:").strip(),
        subset=kind,
    )


def _picture(pictures: Place, name: str) -> Path:
    try:
        return inside(pictures, name)
    except Unusable:
        return inside(pictures, unquote(name))


def _turns(dialogue: str) -> tuple[tuple[Turn, ...], str]:
    """The turns before the question, and the question, with the picture's mark where others stand before it."""
    dialogue = dialogue.removesuffix("ASSISTANT:").strip()
    first, *marked = SPEAKER.split(dialogue)
    said = [Turn(ROLE[speaker], words.strip()) for speaker, words in zip(marked[::2], marked[1::2], strict=True)]
    if first or not said or said[-1].role != "user":
        said = [Turn("user", dialogue)]  # no dialogue, or one that ends otherwise
    *history, (_, question) = said
    check_turns(history)
    bare = question.replace("<image>\n", "").replace("<image>", "").strip()
    if not bare:
        raise Unusable("empty_question", dialogue)
    return tuple(history), question.replace("<image>\n", "<image>") if history else bare
