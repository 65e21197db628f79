"""Filter and regenerate: answers are checked, and unsafe ones are sampled again for some rounds (arXiv 2503.17682, Beaver-Guard-V).

prompts -> check_input -> generate -> check -> (unsafe: generate -> check) x rounds -> Guarded

A pure function over callables. `check` and `check_input` are `Guard.check_output` and `Guard.check_input`, or any judge with these
arguments; `generate` is a policy. Nothing here knows about models, seeds or batches.
"""

from collections.abc import Callable, Sequence

from srlhfv_jax.config import choose
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt, Turn, asked, histories
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.verdict import Guarded, GuardVerdict, Round

Generate = Callable[[Sequence[Prompt], int], Sequence[str]]  # (prompts, round) -> one answer each; a round has draws of its own
DrawRows = Callable[[Sequence[int], Sequence[Prompt], int], Sequence[str]]  # (rows, their prompts, round) -> one answer each
Pictures = Sequence[tuple[bytes, ...]]
Histories = Sequence[tuple[Turn, ...]]
# (images, questions), and where a question is not its conversation's first also the turns before each.
CheckInput = Callable[..., Sequence[GuardVerdict]]
CheckOutput = Callable[..., Sequence[GuardVerdict]]  # (images, questions, answers), and the turns likewise
# Why a model cannot read (pictures, question, answer or None); None where it can.
Unreadable = Callable[[Sequence[tuple[Prompt, str | None]]], Sequence[Unusable | None]]

POLICIES = ("block", "regenerate", "warn")
REFUSAL = "I can't help with that."


def guarded_generate(
    generate: Generate,
    check: CheckOutput | None,
    prompts: Sequence[Prompt],
    *,
    rounds: int = 5,
    feedback: bool = False,
    policy: str = "regenerate",
    check_input: CheckInput | None = None,
    refusal: str = REFUSAL,
) -> list[Guarded]:
    """One result per prompt, in order; only prompts whose answer is unsafe so far are asked again.

    Args:
        check: judges answers; None judges the questions alone.
        rounds: at most this many regenerations after the first answer, under "regenerate".
        feedback: put the guard's verdict on the last answer into the question of the next round.
        policy: "block" shows `refusal` in place of an unsafe answer; "regenerate" asks again, and shows the safest answer if none
            passes; "warn" shows every answer with its verdict. An unsafe question is answered by `refusal`, but under "warn".
        check_input: judges the questions first.

    Raises:
        UserError: an unknown policy, negative rounds, or nothing to check with.
    """
    _check_rounds(rounds)

    def draw(rows: Sequence[int], asked: Sequence[Prompt], number: int) -> Sequence[str]:
        return generate(asked, number)

    return guarded_rows(
        draw,
        check,
        prompts,
        rounds=[rounds] * len(prompts),
        feedback=feedback,
        policy=policy,
        check_input=check_input,
        refusal=refusal,
    )


def guarded_rows(
    draw: DrawRows,
    check: CheckOutput | None,
    prompts: Sequence[Prompt],
    *,
    rounds: Sequence[int],
    feedback: bool = False,
    policy: str = "regenerate",
    check_input: CheckInput | None = None,
    refusal: str = REFUSAL,
) -> list[Guarded]:
    """`guarded_generate` with rounds of each prompt's own; `draw` is told which of the prompts it answers.

    Raises:
        UserError: as `guarded_generate`.
    """
    choose(policy, "the guard's policy", *POLICIES)
    _check_rounds(min(rounds, default=0))
    if check is None and check_input is None:
        raise UserError("guarded generation needs a check of the input, of the output, or of both")
    inputs = _inputs(check_input, prompts)
    open_rows = [row for row, verdict in enumerate(inputs) if verdict is None or verdict.safe or policy == "warn"]
    if check is None:
        answers = dict(zip(open_rows, _answers(draw, open_rows, [prompts[row] for row in open_rows], 0), strict=True))
        return [_unchecked(answers.get(row), verdict, refusal) for row, verdict in enumerate(inputs)]

    record: dict[int, tuple[Round, ...]] = {row: () for row in open_rows}
    pending, number = open_rows, 0
    while pending:
        questions = [_question(prompts[row], record[row], feedback) for row in pending]
        answers = _answers(draw, pending, questions, number)
        verdicts = _verdicts(check, [prompts[row] for row in pending], answers)
        for row, answer, verdict in zip(pending, answers, verdicts, strict=True):
            record[row] += (Round(number, answer, verdict),)
        again = [row for row in pending if number < rounds[row] and not record[row][-1].verdict.safe]
        pending, number = again if policy == "regenerate" else [], number + 1
    return [_result(record.get(row, ()), verdict, policy, refusal) for row, verdict in enumerate(inputs)]


def kept(rounds: Sequence[Round], after: int | None = None) -> Round:
    """The answer that is shown after so many regenerations: the first safe one, else the least unsafe, of equals the earliest.

    A safe answer ends the loop, so that it is also the one of every later `after`; None is after all of them.
    """
    seen = [one for one in rounds if after is None or one.number <= after]
    return min(seen, key=lambda one: (not one.verdict.safe, one.verdict.scores["unsafe"], one.number))


def with_feedback(question: str, verdict: GuardVerdict) -> str:
    """The question of the next round, with what was wrong with the last answer."""
    about = f" ({', '.join(verdict.categories)})" if verdict.categories else ""
    return (
        f"{question}\nA safety check rated the last answer as harmful, {verdict.severity}{about}. Give a safe and helpful answer."
    )


def _check_rounds(least: int) -> None:
    if least < 0:
        raise UserError(f"the guard's rounds must be 0 or more, got {least}")


def _question(prompt: Prompt, before: Sequence[Round], feedback: bool) -> Prompt:
    if not (feedback and before):
        return prompt
    return prompt._replace(question=with_feedback(prompt.question, before[-1].verdict))


def _inputs(check_input: CheckInput | None, prompts: Sequence[Prompt]) -> list[GuardVerdict | None]:
    if check_input is None or not prompts:
        return [None] * len(prompts)
    return list(check_input(*asked(prompts), *histories(prompts)))


def _answers(draw: DrawRows, rows: Sequence[int], prompts: Sequence[Prompt], number: int) -> list[str]:
    return list(draw(rows, prompts, number)) if prompts else []


def _verdicts(check: CheckOutput, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[GuardVerdict]:
    """The question itself is judged, without feedback: its wording is ours, not the user's."""
    if not prompts:
        return []
    return list(check(*asked(prompts), answers, *histories(prompts)))


def _unchecked(answer: str | None, input_verdict: GuardVerdict | None, refusal: str) -> Guarded:
    if answer is None:
        return Guarded(refusal, None, True, (), input_verdict)
    return Guarded(answer, None, False, (), input_verdict)


def _result(rounds: tuple[Round, ...], input_verdict: GuardVerdict | None, policy: str, refusal: str) -> Guarded:
    if not rounds:
        return Guarded(refusal, None, True, (), input_verdict)
    best = kept(rounds)
    if policy == "block" and not best.verdict.safe:
        return Guarded(refusal, best.verdict, True, rounds, input_verdict)
    return Guarded(best.answer, best.verdict, False, rounds, input_verdict)
