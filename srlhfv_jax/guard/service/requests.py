"""From the bytes of a request to what the model is asked, or to a refusal with its HTTP status. Pure; knows no web library."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data import images
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Turn
from srlhfv_jax.guard.service.limits import Limits

JSON_TYPES = {dict: "an object", list: "an array", str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class Moderation(NamedTuple):
    """Is this question, or this answer to it, harmful?"""

    prompt: str
    response: str | None  # None: judge the question
    images: tuple[bytes, ...] = ()  # encoded, known to decode


class Options(NamedTuple):
    """Wishes for one answer. None: as the server does where nobody says."""

    temperature: float | None = None  # 0 = greedy
    top_p: float = 1.0
    length: int | None = None  # most tokens
    stop: tuple[str, ...] = ()  # texts that end the answer
    seed: int | None = None  # None: of each request another
    choice: int = 0  # which of several answers to one request


class Generation(NamedTuple):
    """Answer this question under the guard."""

    prompt: str
    images: tuple[bytes, ...]  # encoded, known to decode
    rounds: int  # answers that may be drawn anew after the first
    options: Options = Options()
    history: tuple[Turn, ...] = ()  # what was said before


class Scored(NamedTuple):
    """Reward and cost of this answer."""

    prompt: str
    response: str
    images: tuple[bytes, ...] = ()  # encoded, known to decode
    history: tuple[Turn, ...] = ()  # what was said before the prompt


class Refused(Exception):
    """The request gets this status and one line of explanation instead of an answer."""

    def __init__(
        self, status: int, message: str, *, retry_after_s: int | None = None, field: str | None = None, code: str | None = None
    ):
        """
        Args:
            field: of the request, that is to blame.
            code: a word for programs, where the status does not say it all.
        """
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.retry_after_s = retry_after_s


BUSY = "busy"  # the code of a refusal that holds for now only

Answer = Mapping[str, Any] | Refused  # to one request: what JSON can hold, or why there is none
Moderate = Callable[[Sequence[Moderation]], Sequence[Answer]]
Generate = Callable[[Sequence[Generation]], Sequence[Answer]]
Score = Callable[[Sequence[Scored]], Sequence[Answer]]


def moderation(body: bytes | bytearray, limits: Limits) -> Moderation:
    """Read the body of POST /moderate: {"prompt", and optionally "response", "image" (base64)}.

    Raises:
        Refused: 400 malformed, 413 too large, 422 a field that is missing, unknown or of the wrong type.
    """
    fields = known_fields(json_object(body), ("prompt", "response", "image"))
    response = _text(fields, "response", limits) if fields.get("response") is not None else None
    return Moderation(_text(fields, "prompt", limits), response, _images(fields, limits))


def generation(body: bytes | bytearray, limits: Limits) -> Generation:
    """Read the body of POST /generate: {"prompt", and optionally "image" (base64), "rounds"}.

    Raises:
        Refused: as `moderation`.
    """
    fields = known_fields(json_object(body), ("prompt", "image", "rounds"))
    rounds = limits.rounds if fields.get("rounds") is None else fields["rounds"]
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= limits.rounds:
        raise Refused(422, f"rounds must be an integer from 0 to {limits.rounds}, got {shown(rounds)}")
    return Generation(_text(fields, "prompt", limits), _images(fields, limits), rounds)


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """
    Raises:
        Refused: 400 not JSON, 422 another value than an object, or a field twice in one.
    """
    try:
        fields = json.loads(body, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise Refused(400, "the body is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # the second: arrays nested thousands deep
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Refused(422, f"the body must be a JSON object, got {shown(fields)}")
    return fields


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object. With a field twice, readers of JSON differ in which of the two they take.

    Raises:
        Refused: 422 a field is there twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = cut(next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))).strip("'")
        raise Refused(422, f"the field {name} is there twice: leave one out", field=name)
    return fields


def known_fields(fields: dict[str, Any], expected: Sequence[str]) -> dict[str, Any]:
    """
    Raises:
        Refused: 422 a field of another name.
    """
    for name in fields:
        if name not in expected:
            raise Refused(422, f"unknown field {cut(name)}: expected {', '.join(expected)}", field=cut(name).strip("'"))
    return fields


def _text(fields: dict[str, Any], name: str, limits: Limits) -> str:
    if fields.get(name) is None:
        raise Refused(422, f"the field {name} is missing", field=name)
    text = written(fields[name], name, limits)
    if not text.strip():
        raise Refused(422, f"{name} has no text", field=name)
    return text


def written(text: Any, name: str, limits: Limits) -> str:
    """
    Raises:
        Refused: 422 no text, 413 a long one.
    """
    if not isinstance(text, str):
        raise Refused(422, f"{name} must be a string, got {shown(text)}", field=name)
    if len(text) > limits.text_chars:
        raise Refused(413, f"{name} has {len(text)} characters, at most {limits.text_chars} are read", field=name)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise Refused(422, f"{name} is not Unicode text: {error.reason}", field=name) from error
    return text


def _images(fields: dict[str, Any], limits: Limits) -> tuple[bytes, ...]:
    given = fields.get("image")
    if given is None:
        return ()
    if not isinstance(given, str):
        raise Refused(422, f"image must be base64 in a string, got {shown(given)}", field="image")
    return (picture(given, "image", limits),)


def picture(given: str, name: str, limits: Limits) -> bytes:
    """The encoded picture. It is decoded once and thrown away, so that the model's batch cannot fail over it.

    Raises:
        Refused: 400 not base64 or not a picture, 413 a large one.
    """
    if len(given) // 4 * 3 > limits.image_bytes + 3:
        size = len(given) // 4 * 3
        raise Refused(413, f"the {name} has about {size} bytes, at most {limits.image_bytes} are read", field=name)
    try:
        encoded = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:  # the second: characters outside ASCII
        raise Refused(400, f"the {name} is not base64: {error}", field=name) from error
    if len(encoded) > limits.image_bytes:
        raise Refused(413, f"the {name} has {len(encoded)} bytes, at most {limits.image_bytes} are read", field=name)
    try:
        images.decode(encoded, max_pixels=limits.image_pixels)
    except Unusable as unusable:
        raise Refused(413 if unusable.reason == "image_too_large" else 400, str(unusable), field=name) from unusable
    return encoded


def shown(value: Any) -> str:
    """Numbers as they are, everything else by its type: a message must stay one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return cut(value)
    return JSON_TYPES[type(value)] if value is not None else "null"


def cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
