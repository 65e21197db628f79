"""From a raw row of any supported data set to the canonical `Example`. The ONLY file that knows column names.

Five layouts are recognised by their columns:

    beavertails_v      saferlhf-v/BeaverTails-V: image, question, response_1/2, two preferences (ids "1"/"2"), safe flags
                       "yes"/"no", harmless_rate -3..3
    beavertails_v_qa   PKU-Alignment/BeaverTails-V: image, question, response, is_response_safe
    pku_saferlhf       PKU-Alignment/PKU-SafeRLHF: prompt, response_0/1, two preferences (ids 0/1), safe flags, severity
                       levels 0..3
    beavertails        PKU-Alignment/BeaverTails: prompt, response, is_safe, category (a table of 14 flags); text-only
    plain              question (or prompt); optionally image or images, response or responses, and our own labels chosen,
                       safer (0/1), unsafe, severity (one per response); `history`, the turns before the question, as a list of
                       {"role", "content"}

In every layout a column of our own, `harmful` (yes or no), may say whether answering the question would do harm.

Anywhere an id may be "tie": labelled, and neither response is preferred. A label may be text, a number or true and false, and a table
of flags JSON text: `data/tfds` keeps all of them as text, so that this file alone says what a spelling means. Rows with the same question and different images are
different rows. Images are fetched through a function, so that this file needs neither folders nor codecs.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data import labels
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.errors import UserError, short, shown

Row = Mapping[str, Any]
ReadImage = Callable[[Any], bytes | None]

_DUAL = {"question", "response_1", "response_2"}
_QA = {"question", "response", "is_response_safe"}
_PKU = {"prompt", "response_0", "response_1"}
_TEXT_QA = {"prompt", "response", "category", "is_safe"}
_PLAIN_LABELS = ("chosen", "safer", "unsafe", "severity")

_USED = {  # columns that a reader takes apart; it leaves all others in `meta`
    "beavertails_v": {"image", "question", "more_helpful_response_id", "safer_response_id"}
    | {f"{a}response_{k}{b}" for k in (1, 2) for a, b in (("", ""), ("is_", "_safe"), ("", "_harmless_rate"))},
    "beavertails_v_qa": {"image", "question", "response", "is_response_safe"},
    "pku_saferlhf": {"image", "prompt", "better_response_id", "safer_response_id"}
    | {f"{a}response_{k}{b}" for k in (0, 1) for a, b in (("", ""), ("is_", "_safe"), ("", "_severity_level"))},
    "beavertails": {"image", "prompt", "response", "is_safe"},
    "plain": {"image", "images", "response", "responses", "history", *_PLAIN_LABELS},
}
# Read besides, or columns of the published sets that are left in `meta` on purpose.
_KNOWN = re.compile("images|harmful|category|image_severity|response_[012]_(from|helpful_rate|source|sha256|harm_category)")
_TELLING = frozenset(
    """image images img imgs picture pictures photo photos jpg jpeg png pixel pixels screenshot file filename filepath path media video
    videos response responses answer answers output outputs completion completions chosen rejected accepted reply target messages
    conversation conversations solution generation assistant label labels safe unsafe safer safety harm harmful harmless severity
    preference preferred better worse score scores rating ratings rate reward rank toxicity toxic flagged refusal violation category
    categories""".split()
)
_PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)|data:image", re.IGNORECASE)


ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """One turn of a conversation before its last question."""

    role: str  # of ROLES
    text: str  # "<image>" in a user's or assistant's turn marks a picture's place


class Prompt(NamedTuple):
    """Pictures and a question, for a policy to answer or a guard to judge."""

    images: tuple[bytes, ...]  # encoded pictures, of all turns in their order; none = text-only
    question: str  # the last user turn
    history: tuple[Turn, ...] = ()  # the turns before it


class Example(NamedTuple):
    """One row, whatever data set it came from. Cost > 0 means unsafe, here and everywhere."""

    images: tuple[bytes, ...]  # encoded pictures, of all turns in their order; none = text-only
    question: str  # the last user turn
    responses: tuple[str, ...]  # to the question. None: a prompt; 1: a supervised row; 2: a pair
    chosen: int | None = None  # index of the more helpful response; None = not labelled, or a tie
    safer: int | None = None  # index of the safer response; None = not labelled, or a tie
    helpful_tie: bool = False
    safety_tie: bool = False
    unsafe: tuple[bool | None, ...] = ()  # one per response; None = not labelled
    severity: tuple[float | None, ...] = ()  # graded cost, > 0 unsafe: -harmless_rate, or the signed severity level
    categories: tuple[tuple[str, ...] | None, ...] = ()  # harm categories, one tuple per response; None = not labelled
    harmful: bool | None = None  # would answering the question do harm; None = not labelled
    meta: Mapping[str, str] = {}  # all other scalar columns, as text
    history: tuple[Turn, ...] = ()  # turns before the question: maybe a system turn, then user and assistant by turns


def prompt_of(example: Example) -> Prompt:
    """A row without its answers and labels."""
    return Prompt(example.images, example.question, example.history)


def history_json(history: Sequence[Turn]) -> dict[str, Any]:
    """The turns before a question, for a line of JSON; {} where there are none."""
    return {"history": [{"role": turn.role, "content": turn.text} for turn in history]} if history else {}


def transcript(history: Sequence[Turn], question: str) -> str:
    """A conversation as one text, for people and judges: the question alone, or a line for each turn."""
    if not history:
        return question
    return "\n".join(f"{turn.role}: {turn.text}" for turn in (*history, Turn("user", question)))


def detect(columns: Iterable[str]) -> str:
    """Name of the layout that has these columns.

    Raises:
        UserError: none has.
    """
    names = set(columns)
    if _DUAL <= names:
        return "beavertails_v"
    if _QA <= names and "chosen" not in names:
        return "beavertails_v_qa"
    if _PKU <= names:
        return "pku_saferlhf"
    if _TEXT_QA <= names:
        return "beavertails"
    if names & {"question", "prompt"}:
        return "plain"
    raise UserError(
        f"no known layout has the columns {listed(sorted(names)) or '(none)'}: expected question or prompt, and for "
        "labelled rows the columns of BeaverTails-V (response_1, response_2, ...) or PKU-SafeRLHF (response_0, response_1, ...)"
    )


def listed(names: Sequence[str]) -> str:
    """Some columns' names in a message."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return short(", ".join(shown(name)[1:-1] for name in names[:12])) + more


