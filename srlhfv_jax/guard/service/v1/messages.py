"""Messages of a chat -> the turns of a conversation and its pictures. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data.chat import MARK
from srlhfv_jax.data.rows import Turn
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Refused, cut, picture, shown, written

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # of the API -> of a turn
EMPTY = (
    "refusal",
    "annotations",
    "audio",
    "function_call",
    "tool_calls",
    "tool_call_id",
    "name",
)  # fields that must hold nothing
TAKEN = ("role", "content", "type")  # the last: some clients say that of messages too
DETAILS = ("auto", "low", "high", None)  # of a picture; each is read at the size that the model has for it


class Conversation(NamedTuple):
    """Turns, the last one included. "<image>" stands in a text where a picture belongs."""

    turns: tuple[Turn, ...]
    images: tuple[bytes, ...]  # encoded, known to decode


def read(messages: Sequence[Any], limits: Limits) -> Conversation:
    """
    Raises:
        Refused: 422 a message that is none of the API's, has no text, or is out of order; 413 too many, or a large picture.
    """
    if not messages:
        raise Refused(422, "messages must hold at least one message", field="messages")
    if len(messages) > limits.messages:
        raise Refused(413, f"there are {len(messages)} messages, at most {limits.messages} are read", field="messages")
    turns, images = [], []
    for place, message in enumerate(messages):
        name = f"messages.{place}"
        turn, pictures = _turn(message, name, limits)
        _check_order(turns, turn, name)
        turns.append(turn)
        images += pictures
    if len(images) > limits.pictures:
        raise Refused(413, f"there are {len(images)} pictures, at most {limits.pictures} are read", field="messages")
    if sum(len(turn.text) for turn in turns) > limits.text_chars:
        raise Refused(413, f"all messages together have more than {limits.text_chars} characters", field="messages")
    return Conversation(tuple(turns), tuple(images))


def content(given: Any, name: str, limits: Limits, *, empty: bool = False) -> tuple[str, list[bytes]]:
    """A text with a mark for each picture, and the pictures.

    Args:
        empty: it may have no text: a model that ends at once says nothing, and clients send that back.

    Raises:
        Refused: as `read`.
    """
    if not isinstance(given, (str, list)):
        raise Refused(422, f"{name} must be a string or a list of parts, got {shown(given)}", field=name)
    texts, images = [], []
    for place, part in enumerate([given] if isinstance(given, str) else given):
        text, image = (written(part, name, limits), None) if part is given else _part(part, f"{name}.{place}", limits)
        texts.append(text)
        images += [] if image is None else [image]
        if len(images) > limits.pictures:
            raise Refused(413, f"{name} has more than {limits.pictures} pictures", field=name)
    if not empty and not "".join(texts).replace(MARK, "").strip():
        raise Refused(422, f"{name} has no text", field=name, code="empty_content")
    return "".join(texts), images


def _turn(message: Any, name: str, limits: Limits) -> tuple[Turn, list[bytes]]:
    if not isinstance(message, dict):
        raise Refused(422, f"{name} must be an object with role and content, got {shown(message)}", field=name)
    for key, value in message.items():
        if key in EMPTY and value not in (None, [], ""):
            raise Refused(
                422, f"{name}.{key} is not supported: leave it out", field=f"{name}.{key}", code="unsupported_parameter"
            )
        if key not in EMPTY and key not in TAKEN:
            raise Refused(422, f"{name} has an unknown field: expected role and content", field=name, code="unknown_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        said = repr(role[:20]) if isinstance(role, str) else shown(role)
        raise Refused(422, f"{name}.role must be one of {', '.join(ROLES)}, got {said}", field=f"{name}.role")
    if "content" not in message:
        raise Refused(422, f"the field {name}.content is missing", field=f"{name}.content", code="missing_required_parameter")
    text, images = content(message["content"], f"{name}.content", limits, empty=role == "assistant")
    if images and ROLES[role] != "user":
        raise Refused(422, f"{name}: pictures belong to messages of the user", field=name)
    return Turn(ROLES[role], text), images


def _part(part: Any, name: str, limits: Limits) -> tuple[str, bytes | None]:
    """(text, None) of a part with text; (mark, picture) of one with a picture."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        _known(part, ("type", "text"), name)
        return written(part.get("text"), f"{name}.text", limits), None
    if kind != "image_url":
        said = shown(part) if not isinstance(part, dict) else repr(str(kind)[:20])
        raise Refused(422, f"{name} must be a part of type text or image_url, got {said}", field=name)
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else None
    if not isinstance(url, str):
        raise Refused(
            422, f'{name}.image_url must be an object {{"url": a data URL}}, got {shown(given)}', field=f"{name}.image_url"
        )
    _known(part, ("type", "image_url"), name)
    _known(given, ("url", "detail"), f"{name}.image_url")
    detail = given.get("detail")
    if detail not in DETAILS:
        got = cut(detail) if isinstance(detail, str) else shown(detail)
        raise Refused(422, f"{name}.image_url.detail must be auto, low or high, got {got}", field=f"{name}.image_url.detail")
    return MARK, data_url(url, f"{name}.image_url.url", limits)


def _known(part: Mapping[str, Any], expected: Sequence[str], name: str) -> None:
    """
    Raises:
        Refused: 422 a field of another name, which would change the answer where it is known.
    """
    for key in part:
        if key not in expected:
            more = f"{name}.{cut(key).strip(chr(39))}"
            raise Refused(422, f"unknown field {more}: expected {', '.join(expected)}", field=more, code="unknown_parameter")


def data_url(url: str, name: str, limits: Limits) -> bytes:
    """The picture of a data URL.

    Raises:
        Refused: 422 another URL: nothing is downloaded; and as `requests.picture`.
    """
    head, comma, body = url.partition(",")
    if not head.lower().startswith("data:") or not head.lower().endswith(";base64") or not comma:
        said = "an address: nothing is downloaded" if head.lower().startswith("http") else "something else"
        raise Refused(422, f"{name} must be a data URL, data:image/png;base64,..., got {said}", field=name)
    return picture(body, name, limits)


def _check_order(turns: Sequence[Turn], turn: Turn, name: str) -> None:
    """A system turn only first, then user and assistant in turn."""
    before = turns[-1].role if turns else None
    expected = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}[before]
    if turn.role not in expected:
        after = f"after {before}" if before else "first"
        raise Refused(422, f"{name}: a turn of {turn.role} comes {after}: expected {' or '.join(expected)}", field=name)
