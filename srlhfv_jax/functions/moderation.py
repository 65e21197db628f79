"""Moderation models behind an OpenAI-compatible endpoint, such as vLLM's, for costs of one's own.

    guard = moderation.endpoint("http://127.0.0.1:8000/v1", "Qwen/Qwen3Guard-Gen-0.6B", replies.qwen3guard)

    def cost(samples):
        return [guard(sample).cost for sample in samples]

The server's chat template writes the model's own prompt around the conversation, which ends with the answer.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from srlhfv_jax.config import EndpointConfig, ranges
from srlhfv_jax.data import chat
from srlhfv_jax.data.rows import Turn, writable
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging.client import NOTHING, Client, Reply, Unanswered
from srlhfv_jax.evaluation.judging.endpoint import api_key
from srlhfv_jax.evaluation.judging.rubric import data_url
from srlhfv_jax.functions.replies import Moderation
from srlhfv_jax.functions.sample import Sample
from srlhfv_jax.parsing import checked


def endpoint(
    url: str,
    model: str,
    read: Callable[[Reply], Moderation],
    *,
    key_variable: str = "",
    max_tokens: int = 64,
    timeout_s: float = 15.0,
    attempts: int = 3,
    backoff_s: float = 1.0,
    fields: Mapping[str, Any] = NOTHING,
) -> Callable[[Sample], Moderation]:
    """A moderation model as a function of a sample, from any thread.

    Args:
        url: up to and with the version, such as "http://127.0.0.1:8000/v1".
        model: as the server calls it.
        read: of `replies`: llama_guard, shieldgemma or qwen3guard, or a function of one's own that raises Malformed.
        key_variable: environment variable that holds the key; "": the server wants none.
        max_tokens: of a reply.
        timeout_s: seconds for one call. All attempts together must fit into config.functions.timeout_s.
        attempts: calls for one verdict, the first included.
        backoff_s: seconds before the second attempt; doubled before each later one.
        fields: more of the request, such as {"logprobs": True, "top_logprobs": 5}.

    Raises:
        UserError: a wrong address or setting, or a key that is not set. The function raises it for a sample without a verdict,
            and names its row.
    """
    settings = EndpointConfig(
        url=url,
        model=model,
        key_variable=key_variable,
        temperature=0.0,
        max_tokens=checked(ranges.Count, max_tokens, "max_tokens"),
        workers=1,
        requests_per_minute=0.0,
        timeout_s=checked(ranges.Positive, timeout_s, "timeout_s"),
        attempts=checked(ranges.Count, attempts, "attempts"),
        backoff_s=checked(ranges.Weight, backoff_s, "backoff_s"),
    )
    client = Client(settings, api_key(settings), place="")

    def judge(sample: Sample) -> Moderation:
        if not sample.answer.strip():  # says nothing, so does no harm; servers refuse an empty turn
            return Moderation(0.0)
        try:
            verdict, _ = client.ask(messages(sample), read, fields)
        except Unanswered as unanswered:
            raise UserError(f"row {sample.row}: no verdict of {model}: {unanswered}") from None
        return verdict

    return judge


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The conversation of a sample with its answer, in the API's form; pictures as data URLs where the turns have them.

    A system turn is left out: moderation models judge what users and assistants say, and most of their templates refuse it.
    """
    conversation = (*sample.history, Turn("user", sample.question))
    turns = [Turn(turn.role, writable(turn.text)) for turn in conversation if turn.role != "system"]
    answer = {"role": "assistant", "content": writable(sample.answer)}
    if not sample.images:  # "<image>" is then a text like any other
        return [*({"role": turn.role, "content": turn.text} for turn in turns), answer]
    pictures = iter(sample.images.encoded)
    parts = chat.parts_of(turns, len(sample.images))
    written = [
        {"role": turn.role, "content": [_part(kind, text, pictures) for kind, text in of_turn]}
        for turn, of_turn in zip(turns, parts, strict=True)
    ]
    return [*written, answer]


def _part(kind: str, text: str, pictures: Iterator[bytes]) -> dict[str, Any]:
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
    return {"type": "text", "text": text}
