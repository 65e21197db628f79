"""Checkpoints in use: a policy answers, a scorer scores answers, a guard checks questions and answers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from srlhfv_jax.api.rows import Rows, examples_of

if TYPE_CHECKING:  # importing them starts JAX
    import numpy as np

    from srlhfv_jax.data.rows import Example
    from srlhfv_jax.evaluation.by_row import RowPolicy
    from srlhfv_jax.evaluation.text_scores import TextScorer
    from srlhfv_jax.guard.checks import Checks
    from srlhfv_jax.guard.verdict import GuardVerdict

SHORTEST = (32,)  # tokens: prompts and answers are padded to this, or its double, and so on: each length compiles once
CALLS = {"policy": "generate", "scorer": "score", "guard": "check"}


class Verdicts(NamedTuple):
    """A guard's verdicts on a row."""

    question: "GuardVerdict | None"  # None: the guard was trained on answers alone
    answers: "tuple[GuardVerdict, ...]"  # on each response of the row


class Model:
    """A checkpoint that `load` opened: a policy, a scorer, a guard, or a guard with the heads of a scorer."""

    def __init__(
        self,
        path: str,
        *,
        policy: "RowPolicy | None" = None,
        scorer: "TextScorer | None" = None,
        guard: "Checks | None" = None,
    ) -> None:
        self.path = path
        self._policy, self._scorer, self._guard = policy, scorer, guard

    @property
    def kinds(self) -> tuple[str, ...]:
        """Any of "policy", "scorer", "guard"."""
        parts = {"policy": self._policy, "scorer": self._scorer, "guard": self._guard}
        return tuple(kind for kind, part in parts.items() if part is not None)

    def generate(self, rows: Rows, *, temperature: float = 1.0, max_tokens: int = 256, seed: int = 0) -> list[str]:
        """The policy's answer to each row's question.

        Args:
            temperature: 0 is greedy.
            max_tokens: of an answer; each value compiles once.
            seed: the same one gives the same answers.

        Raises:
            UserError: this is no policy, or a row cannot be read.
        """
        from srlhfv_jax.config import ranges
        from srlhfv_jax.data.rows import prompt_of
        from srlhfv_jax.evaluation import by_row
        from srlhfv_jax.parsing import checked

        policy = self._part("policy", self._policy)
        temperature = checked(ranges.Weight, temperature, "temperature")
        data = dataclasses.replace(policy.data, response_length=checked(ranges.Count, max_tokens, "max_tokens"))
        checked(ranges.Seed, seed, "seed")
        prompts = [prompt_of(example) for example in examples_of(rows, "answered")]
        _check_readable("answered", range(len(prompts)), by_row.read(policy, prompts))
        draws = [by_row.Draw((seed, row), temperature) for row in range(len(prompts))]
        return [drawn.text for drawn in by_row.answer(policy._replace(data=data), prompts, draws)]

    def score(self, rows: Rows) -> "dict[str, np.ndarray]":
        """The scorer's numbers for the responses that rows bring along; cost > 0 means unsafe.

        Returns:
            {"reward": [B], "cost": [B]}, of the heads that there are; [B, 2] where rows have two responses, in the row's order.

        Raises:
            UserError: this is no scorer, or a row has no response, another number of them than row 0, or cannot be read.
        """
        import numpy as np

        from srlhfv_jax.errors import UserError
        from srlhfv_jax.evaluation import text_scores

        scorer = self._part("scorer", self._scorer)
        examples = examples_of(rows, "scored")
        count = len(examples[0].responses)
        for row, example in enumerate(examples):
            if not example.responses or len(example.responses) != count:
                expected = "expected one or two" if not example.responses else f"row 0 has {count}"
                raise UserError(f"row {row} cannot be scored: it has {len(example.responses)} responses, {expected}")
        answers = _answers(examples)
        _check_readable("scored", [row for row, _ in answers], text_scores.unreadable(scorer, [one for _, one in answers]))
        scores = text_scores.scores(scorer, [one for _, one in answers])
        shape = (len(examples),) if count == 1 else (len(examples), count)
        return {head: np.array([one[head] for one in scores]).reshape(shape) for head in scores[0]}

    def check(self, rows: Rows) -> list[Verdicts]:
        """The guard's verdicts on each row's question, and on the responses that it brings along.

        Raises:
            UserError: this is no guard, it was not trained to judge what a row has, or a row cannot be read.
        """
        from srlhfv_jax.data.rows import asked, histories, prompt_of
        from srlhfv_jax.errors import UserError

        guard = self._part("guard", self._guard)
        examples = examples_of(rows, "checked")
        answers = _answers(examples)
        bare = next((row for row, example in enumerate(examples) if not example.responses), None)
        if guard.output is None and answers:
            raise UserError(f"{self.path} judges questions only, and row {answers[0][0]} has a response: leave it out")
        if guard.input is None and bare is not None:
            raise UserError(f"{self.path} judges answers only, and row {bare} has no response")
        prompts = [prompt_of(example) for example in examples]
        of_answers, responses = [prompts[row] for row, _ in answers], [one.responses[0] for _, one in answers]
        texts = [*((prompt, None) for prompt in prompts), *zip(of_answers, responses, strict=True)]
        _check_readable("checked", [*range(len(prompts)), *(row for row, _ in answers)], guard.unreadable(texts))
        questions = [None] * len(prompts) if guard.input is None else guard.input(*asked(prompts), *histories(prompts))
        verdicts = guard.output(*asked(of_answers), responses, *histories(of_answers)) if answers else []
        by_row: list[tuple[Any, ...]] = [()] * len(prompts)
        for (row, _), verdict in zip(answers, verdicts, strict=True):
            by_row[row] += (verdict,)
        return [Verdicts(*both) for both in zip(questions, by_row, strict=True)]

    def _part(self, kind: str, part: Any) -> Any:
        from srlhfv_jax.errors import UserError

        if part is None:
            called = " or ".join(f".{CALLS[one]}(rows)" for one in self.kinds)
            raise UserError(f"{self.path} is a {' and '.join(self.kinds)}: call {called}, not .{CALLS[kind]}(rows)")
        return part