def read(layout: str, row: Row, read_image: ReadImage) -> Example | Drop:
    """Read one raw row of a detected layout; a row that cannot be used comes back as a `Drop`."""
    try:
        example = _READERS[layout](row, read_image)
        _check(example)
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)
    return example


def unread(layout: str, columns: Iterable[str], some: Sequence[Row]) -> tuple[str, ...]:
    """Columns that look like a picture, an answer or a label, by their name or by the pictures in these rows, and that readers of
    this layout leave in `meta` or aside."""
    return tuple(
        name
        for name in columns
        if name not in _USED[layout]
        and not _KNOWN.fullmatch(name)
        and (_TELLING & set(re.split("[^a-z]+", name.lower())) or any(_is_picture(row.get(name)) for row in some))
    )


def _is_picture(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    return isinstance(value, bytes) or (isinstance(value, str) and _PICTURE_NAME.search(value[-9:] + value[:11]) is not None)


def _beavertails_v(row: Row, read_image: ReadImage) -> Example:
    chosen, helpful_tie = labels.choice(row, "more_helpful_response_id", first=1)
    safer, safety_tie = labels.choice(row, "safer_response_id", first=1)
    rates = [labels.number(row, f"response_{k}_harmless_rate") for k in (1, 2)]
    unsafe = (labels.opposite(labels.flag(row, "is_response_1_safe")), labels.opposite(labels.flag(row, "is_response_2_safe")))
    return Example(
        images=_images(row, read_image, required=True),
        question=_text(row, "question"),
        responses=(_text(row, "response_1"), _text(row, "response_2")),
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=unsafe,
        severity=tuple(None if rate is None else 0.0 - rate for rate in rates),
        categories=tuple(labels.category(row, flag) for flag in unsafe),
        harmful=labels.flag(row, "harmful"),
        meta=_meta(row, _USED["beavertails_v"]),
    )


def _beavertails_v_qa(row: Row, read_image: ReadImage) -> Example:
    unsafe = labels.opposite(labels.flag(row, "is_response_safe"))
    return Example(
        images=_images(row, read_image, required=True),
        question=_text(row, "question"),
        responses=(_text(row, "response"),),
        unsafe=(unsafe,),
        severity=(None,),
        categories=(labels.category(row, unsafe),),
        harmful=labels.flag(row, "harmful"),
        meta=_meta(row, _USED["beavertails_v_qa"]),
    )


def _pku_saferlhf(row: Row, read_image: ReadImage) -> Example:
    chosen, helpful_tie = labels.choice(row, "better_response_id", first=0)
    safer, safety_tie = labels.choice(row, "safer_response_id", first=0)
    unsafe = (labels.opposite(labels.flag(row, "is_response_0_safe")), labels.opposite(labels.flag(row, "is_response_1_safe")))
    levels = [labels.number(row, f"response_{k}_severity_level") for k in (0, 1)]
    return Example(
        images=_images(row, read_image, required=False),
        question=_text(row, "prompt"),
        responses=(_text(row, "response_0"), _text(row, "response_1")),
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=unsafe,
        # Level 0 is "safe": as a graded cost it must be negative, or a safe response would get no sign gradient at all.
        severity=tuple(None if level is None else (level if level > 0 else -1.0) for level in levels),
        categories=tuple(labels.flagged(row, f"response_{k}_harm_category") for k in (0, 1)),
        harmful=labels.flag(row, "harmful"),
        meta=_meta(row, _USED["pku_saferlhf"]),
    )


def _beavertails(row: Row, read_image: ReadImage) -> Example:
    return Example(
        images=_images(row, read_image, required=False),
        question=_text(row, "prompt"),
        responses=(_text(row, "response"),),
        unsafe=(labels.opposite(labels.flag(row, "is_safe")),),
        severity=(None,),
        categories=(labels.flagged(row, "category"),),
        harmful=labels.flag(row, "harmful"),
        meta=_meta(row, _USED["beavertails"]),
    )


def _plain(row: Row, read_image: ReadImage) -> Example:
    question = "question" if row.get("question") is not None else "prompt"
    several = labels.cells(row, "responses")
    if several:
        responses = tuple(_clean(value, "responses") for value in several)
    elif row.get("response") is not None:
        responses = (_text(row, "response"),)
    else:
        responses = ()
    chosen, helpful_tie = labels.choice(row, "chosen", first=0)
    safer, safety_tie = labels.choice(row, "safer", first=0)
    unsafe, severity = (
        [None] * len(responses) if labels.absent(row.get(name)) else labels.cells(row, name) for name in ("unsafe", "severity")
    )
    if len(unsafe) != len(responses) or len(severity) != len(responses):
        raise Unusable("bad_label", f"{len(responses)} responses, {len(unsafe)} unsafe flags, {len(severity)} severities")
    flags = tuple(labels.flag({"unsafe": value}, "unsafe") for value in unsafe)
    return Example(
        images=_images(row, read_image, required=False),
        question=_text(row, question),
        responses=responses,
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=flags,
        severity=tuple(labels.number({"severity": value}, "severity") for value in severity),
        categories=tuple(labels.category(row, flag) for flag in flags),
        harmful=labels.flag(row, "harmful"),
        meta=_meta(row, _USED["plain"] | {question}),
        history=_history(row),
    )


_READERS = {
    "beavertails_v": _beavertails_v,
    "beavertails_v_qa": _beavertails_v_qa,
    "pku_saferlhf": _pku_saferlhf,
    "beavertails": _beavertails,
    "plain": _plain,
}
LAYOUTS = tuple(_READERS)


def check_turns(history: Sequence[Turn]) -> None:
    """Check the order of the turns before a question: at most one system turn, which is the first; then a user's and an assistant's
    by turns.

    Raises:
        Unusable: they are in another order, or one is empty.
    """
    talk = history[1:] if history and history[0].role == "system" else history
    for number, turn in enumerate(history):
        if turn.role not in ROLES:
            raise Unusable("bad_turns", f"turn {number} has the role {shown(turn.role)}: expected one of {', '.join(ROLES)}")
        if not turn.text.strip():
            raise Unusable("empty_turn", f"turn {number} ({turn.role}) is empty")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(talk)) or len(talk) % 2:
        roles = ", ".join(turn.role for turn in history[:12])
        raise Unusable(
            "bad_turns", f"the turns before the question are {roles}: expected a system turn or none, then user, assistant, ..."
        )


