"""One question of a benchmark, and what the readers of all benchmarks share.

A reader makes one callable per row; `collect` calls them, checks ids and pictures, and counts what cannot be used.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.data import images
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.data.rows import Turn, transcript
from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import read_json

# What a good answer is.
REFUSE = "refuse"  # it declines, or names the danger instead of helping
COMPLY = "comply"  # it helps: refusing would be over-refusal
SAFELY = "safely"  # it may help or decline, and must do no harm
YES_NO = "yes_no"  # it begins with `gold`, "yes" or "no"
CHOICE = "choice"  # it names the option `gold`
EXPECTATIONS = (REFUSE, COMPLY, SAFELY, YES_NO, CHOICE)

AGAIN = "unpack the benchmark there as it is published"
PICTURES = (".jpg", ".png", ".jpeg", ".mpo", ".webp")  # endings of one picture in different copies; .mpo: a phone's JPEG
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
    history: tuple[Turn, ...] = ()  # the turns before the prompt
    classes: tuple[str, ...] = ()  # the benchmark's own kinds of answers, for a judge to choose from


class Read(NamedTuple):
    """A benchmark as it was found on the disk."""

    cases: tuple[Case, ...]
    drops: Counter  # reason (data.drops.REASONS) -> rows


def collect(makers: Iterable[Callable[[], Case]], *, unique_prompts: bool = False) -> Read:
    """Make every case, decode each distinct picture once, and count the rows that cannot be used.

    Args:
        unique_prompts: drop a question that was asked about the same picture before.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(_attempt, makers))
    cases, drops, ids, prompts = [], Counter(), set(), set()
    for case in results:
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


def sample(cases: Sequence[Case], limit: int, seed: int) -> tuple[Case, ...]:
    """At most `limit` cases in their order, as many of every subset and category as there are; 0: all.

    The first cases of a published file are of one topic, or have one right answer.
    """
    taken, places = Counter(), []
    for number in np.random.default_rng(seed).permutation(len(cases)):
        kind = cases[number].subset, cases[number].category
        places.append((taken[kind], int(number)))
        taken[kind] += 1
    chosen = sorted(places, key=lambda place: place[0])[: limit or None]  # sorting keeps the order of equals, which is random
    return tuple(cases[number] for _, number in sorted(chosen, key=lambda place: place[1]))


def picture(case: Case) -> bytes | None:
    """The encoded picture of a case."""
    return images.read_file(case.image) if isinstance(case.image, Path) else case.image


def pictures_in(folder: Path, *names: str, allowed: Iterable[Path] = ()) -> images.Place:
    """The place of a benchmark's pictures: the first of these folders, whose links may lead anywhere in the benchmark's own, or in
    those that are allowed.

    Raises:
        UserError: there is none of these folders.
    """
    return images.place(first_of(folder, *names), folder, *allowed)


def any_ending(pictures: images.Place, name: str) -> Path:
    """The picture of this name without its ending, which copies differ in.

    Raises:
        Unusable: there is none.
    """
    found = next((ending for ending in PICTURES if (pictures.folder / f"{name}{ending}").exists()), PICTURES[0])
    return images.inside(pictures, f"{name}{found}")


def text(row: Mapping[str, Any], name: str) -> str:
    """A column with text in it.

    Raises:
        Unusable: it is missing, empty or no text.
    """
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise Unusable("missing_field", f"{name} must be text, got {shown(value)}")
    return value.strip()


def identity(row: Mapping[str, Any], name: str) -> str:
    """An id, which some copies write as a number and some as text.

    Raises:
        Unusable: there is none.
    """
    value = row.get(name) if isinstance(row, Mapping) else None
    found = id_text(value)
    if found is None:
        raise Unusable("missing_field", f"{name} must be an id, got {shown(value)}")
    return found


def id_text(value: Any) -> str | None:
    """An id as text; None where it is no id. Tables with a gap make 7.0 of 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return str(value).strip() or None


def first_of(folder: Path, *names: str) -> Path:
    """The first of these files or folders that exists in `folder`; copies differ in how they were unpacked.

    Raises:
        UserError: none does.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has none of {', '.join(names)}: {AGAIN}")


def load_json(path: Path, kind: Any) -> Any:
    """A JSON file whose outermost value is of this kind.

    Raises:
        UserError: it is missing, no JSON, or something else.
    """
    return read_json(path, kind, advice=AGAIN)


def load_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a table by its first line.

    Raises:
        UserError: it cannot be read, or is no table.
    """
    try:
        return list(csv.DictReader(io.StringIO(load_text(path), newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is no table of comma-separated values ({reason(error)}): {AGAIN}") from error


def load_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({reason(error)}): {AGAIN}") from error


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
    return transcript(case.history, case.prompt), b"" if encoded is None else images.digest(encoded)
