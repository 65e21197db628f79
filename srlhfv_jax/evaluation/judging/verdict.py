"""A request to a judge, and its verdict. Every judge is a callable `Judge`; pairs are put together in `pairwise`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from srlhfv_jax.data import images
from srlhfv_jax.errors import shown

LARGEST = 1e6  # of a person's own scale; keeps infinities and 400-digit numbers out of means

Item = TypeVar("Item")
Result = TypeVar("Result")


class JudgeRequest(NamedTuple):
    """One answer to be judged, or two in the order in which they are shown."""

    name: str  # "BENCHMARK/CASE": for people and for recorded judgements; no judge reads it
    image: bytes | None
    question: str
    answers: tuple[str, ...]
    criterion: str = ""  # what counts as safe here
    classes: tuple[str, ...] = ()  # the benchmark's own kinds of answers, of which the judge names one; () = none


class Opinion(NamedTuple):
    """A judge's opinion of one answer; None = it does not say."""

    helpful: float | None = None  # 0..3, safety left aside
    cost: float | None = None  # -harmless_rate, -3..3: > 0 means unsafe
    refusal: bool | None = None
    label: int | None = None  # position in `JudgeRequest.classes`


class JudgeVerdict(NamedTuple):
    """An opinion of each answer, and of two answers which is preferred."""

    opinions: tuple[Opinion, ...]
    more_helpful: int | None = None  # position in `answers`; None = a tie, or one answer only
    safer: int | None = None


Judge = Callable[[JudgeRequest], JudgeVerdict | None]  # None: not judged; whoever asks counts it


def content_key(request: JudgeRequest, *judge: str) -> str:
    """Name a request to a judge by content: equal questions are asked once."""
    picture = "" if request.image is None else images.digest(request.image).hex()
    content = [*judge, picture, request.question, request.criterion, *request.answers]
    content += [list(request.classes)] if request.classes else []
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()


def judge_all(
    judge: Callable[[Item], Result], items: Sequence[Item], *, workers: int = 1, progress: Callable[[int], None] | None = None
) -> list[Result]:
    """Run `judge` on every item, several at a time; results keep the items' order. An exception of one ends the calls that wait."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(judge, item) for item in items]
        results = []
        try:
            for future in waiting:
                results.append(future.result())
                if progress:
                    progress(len(results))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def to_json(verdict: JudgeVerdict) -> dict[str, Any]:
    """Plain values for a line of JSON."""
    return {
        "opinions": [opinion._asdict() for opinion in verdict.opinions],
        "more_helpful": verdict.more_helpful,
        "safer": verdict.safer,
    }


def from_json(row: Mapping[str, Any]) -> JudgeVerdict:
    """The verdict that `to_json` wrote, or a person in the same form; missing values are None.

    Raises:
        ValueError: it is not in that form.
    """
    opinions = row.get("opinions")
    if not isinstance(opinions, list) or len(opinions) not in (1, 2):
        raise ValueError(f"opinions must be a list of one or two, got {shown(opinions)}")
    return JudgeVerdict(
        tuple(map(_opinion, opinions)), *(_position(row, name, len(opinions)) for name in ("more_helpful", "safer"))
    )


def _opinion(value: Any) -> Opinion:
    if not isinstance(value, dict) or not value.keys() <= set(Opinion._fields):
        raise ValueError(f"an opinion has the keys {', '.join(Opinion._fields)}, got {shown(value)}")
    numbers = [value.get("helpful"), value.get("cost")]
    for number in numbers:
        if number is not None and (type(number) not in (int, float) or not abs(number) < LARGEST):
            raise ValueError(f"helpful and cost are numbers, got {shown(number)}")
    refusal = value.get("refusal")
    if refusal is not None and not isinstance(refusal, bool):
        raise ValueError(f"refusal is true or false, got {shown(refusal)}")
    label = value.get("label")
    if label is not None and (type(label) is not int or label < 0):
        raise ValueError(f"label is the number of a class, 0 or more, got {shown(label)}")
    return Opinion(*(None if number is None else float(number) for number in numbers), refusal, label)


def _position(row: Mapping[str, Any], name: str, answers: int) -> int | None:
    value = row.get(name)
    if value is not None and (type(value) is not int or value not in range(answers)):
        raise ValueError(f"{name} is the position of an answer, 0 or 1, got {shown(value)}")
    return value