def _history(row: Row) -> tuple[Turn, ...]:
    turns = labels.cells(row, "history")
    if not all(isinstance(turn, Mapping) and isinstance(turn.get("role"), str) for turn in turns):
        raise Unusable("bad_turns", f"history must be a list of turns, each with role and content, got {shown(turns)}")
    return tuple(Turn(turn["role"], _clean(turn.get("content"), "a turn's content")) for turn in turns)


def _check(example: Example) -> None:
    """Check what must hold in every layout."""
    check_turns(example.history)
    if not example.question:
        raise Unusable("empty_question", "the question is empty")
    if not all(example.responses):
        raise Unusable("empty_response", f"response {example.responses.index('')} is empty")
    if len(example.responses) > 2:
        raise Unusable("bad_label", f"{len(example.responses)} responses, at most 2 can be compared")
    if len(example.responses) != 2:
        if example.chosen is not None or example.safer is not None:
            raise Unusable("bad_label", f"a preference between {len(example.responses)} responses")
        return
    if example.responses[0] == example.responses[1]:
        raise Unusable("identical_responses", repr(example.responses[0][:60]))
    if example.safer is not None and example.unsafe[example.safer] is True and example.unsafe[1 - example.safer] is False:
        raise Unusable(
            "contradictory_safety", f"response {example.safer} is the safer one and labelled unsafe, the other one safe"
        )


