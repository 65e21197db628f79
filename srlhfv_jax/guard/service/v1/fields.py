"""Bodies of the API: every field that it documents, with its type and range.

Three kinds: fields that are done; fields that say nothing about the answer (NOTES, read and left aside); and fields that would change
the answer and are not done here (UNDONE): those are refused, but for the values that mean "as usual".
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Refused, cut, shown, written

Body = TypeVar("Body", bound=BaseModel)

MOST_STOPS = 4  # of the API
UNDONE: Mapping[str, tuple[Any, ...]] = {  # field -> values that change nothing
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
OBJECTS = ("dict_type", "model_type")  # errors that pydantic words in Python


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # no padding is sent: there are no single tokens to hide


class Notes(_Strict):
    """Fields about a request that say nothing about its answer."""

    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None


class ChatBody(Notes):
    """POST /v1/chat/completions."""

    model: str
    messages: list[Any]
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Any = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    rounds: Annotated[int, Field(ge=0)] | None = None  # of this server: regenerations under the guard


class ModerationBody(_Strict):
    """POST /v1/moderations."""

    input: Any
    model: str | None = None


class ScoreBody(_Strict):
    """POST /v1/score, of this server: the last message is the answer."""

    model: str | None = None
    messages: list[Any]


def read(kind: type[Body], fields: dict[str, Any]) -> Body:
    """
    Raises:
        Refused: 422 a field that is missing, unknown, wrong, or asks for what is not done.
    """
    for name, usual in UNDONE.items() if kind is ChatBody else ():
        value = fields.get(name)
        if value is not None and not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in usual):
            accepted = f": leave it out, or set it to {usual[0]!r}" if usual else ": leave it out"
            raise Refused(422, f"{name} is not supported{accepted}", field=name, code="unsupported_parameter")
    try:
        return kind.model_validate({name: value for name, value in fields.items() if kind is not ChatBody or name not in UNDONE})
    except ValidationError as error:
        raise _refused(kind, error) from error


def stops(value: Any, limits: Limits) -> tuple[str, ...]:
    """
    Raises:
        Refused: 422 neither a text nor a few texts; 413 a long one.
    """
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts) or len(texts) > MOST_STOPS:
        raise Refused(
            422, f"stop must be a string with text, or a list of at most {MOST_STOPS}, got {_shown(value)}", field="stop"
        )
    return tuple(written(text, "stop", limits) for text in texts)


def _refused(kind: type[Body], error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    name = cut(".".join(place)).strip("'")
    if first["type"] == "missing":
        return Refused(422, f"the field {name} is missing", field=name, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        expected = ", ".join(kind.model_fields if len(place) == 1 else StreamOptions.model_fields)
        return Refused(422, f"unknown field {name}: expected {expected}", field=name, code="unknown_parameter")
    said = "an object" if first["type"] in OBJECTS else first["msg"].removeprefix("Input should be ")
    return Refused(422, f"{name} must be {said}, got {_shown(first['input'])}", field=name, code="invalid_value")


def _shown(value: Any) -> str:
    return cut(value) if isinstance(value, str) else shown(value)
