"""The endpoints of the API: chat completions, moderations, models, and scores."""

import functools
import time
from collections.abc import AsyncIterator, Iterable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from srlhfv_jax.guard.service.access import check
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.exchange import Exchange, Replies
from srlhfv_jax.guard.service.metrics import Metrics
from srlhfv_jax.guard.service.requests import Refused
from srlhfv_jax.guard.service.v1 import parse, replies
from srlhfv_jax.guard.service.v1.parse import Names

PREFIX = "/v1/"


def routes(exchange: Exchange, batchers: Mapping[str, Batcher], names: Names, metrics: Metrics) -> list[Route]:
    """
    Args:
        batchers: "moderate", and "generate" and "score" where there is a policy and a scorer; an endpoint without one is a 404.
    """
    created = int(time.time())
    models = {"generate": names.policy, "moderate": names.guard, "score": names.scorer}
    served = tuple(dict.fromkeys(name for kind, name in models.items() if kind in batchers))

    async def on_chat(request: Request) -> Response:
        def respond(chat: parse.Chat, answers: Replies) -> Response:
            actions = [replies.guard_field(reply)["action"] for reply in answers]
            metrics.count_answers(replies.usage(answers), actions)
            headers = {"x-guard": replies.guard_header(answers)}
            if chat.stream:
                events = replies.chunks(answers, names.policy, chat.include_usage)
                return StreamingResponse(_sent(events), media_type="text/event-stream", headers=headers)
            return JSONResponse(replies.completion(answers, names.policy), headers=headers)

        batcher = _batcher("generate", "policy: start it with --policy=DIR")
        return await exchange.answer(request, functools.partial(parse.chat, model=names.policy), batcher, respond)

    async def on_moderations(request: Request) -> Response:
        def respond(judged: parse.Judged, verdicts: Replies) -> Response:
            return JSONResponse(replies.moderation(judged.pictured, verdicts, names.guard))

        batcher = _batcher("moderate", "guard")
        return await exchange.answer(request, functools.partial(parse.moderation, model=names.guard), batcher, respond)

    async def on_score(request: Request) -> Response:
        def respond(_: parse.Scoring, scores: Replies) -> Response:
            return JSONResponse(replies.score(scores[0], names.scorer))

        batcher = _batcher("score", "score heads: start it with --scorer=DIR")
        return await exchange.answer(request, functools.partial(parse.scoring, model=names.scorer), batcher, respond)

    async def on_models(request: Request) -> Response:
        check(request.headers, exchange.access)
        return JSONResponse(replies.model_list(served, created))

    async def on_model(request: Request) -> Response:
        check(request.headers, exchange.access)
        name = request.path_params["name"]
        if name not in served:
            raise Refused(
                404, f"the model {name[:80]!r} does not exist: see {PREFIX}models", field="model", code="model_not_found"
            )
        return JSONResponse(replies.model_object(name, created))

    def _batcher(kind: str, what: str) -> Batcher:
        if kind not in batchers:
            raise Refused(404, f"this server has no {what}", code="model_not_found")
        return batchers[kind]

    return [
        Route(f"{PREFIX}chat/completions", on_chat, methods=["POST"]),
        Route(f"{PREFIX}moderations", on_moderations, methods=["POST"]),
        Route(f"{PREFIX}score", on_score, methods=["POST"]),
        Route(f"{PREFIX}models", on_models, methods=["GET"]),
        Route(f"{PREFIX}models/{{name:path}}", on_model, methods=["GET"]),
    ]


async def _sent(events: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The events from this thread: they are at hand, and a plain iterator would be walked in others."""
    for event in events:
        yield event
