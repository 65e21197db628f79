"""From a guard, a policy and a scorer, as batched functions, to what the application calls; verdicts become what JSON can hold."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt, asked, histories
from srlhfv_jax.evaluation.by_row import Draw, Drawn
from srlhfv_jax.guard.regenerate import CheckInput, CheckOutput, Unreadable, guarded_rows, kept
from srlhfv_jax.guard.service.requests import Answer, Generate, Generation, Moderate, Moderation, Options, Refused, Score, Scored
from srlhfv_jax.guard.verdict import Guarded, guarded_json, verdict_json

DrawAll = Callable[[Sequence[Prompt], Sequence[Draw]], Sequence[Drawn]]
Read = Callable[[Sequence[Prompt]], Sequence[int | Unusable]]  # tokens of each prompt, or why it cannot be read
ScoreAll = Callable[[Sequence[Example]], Sequence[dict[str, float]]]
UnreadableAnswers = Callable[[Sequence[Example]], Sequence[Unusable | None]]

SEEDS = 1 << 64  # a seed is taken modulo this: those of the API may be negative


def moderate_with(check_input: CheckInput | None, check_output: CheckOutput | None, unreadable: Unreadable) -> Moderate:
    """Judge questions by `check_input`, answers by `check_output`: a call of each for a batch that has both.

    Without one of them its requests are refused.
    """

    def moderate(requests: Sequence[Moderation]) -> list[Answer]:
        prompts = [Prompt(one.images, one.prompt) for one in requests]
        replies = _refused(unreadable([(prompt, one.response) for prompt, one in zip(prompts, requests, strict=True)]))
        questions = [row for row, one in enumerate(requests) if replies[row] is None and one.response is None]
        answers = [row for row, one in enumerate(requests) if replies[row] is None and one.response is not None]
        if check_input is None:
            _put(replies, questions, [Refused(422, "this guard judges answers only: give a response")] * len(questions))
        elif questions:
            some = [prompts[row] for row in questions]
            verdicts = check_input(*asked(some), *histories(some))
            _put(replies, questions, map(verdict_json, verdicts))
        if check_output is None:
            _put(replies, answers, [Refused(422, "this guard judges questions only: leave out the response")] * len(answers))
        elif answers:
            some = [prompts[row] for row in answers]
            verdicts = check_output(*asked(some), [requests[row].response for row in answers], *histories(some))
            _put(replies, answers, map(verdict_json, verdicts))
        return replies

    return moderate


def generate_with(
    draw: DrawAll,
    check_input: CheckInput | None,
    check_output: CheckOutput | None,
    read: Read,
    *,
    policy: str,
    temperature: float,
    seed: int,
) -> Generate:
    """Answer under the guard (`regenerate.guarded_rows`, with its `policy`).

    Args:
        temperature: of requests that name none.
        seed: of requests that name none, which each draw numbers of their own.
    """
    numbers = itertools.count()

    def generate(requests: Sequence[Generation]) -> list[Answer]:
        sizes = read([_prompt(one) for one in requests])
        replies = _refused([size if isinstance(size, Unusable) else None for size in sizes])
        rows = [row for row, reply in enumerate(replies) if reply is None]
        taken = [requests[row] for row in rows]
        own = [_own_seed(one.options, seed, numbers) for one in taken]
        record: dict[tuple[int, int], Drawn] = {}

        def answer(some: Sequence[int], prompts: Sequence[Prompt], number: int) -> list[str]:
            wanted = [_draw(taken[place].options, (*own[place], number), temperature) for place in some]
            drawn = draw(prompts, wanted)
            record.update({(place, number): one for place, one in zip(some, drawn, strict=True)})
            return [one.text for one in drawn]

        guarded = guarded_rows(
            answer,
            check_output,
            [_prompt(one) for one in taken],
            rounds=[one.rounds for one in taken],
            policy=policy,
            check_input=check_input,
        )
        for place, (row, one) in enumerate(zip(rows, guarded, strict=True)):
            number = kept(one.rounds).number if one.rounds else 0
            replies[row] = generation_json(one, number, record.get((place, number)), sizes[row])
        return replies

    return generate


def generation_json(guarded: Guarded, number: int, drawn: Drawn | None, prompt_tokens: int) -> dict[str, Any]:
    """`guarded_json` and {"shown", "finish_reason", "usage"}.

    Args:
        number: of the round that was kept; "shown" is null where its answer was blocked.
        drawn: the answer of that round; None: the question was blocked.
    """
    reason = "content_filter" if guarded.blocked or drawn is None else "stop" if drawn.ended else "length"
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0 if drawn is None else drawn.tokens}
    shown = None if guarded.blocked else number
    return guarded_json(guarded) | {"shown": shown, "finish_reason": reason, "usage": usage}


def score_with(scores: ScoreAll, unreadable: UnreadableAnswers) -> Score:
    """Reward and cost, of those heads that the scorer has."""

    def score(requests: Sequence[Scored]) -> list[Answer]:
        examples = [Example(one.images, one.prompt, (one.response,), history=one.history) for one in requests]
        replies = _refused(unreadable(examples))
        rows = [row for row, reply in enumerate(replies) if reply is None]
        if rows:
            _put(replies, rows, scores([examples[row] for row in rows]))
        return replies

    return score


def _own_seed(options: Options, seed: int, numbers: "itertools.count[int]") -> tuple[int, ...]:
    """Seed of an answer that a client's seed alone decides, or of one that nothing else has."""
    if options.seed is not None:
        return (options.seed % SEEDS, options.choice)
    return (seed, next(numbers), options.choice)


def _draw(options: Options, seed: tuple[int, ...], temperature: float) -> Draw:
    own = temperature if options.temperature is None else options.temperature
    return Draw(seed, own, options.top_p, options.length, options.stop)


def _prompt(request: Generation) -> Prompt:
    return Prompt(request.images, request.prompt, request.history)


def _refused(unreadable: Sequence[Unusable | None]) -> list[Answer | None]:
    return [None if why is None else Refused(422, str(why), code=why.reason) for why in unreadable]


def _put(replies: list[Answer | None], rows: Sequence[int], answers: Iterable[Answer]) -> None:
    for row, answer in zip(rows, answers, strict=True):
        replies[row] = answer
