"""From the bytes of a request of the API to what the model is asked, or to a refusal. Pure; knows no web library."""

from typing import NamedTuple

from srlhfv_jax.data.chat import MARK
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Generation, Moderation, Options, Refused, Scored, json_object, shown
from srlhfv_jax.guard.service.v1 import fields, messages


class Names(NamedTuple):
    """Models of a server, as clients call them."""

    guard: str = "guard"
    policy: str = "policy"
    scorer: str = "scorer"


class Chat(NamedTuple):
    """One request for answers."""

    items: tuple[Generation, ...]  # one for each choice
    stream: bool
    include_usage: bool  # of a stream: a last chunk with the usage


class Judged(NamedTuple):
    """One request for verdicts."""

    items: tuple[Moderation, ...]
    pictured: tuple[bool, ...]  # which of them have a picture


class Scoring(NamedTuple):
    """One request for scores."""

    items: tuple[Scored, ...]


def chat(body: bytes | bytearray, limits: Limits, model: str) -> Chat:
    """Read the body of POST /v1/chat/completions.

    Raises:
        Refused: 400 malformed, 404 another model, 413 too large, 422 a field that is missing, unknown, wrong or not supported.
    """
    read = fields.read(fields.ChatBody, json_object(body))
    check_model(read.model, model)
    conversation = messages.read(read.messages, limits)
    *history, question = conversation.turns
    if question.role != "user":
        raise Refused(422, f"the last message must be of the user, got {question.role}", field="messages")
    if read.stream_options is not None and not read.stream:
        raise Refused(422, "stream_options is for stream=true only", field="stream_options")
    count, rounds = read.n or 1, limits.rounds if read.rounds is None else read.rounds
    _at_most("n", count, limits.choices)
    _at_most("rounds", rounds, limits.rounds, flag="--rounds")
    options = Options(
        temperature=read.temperature,
        top_p=1.0 if read.top_p is None else read.top_p,
        length=_length(read, limits),
        stop=fields.stops(read.stop, limits),
        seed=read.seed,
    )
    items = tuple(
        Generation(question.text, conversation.images, rounds, options._replace(choice=choice), tuple(history))
        for choice in range(count)
    )
    wanted = read.stream_options
    return Chat(items, bool(read.stream), bool(wanted and wanted.include_usage))


def moderation(body: bytes | bytearray, limits: Limits, model: str) -> Judged:
    """Read the body of POST /v1/moderations: a text, a list of texts, or the parts of one question.

    Raises:
        Refused: as `chat`.
    """
    read = fields.read(fields.ModerationBody, json_object(body))
    check_model(read.model, model)
    given = read.input
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        _at_most("the number of texts in input", len(given), limits.inputs, field="input")
        contents = [messages.content(text, f"input.{place}", limits) for place, text in enumerate(given)]
    elif isinstance(given, str) or (isinstance(given, list) and given and all(isinstance(one, dict) for one in given)):
        contents = [messages.content(given, "input", limits)]
    else:
        raise Refused(422, f"input must be a string, a list of strings or a list of parts, got {shown(given)}", field="input")
    items = tuple(Moderation(text, None, tuple(images)) for text, images in contents)
    return Judged(items, tuple(bool(images) for _, images in contents))


def scoring(body: bytes | bytearray, limits: Limits, model: str) -> Scoring:
    """Read the body of POST /v1/score: messages, the last of which is the answer to score.

    Raises:
        Refused: as `chat`.
    """
    read = fields.read(fields.ScoreBody, json_object(body))
    check_model(read.model, model)
    conversation = messages.read(read.messages, limits)
    *before, answer = conversation.turns
    if answer.role != "assistant":
        raise Refused(422, f"the last message must be the assistant's answer, got one of {answer.role}", field="messages")
    if not answer.text.strip():
        raise Refused(422, "the answer has no text", field="messages", code="empty_content")
    if MARK in answer.text:
        raise Refused(422, f"the answer contains {MARK}", field="messages")
    *history, question = before
    return Scoring((Scored(question.text, answer.text, conversation.images, tuple(history)),))


def check_model(given: str | None, name: str) -> None:
    """
    Raises:
        Refused: 404 another model.
    """
    if given is not None and given != name:
        said = given if len(given) <= 80 else f"{given[:80]}..."
        raise Refused(
            404, f"the model {said!r} does not exist: this endpoint has {name!r}", field="model", code="model_not_found"
        )


def _length(read: fields.ChatBody, limits: Limits) -> int | None:
    """Most tokens of an answer."""
    both = {"max_completion_tokens": read.max_completion_tokens, "max_tokens": read.max_tokens}
    given = {name: value for name, value in both.items() if value is not None}
    if len(set(given.values())) > 1:
        raise Refused(422, "max_tokens and max_completion_tokens differ: give one of them", field="max_tokens")
    for name, value in given.items():
        _at_most(name, value, limits.answer_tokens, flag="--response_length")
    return next(iter(given.values()), None)


def _at_most(name: str, value: int, most: int, field: str | None = None, flag: str = "") -> None:
    """
    Args:
        flag: of the server, that says how much is most.

    Raises:
        Refused: 422 a larger value.
    """
    if value > most:
        place = f"on this server ({flag})" if flag else "on this server"
        raise Refused(
            422, f"{name} must be at most {most} {place}, got {shown(value)}", field=field or name, code="invalid_value"
        )
