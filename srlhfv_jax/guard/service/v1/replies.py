"""Answers, verdicts and scores as objects of the API. Pure."""

import itertools
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from srlhfv_jax.data.taxonomies import SUMS

WORDS = re.compile(r"\s*\S+|\s+$")  # pieces of a streamed answer
ACTIONS = ("passed", "regenerated", "flagged", "blocked")  # of the guard, from least to most


def identifier(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def guard_field(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The guard's part in one answer: {"action", "input", "rounds": [{"number", "shown", "verdict"}]}.

    action: "passed" the first answer is shown; "regenerated" a later one; "flagged" an answer is shown that was judged unsafe;
    "blocked" a refusal is. Answers that are not shown stay on the server.
    """
    rounds = [
        {"number": one["number"], "shown": one["number"] == reply["shown"], "verdict": one["verdict"]} for one in reply["rounds"]
    ]
    judged = [reply["input"], reply["verdict"]]
    unsafe = any(verdict is not None and not verdict["safe"] for verdict in judged)
    action = "blocked" if reply["blocked"] else "flagged" if unsafe else "regenerated" if reply["shown"] else "passed"
    return {"action": action, "input": reply["input"], "rounds": rounds}


def guard_header(replies: Sequence[Mapping[str, Any]]) -> str:
    """One line for the header x-guard: what was done at most, over all choices."""
    guards = [guard_field(reply) for reply in replies]
    action = max((guard["action"] for guard in guards), key=ACTIONS.index)
    rounds = max(len(guard["rounds"]) for guard in guards)
    judged = [reply["verdict"] or reply["input"] for reply in replies]
    severity = max((verdict for verdict in judged if verdict), key=lambda verdict: verdict["scores"]["unsafe"], default=None)
    return f"action={action}; rounds={rounds}; severity={severity['severity'] if severity else 'unknown'}"


def completion(replies: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """A chat.completion, with the field `guard` in each choice."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": reply["answer"], "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": reply["finish_reason"],
            "guard": guard_field(reply),
        }
        for index, reply in enumerate(replies)
    ]
    return _head("chat.completion", model) | {"choices": choices, "usage": usage(replies)}


def usage(replies: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens: of the prompt once, of all choices together."""
    asked = replies[0]["usage"]["prompt_tokens"]
    answered = sum(reply["usage"]["completion_tokens"] for reply in replies)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def chunks(replies: Sequence[Mapping[str, Any]], model: str, include_usage: bool) -> Iterator[bytes]:
    """The same as server-sent events: words, as the guard has let them through; usage at the end where it is wanted."""
    head = _head("chat.completion.chunk", model) | ({"usage": None} if include_usage else {})

    def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason} | more
        return head | {"choices": [choice]}

    def of(index: int, reply: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for word in WORDS.findall(reply["answer"]):
            yield chunk(index, {"content": word})
        yield chunk(index, {}, reply["finish_reason"], guard=guard_field(reply))

    last = [head | {"choices": [], "usage": usage(replies)}] if include_usage else []
    for one in itertools.chain.from_iterable([of(index, reply) for index, reply in enumerate(replies)] + [last]):
        yield b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def moderation(pictured: Sequence[bool], verdicts: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """A moderation: categories and scores are those of the guard's taxonomy; `severity` and `unsafe` are fields of this server."""
    results = []
    for with_picture, verdict in zip(pictured, verdicts, strict=True):
        scores = {name: score for name, score in verdict["scores"].items() if name not in SUMS}
        kinds = ["text", "image"] if with_picture else ["text"]
        results.append(
            {
                "flagged": not verdict["safe"],
                "categories": {name: name in verdict["categories"] for name in scores},
                "category_scores": scores,
                "category_applied_input_types": dict.fromkeys(scores, kinds),
                "severity": verdict["severity"],
                "unsafe": verdict["scores"]["unsafe"],
            }
        )
    return {"id": identifier("modr"), "model": model, "results": results}


def score(scores: Mapping[str, float], model: str) -> dict[str, Any]:
    """{"id", "object": "score", "created", "model", "scores": {head: score}}."""
    return _head("score", model) | {"scores": dict(scores)}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(name, created) for name in dict.fromkeys(names)]}


def model_object(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "srlhfv"}


def _head(kind: str, model: str) -> dict[str, Any]:
    prefix = "score" if kind == "score" else "chatcmpl"
    return {"id": identifier(prefix), "object": kind, "created": int(time.time()), "model": model}
