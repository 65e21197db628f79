"""Every layout, in the order in which they are tried; the one of a file is told by its columns alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.data.layouts import (
    answers,
    beavertails,
    beavertails_v,
    beavertails_v_qa,
    messages,
    openai_moderation,
    pku_saferlhf,
    plain,
    preference,
)
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row, check, listed
from srlhfv_jax.errors import UserError

_FILES = (
    beavertails_v,
    beavertails_v_qa,
    pku_saferlhf,
    beavertails,
    openai_moderation,
    preference,
    messages,
    answers,
    plain,  # last: it needs a question alone
)
LAYOUTS: tuple[Layout, ...] = tuple(layout for file in _FILES for layout in file.LAYOUTS)

# Columns of the published sets that are left in `meta` on purpose.
_KNOWN = re.compile("category|image_severity|response_[012]_(from|helpful_rate|source|sha256|harm_category)")
_TELLING = frozenset(
    """image images img imgs picture pictures photo photos jpg jpeg png pixel pixels screenshot file filename filepath path media video
    videos response responses answer answers output outputs completion completions chosen rejected accepted reply target messages
    conversation conversations solution generation assistant label labels safe unsafe safer safety harm harmful harmless severity
    preference preferred better worse score scores rating ratings rate reward rank toxicity toxic flagged refusal violation category
    categories""".split()
)
_PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)|data:image", re.IGNORECASE)
MAP = (
    "say which column is which with --config.data.columns.question=COLUMN, or leave one out with --config.data.columns.ignore=COLUMN "
    "(commands without a config: --columns=question=COLUMN,ignore=COLUMN)"
)


def detect(columns: Iterable[str]) -> Layout:
    """The layout that has these columns.

    Raises:
        UserError: none has, a column belongs to a layout of which others are missing, or two layouts are there at once.
    """
    names = set(columns)
    layout = next((layout for layout in LAYOUTS if not layout.missing(names)), None)
    known = set() if layout is None else layout.reads | layout.leaves
    for other in LAYOUTS:
        telling = sorted(other.marks & names - known)
        if telling and other is not layout:
            missing = other.missing(names)
            what = f"and lacks {', '.join(missing)}" if missing else f"and is one of {layout.name} too"
            raise UserError(
                f"the column {telling[0]} is one of the layout {other.name}, {what} (columns: {listed(sorted(names))}): {MAP}"
            )
    if layout is None:
        raise UserError(
            f"no known layout has the columns {listed(sorted(names)) or '(none)'}: expected question or prompt, with an answer or two "
            f"(docs/data.md has the list); {MAP}"
        )
    if layout.name == "plain" and "chosen" in names and not names & {"response", "responses"}:
        raise UserError(
            f"the column chosen needs rejected, or responses of which it is one (columns: {listed(sorted(names))}): {MAP}"
        )
    return layout


def named(name: str) -> Layout:
    """The layout of this name."""
    return next(layout for layout in LAYOUTS if layout.name == name)


def read(layout: Layout, row: Row, reading: Reading) -> Example | Drop:
    """Read one raw row; one that cannot be used comes back as a `Drop`."""
    try:
        example = layout.read(row, reading)
        check(example)
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)
    return example


def unused(layout: Layout, columns: Iterable[str]) -> tuple[str, ...]:
    """Columns that the reader of this layout leaves in `meta`, or aside."""
    return tuple(name for name in columns if name not in layout.reads)


def unread(layout: Layout, columns: Iterable[str], some: Sequence[Row]) -> tuple[str, ...]:
    """Columns of `unused` that look like a picture, an answer or a label, by their name or by the pictures in these rows."""
    return tuple(
        name
        for name in unused(layout, columns)
        if name not in layout.leaves
        and not _KNOWN.fullmatch(name)
        and (_TELLING & set(re.split("[^a-z]+", name.lower())) or any(_is_picture(row.get(name)) for row in some))
    )


def _is_picture(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    return isinstance(value, bytes) or (isinstance(value, str) and _PICTURE_NAME.search(value[-9:] + value[:11]) is not None)
