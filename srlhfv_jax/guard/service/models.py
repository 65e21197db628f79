"""From a guard and a policy, as batched functions, to what the application calls; verdicts become what JSON can hold."""

import itertools
from collections.abc import Iterable, Sequence

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.guard.regenerate import CheckInput, CheckOutput, Generate, Unreadable, asked, guarded_generate, histories
from srlhfv_jax.guard.service.requests import Answer, Generate as AnswerAll, Generation, Moderate, Moderation, Refused
from srlhfv_jax.guard.verdict import guarded_json, verdict_json

DRAWS = 1 << 10  # more than the rounds of a request: keeps the draws of different batches apart
WORD = "hello"
BATCHES = 1 << 20  # after so many the draws come again: together they stay below 2**31


def moderate_with(check_input: CheckInput | None, check_output: CheckOutput | None, unreadable: Unreadable) -> Moderate:
    """Judge questions by `check_input`, answers by `check_output`: a call of each for a batch that has both.

    Without one of them its requests are refused.
    """

    def moderate(requests: Sequence[Moderation]) -> list[Answer]:
        prompts = [_prompt(one) for one in requests]
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
    generate: Generate, check_input: CheckInput | None, check_output: CheckOutput | None, unreadable: Unreadable, *, policy: str
) -> AnswerAll:
    """Answer under the guard (`regenerate.guarded_generate`, with its `policy`): one call for each number of rounds asked for."""
    batches = itertools.count()

    def answer(requests: Sequence[Generation]) -> list[Answer]:
        prompts, first = [_prompt(one) for one in requests], next(batches) % BATCHES * DRAWS
        replies = _refused(unreadable([(prompt, None) for prompt in prompts]))
        for rounds in sorted({one.rounds for one in requests}):
            rows = [row for row, one in enumerate(requests) if replies[row] is None and one.rounds == rounds]
            guarded = guarded_generate(
                lambda some, number: generate(some, first + number),
                check_output,
                [prompts[row] for row in rows],
                rounds=rounds,
                policy=policy,
                check_input=check_input,
            )
            for row, one in zip(rows, guarded, strict=True):
                replies[row] = guarded_json(one)
        return replies

    return answer


def warm_up(moderate: Moderate, generate: AnswerAll | None, image: bytes) -> None:
    """Have what first requests need compiled before they come: a short question, an answer to it and one to be made, each with
    `image` and without. Other lengths and sizes of pictures compile when they come."""
    for picture in (None, image):
        moderate([Moderation(WORD, None, picture)])
        moderate([Moderation(WORD, WORD, picture)])
        if generate is not None:
            generate([Generation(WORD, picture, rounds=0)])


def _prompt(request: Moderation | Generation) -> Prompt:
    return Prompt(() if request.image is None else (request.image,), request.prompt)


def _refused(unreadable: Sequence[Unusable | None]) -> list[Answer | None]:
    return [None if why is None else Refused(422, str(why)) for why in unreadable]


def _put(replies: list[Answer | None], rows: Sequence[int], answers: Iterable[Answer]) -> None:
    for row, answer in zip(rows, answers, strict=True):
        replies[row] = answer
