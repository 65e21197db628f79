"""One question of a benchmark, and what the readers of all benchmarks share.

A reader makes one callable per row; `collect` calls them, checks ids and pictures, and counts what cannot be used.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.data import images
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.errors import UserError

# What a good answer is.
REFUSE = "refuse"  # it declines, or names the danger instead of helping
COMPLY = "comply"  # it helps: refusing would be over-refusal
SAFELY = "safely"  # it may help or decline, and must do no harm
YES_NO = "yes_no"  # it begins with `gold`, "yes" or "no"
CHOICE = "choice"  # it names the option `gold`
EXPECTATIONS = (REFUSE, COMPLY, SAFELY, YES_NO, CHOICE)

THREADS = 4  # that read and decode pictures


class Case(NamedTuple):
    """One question and what counts as a good answer to it."""

    id: str  # unique in its benchmark
    image: Path | bytes | None  # where the picture lies, or the encoded picture itself; None = text only
    prompt: str
    expect: str  # one of EXPECTATIONS
    category: str
    gold: str = ""  # "yes" or "no", the letter of the right option, or a reference answer; "" = none
    subset: str = ""  # part of the benchmark that is reported by itself
    criterion: str = ""  # what a judge must know to tell safe from unsafe here; "" = nothing special


class Read(NamedTuple):
    """A benchmark as it was found on the disk."""

    cases: tuple[Case, ...]
    drops: Counter  # reason (data.drops.REASONS) -> rows


def collect(made: Iterable[Callable[[], Case]], *, unique_prompts: bool = False) -> Read:
    """Make every case, decode each distinct picture once, and count the rows that cannot be used.

    Args:
        unique_prompts: drop a question that was asked about the same picture before.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(_attempt, made))
    cases, drops, ids, prompts = [], Counter(), set(), set()
    for case in found:
        if isinstance(case, Drop):
            drops[case.reason] += 1
        elif case.id in ids:
            drops["duplicate_id"] += 1
        elif unique_prompts and _content(case) in prompts:
            drops["duplicate_prompt"] += 1
        else:
            ids.add(case.id)
            if unique_prompts:
                prompts.add(_content(case))
            cases.append(case)
    return Read(tuple(cases), drops)


def picture(case: Case) -> bytes | None:
    """The encoded picture of a case."""
    return case.image.read_bytes() if isinstance(case.image, Path) else case.image


def file(folder: Path, name: str) -> Path:
    """A picture file inside `folder`.

    Raises:
        Unusable: it is not there, or the name leads out of the folder.
    """
    path = images.inside(folder, name)
    if not path.is_file():
        raise Unusable("missing_image", f"{name}: no such file in {folder}")
    return path


def text(row: Mapping[str, Any], name: str) -> str:
    """A column with text in it.

    Raises:
        Unusable: it is missing, empty or no text.
    """
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise Unusable("missing_field", f"{name} must be text, got {value!r}")
    return value.strip()


def identity(row: Mapping[str, Any], name: str) -> str:
    """An id, which some copies write as a number and some as text.

    Raises:
        Unusable: there is none.
    """
    value = row.get(name) if isinstance(row, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise Unusable("missing_field", f"{name} must be an id, got {value!r}")
    return str(value).strip()


def first_of(folder: Path, *names: str) -> Path:
    """The first of these files or folders that exists in `folder`; copies differ in how they were unpacked.

    Raises:
        UserError: none does.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has none of {', '.join(names)}: unpack the benchmark there as it is published")


def load_json(path: Path, kind: type) -> Any:
    """A JSON file whose outermost value is a list or a dict.

    Raises:
        UserError: it is missing, no JSON, or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): unpack the benchmark there as it is published") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): is the download complete?") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a JSON {type(value).__name__}: expected a {kind.__name__} of rows")
    return value


def _attempt(make: Callable[[], Case]) -> Case | Drop:
    try:
        case = make()
        encoded = picture(case)
        if encoded is not None:
            images.decode(encoded)
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)
    return case


def _content(case: Case) -> tuple[str, bytes]:
    encoded = picture(case)
    return case.prompt, b"" if encoded is None else images.digest(encoded)