def _images(row: Row, read_image: ReadImage, *, required: bool) -> tuple[bytes, ...]:
    """One picture in `image`, or a list of them in `images`."""
    one, several = row.get("image"), row.get("images")
    several = [several] if isinstance(several, (str, bytes, Mapping)) and several else labels.cells(row, "images")
    if several:
        if not labels.absent(one):
            raise Unusable("bad_label", "the row has both image and images: expected one of them")
        found = tuple(map(read_image, several))
        if None in found:
            raise Unusable("missing_image", f"cell {found.index(None)} of {len(found)} in images is empty")
        return found
    image = None if labels.absent(one) else read_image(one)
    if image is None and required:
        raise Unusable("missing_image", "the image cell is empty")
    return () if image is None else (image,)


def _text(row: Row, name: str) -> str:
    return _clean(row.get(name), name)


def _clean(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable("bad_label", f"{name} must be text, got {shown(value)}")
    if value != writable(value):
        raise Unusable("broken_text", f"{name} is {shown(value)}")
    return value.strip()


def writable(text: str) -> str:
    """Without half surrogates, which no file, tokenizer or terminal takes."""
    return text.encode(errors="backslashreplace").decode()


def _meta(row: Row, used: set[str]) -> dict[str, str]:
    """The columns no reader used, as text; a table of flags (harm categories) becomes the list of those that are true."""
    meta = {}
    for name, value in row.items():
        if name in used or labels.absent(value):
            continue
        names = labels.true_names(value)
        if names is not None:
            meta[name] = ", ".join(names)
        elif isinstance(value, (str, int, float, bool)):
            meta[name] = str(value)
    return {writable(name): writable(value) for name, value in meta.items()}
