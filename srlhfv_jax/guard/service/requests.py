"""From the bytes of a request to what the model is asked, or to a refusal with its HTTP status. Pure; knows no web library."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data import images
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.guard.service.limits import Limits

JSON_TYPES = {dict: "an object", list: "an array", str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class Moderation(NamedTuple):
    """Is this question, or this answer to it, harmful?"""

    prompt: str
    response: str | None  # None: judge the question
    image: bytes | None  # encoded, known to decode


class Generation(NamedTuple):
    """Answer this question under the guard."""

    prompt: str
    image: bytes | None  # encoded, known to decode
    rounds: int  # answers that may be drawn anew after the first


class Refused(Exception):
    """The request gets this status and one line of explanation instead of an answer."""

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None):
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


Answer = Mapping[str, Any] | Refused  # to one request: what JSON can hold, or why there is none
Moderate = Callable[[Sequence[Moderation]], Sequence[Answer]]
Generate = Callable[[Sequence[Generation]], Sequence[Answer]]


def moderation(body: bytes | bytearray, limits: Limits) -> Moderation:
    """Read the body of POST /moderate: {"prompt", and optionally "response", "image" (base64)}.

    Raises:
        Refused: 400 malformed, 413 too large, 422 a field that is missing, unknown or of the wrong type.
    """
    fields = _object(body, ("prompt", "response", "image"))
    return Moderation(
        _text(fields, "prompt", limits),
        _text(fields, "response", limits) if fields.get("response") is not None else None,
        _image(fields, limits),
    )


def generation(body: bytes | bytearray, limits: Limits) -> Generation:
    """Read the body of POST /generate: {"prompt", and optionally "image" (base64), "rounds"}.

    Raises:
        Refused: as `moderation`.
    """
    fields = _object(body, ("prompt", "image", "rounds"))
    rounds = limits.rounds if fields.get("rounds") is None else fields["rounds"]
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= limits.rounds:
        raise Refused(422, f"rounds must be an integer from 0 to {limits.rounds}, got {_shown(rounds)}")
    return Generation(_text(fields, "prompt", limits), _image(fields, limits), rounds)


def _object(body: bytes | bytearray, expected: tuple[str, ...]) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except UnicodeDecodeError as error:
        raise Refused(400, "the body is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # the second: arrays nested thousands deep
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Refused(422, f"the body must be a JSON object with a prompt, got {_shown(fields)}")
    for name in fields:
        if name not in expected:
            raise Refused(422, f"unknown field {_cut(name)}: expected {', '.join(expected)}")
    return fields


def _text(fields: dict[str, Any], name: str, limits: Limits) -> str:
    if fields.get(name) is None:
        raise Refused(422, f"the field {name} is missing")
    text = fields[name]
    if not isinstance(text, str):
        raise Refused(422, f"{name} must be a string, got {_shown(text)}")
    if len(text) > limits.text_chars:
        raise Refused(413, f"{name} has {len(text)} characters, at most {limits.text_chars} are read")
    if not text.strip():
        raise Refused(422, f"{name} has no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise Refused(422, f"{name} is not Unicode text: {error.reason}") from error
    return text


def _image(fields: dict[str, Any], limits: Limits) -> bytes | None:
    """The encoded picture. It is decoded once and thrown away, so that the model's batch cannot fail over it."""
    given = fields.get("image")
    if given is None:
        return None
    if not isinstance(given, str):
        raise Refused(422, f"image must be base64 in a string, got {_shown(given)}")
    if len(given) // 4 * 3 > limits.image_bytes + 3:
        raise Refused(413, f"the image has about {len(given) // 4 * 3} bytes, at most {limits.image_bytes} are read")
    try:
        encoded = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:  # the second: characters outside ASCII
        raise Refused(400, f"the image is not base64: {error}") from error
    if len(encoded) > limits.image_bytes:
        raise Refused(413, f"the image has {len(encoded)} bytes, at most {limits.image_bytes} are read")
    try:
        images.decode(encoded, max_pixels=limits.image_pixels)
    except Unusable as unusable:
        raise Refused(413 if unusable.reason == "image_too_large" else 400, str(unusable)) from unusable
    return encoded


def _shown(value: Any) -> str:
    """Numbers as they are, everything else by its type: a message must stay one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _cut(value)
    return JSON_TYPES[type(value)] if value is not None else "null"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