def load(path: str | Path, *, dtype: str = "float32", batch_size: int = 8, system_prompt: str = "", max_pixels: int = 0) -> Model:
    """Open what a checkpoint is: a guard or score heads where it has them, else a policy.

    Args:
        path: a workdir, an export, a Hugging Face folder or id.
        dtype: of parameters and activations, "float32" or "bfloat16".
        batch_size: rows that are computed together.
        system_prompt, max_pixels: as config.data has them in training, for policies and scorers. A guard brings its own.

    Raises:
        UserError: there is no checkpoint.
    """
    from srlhfv_jax.config import inference, ranges
    from srlhfv_jax.data.loader import single_pass
    from srlhfv_jax.evaluation import by_row, text_scores
    from srlhfv_jax.guard import checks
    from srlhfv_jax.guard.judge import Guard
    from srlhfv_jax.hf import weights
    from srlhfv_jax.hf.load import checkpoint_folder
    from srlhfv_jax.parallel.mesh import one_device
    from srlhfv_jax.parsing import checked
    from srlhfv_jax.runs.few_shapes import Lengths

    checked(ranges.Rows, batch_size, "batch_size")
    checked(ranges.Dtype, dtype, "dtype")
    path, folder = str(path), checkpoint_folder(path)
    mesh, lengths = one_device(), Lengths(SHORTEST, SHORTEST)
    data = single_pass(
        batch_size=batch_size, system_prompt=system_prompt, max_pixels=checked(ranges.CountOrOff, max_pixels, "max_pixels")
    )
    if (folder / weights.GUARD_FILE).is_file():
        guard = Guard.load(path, dtype=dtype, batch_size=batch_size, mesh=mesh, lengths=lengths)
        scorer = text_scores.around(guard.pretrained, data, mesh, lengths) if guard.pretrained.heads else None
        return Model(path, guard=checks.around(guard, mesh), scorer=scorer)
    if (folder / weights.HEADS_FILE).is_file():
        return Model(path, scorer=text_scores.load_scorer(path, data, inference(dtype), mesh, lengths))
    return Model(path, policy=by_row.load_policy(path, data, inference(dtype), mesh, lengths))


def _answers(examples: "Sequence[Example]") -> "list[tuple[int, Example]]":
    """(row, the example with this one response) of every response."""
    return [
        (row, example._replace(responses=(response,))) for row, example in enumerate(examples) for response in example.responses
    ]


def _check_readable(use: str, rows: Sequence[int], reasons: Sequence[Any]) -> None:
    """Raise UserError for the first text, of the row that stands in `rows`, that has a reason why it cannot be read."""
    from srlhfv_jax.data.drops import Unusable
    from srlhfv_jax.errors import UserError

    for row, reason in zip(rows, reasons, strict=True):
        if isinstance(reason, Unusable):
            raise UserError(f"row {row} cannot be {use}: {reason.reason} ({reason.detail})")
