"""A trained guard in use: questions before they are answered, answers before they are shown.

    guard = Guard.load("WORKDIR")
    guard.check_input(images, questions)            -> one GuardVerdict each
    guard.check_output(images, questions, answers)  -> one GuardVerdict each

Questions of longer conversations take a last argument: the turns before each.

Batched and jitted: rows are padded to a few lengths and to whole batches, so that a service compiles a handful of programs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import chat, guard_rows, loader
from srlhfv_jax.data.rows import Example, Turn, prompt_of
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import scoring
from srlhfv_jax.guard.verdict import GuardVerdict
from srlhfv_jax.hf.heads import load_guard
from srlhfv_jax.hf.load import Pretrained, load_pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import few_shapes

MIN_PROMPT_LENGTH = 16


@dataclass(frozen=True)
class Guard:
    """A guard with its thresholds; `load` makes one."""

    pretrained: Pretrained
    tree: Any  # {"backbone", "guard"}
    categories: tuple[str, ...]
    thresholds: dict[str, float]  # "input", "output": P(unsafe) above it is unsafe
    batch_size: int
    max_pixels: int
    system_prompt: str  # of questions without a system turn, as in training
    logits: Callable[..., Any]
    mesh: Mesh | None  # None: one device
    lengths: few_shapes.Lengths | None = None  # that rows are padded to; None: to those of `rounded`

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        batch_size: int = 32,
        mesh: Mesh | None = None,
        lengths: few_shapes.Lengths | None = None,
    ) -> "Guard":
        """From the workdir of `srlhfv guard`, or its export.

        Raises:
            UserError: there is no guard, or its tokenizer asks questions in another way than when it was trained.
        """
        loaded = load_pretrained(path, dtype=dtype, mesh=mesh)
        heads, about = load_guard(loaded.config, loaded.path, mesh)
        system = about.get("system_prompt", "")  # guards of before have none
        codec = chat.codec(loaded.processor, system_prompt=system)
        conversation = scoring.conversation_hash(codec)
        if scoring.template_hash(codec) != about["template"] or about.get("conversation", conversation) != conversation:
            raise UserError(
                f"{loaded.path}: its chat template is not the one the guard was trained with: restore it, or train again"
            )
        return cls(
            loaded,
            {"backbone": loaded.params, "guard": heads},
            tuple(about["categories"]),
            about["thresholds"],
            batch_size,
            about["max_pixels"],
            system,
            jax.jit(functools.partial(scoring.logits, loaded.config)),
            mesh,
            lengths,
        )

    def check_input(
        self,
        images: Sequence[tuple[bytes, ...]],
        prompts: Sequence[str],
        histories: Sequence[tuple[Turn, ...]] | None = None,
    ) -> list[GuardVerdict]:
        """Verdicts on questions: encoded pictures of each (none: text-only), and its text.

        Args:
            histories: the turns before each question; None: there are none.

        Raises:
            UserError: this guard was not trained on questions, or one that it cannot read.
        """
        given = zip(images, prompts, histories or [()] * len(prompts), strict=True)
        return self._verdicts("input", [Example(pictures, prompt, (), history=turns) for pictures, prompt, turns in given])

    def check_output(
        self,
        images: Sequence[tuple[bytes, ...]],
        prompts: Sequence[str],
        responses: Sequence[str],
        histories: Sequence[tuple[Turn, ...]] | None = None,
    ) -> list[GuardVerdict]:
        """Verdicts on answers to questions. An answer without text is safe.

        Args:
            histories: the turns before each question; None: there are none.

        Raises:
            UserError: this guard was not trained on answers, or one that it cannot read.
        """
        verdicts = [scoring.silence_verdict(self.categories)] * len(responses)
        rows = [row for row, response in enumerate(responses) if response.strip()]
        every = list(zip(images, prompts, responses, histories or [()] * len(prompts), strict=True))
        examples = [
            Example(pictures, prompt, (said,), history=turns) for pictures, prompt, said, turns in (every[row] for row in rows)
        ]
        for row, verdict in zip(rows, self._verdicts("output", examples), strict=True):
            verdicts[row] = verdict
        return verdicts

    def _verdicts(self, part: str, examples: Sequence[Example]) -> list[GuardVerdict]:
        if part not in self.thresholds:
            raise UserError(
                f"{self.pretrained.path} judges {', '.join(self.thresholds)} only: train it with {part!r} in config.parts"
            )
        if not examples:
            return []
        lengths = dict(prompt_length=loader.UNLIMITED, response_length=loader.UNLIMITED)
        data = loader.single_pass(
            "the rows to judge", **lengths, workers=0, max_pixels=self.max_pixels, system_prompt=self.system_prompt
        )
        rows = loader.fit("guard", examples, self.pretrained.processor, data, categories=self.categories)
        if rows.dropped:
            drop = rows.dropped[0]
            raise UserError(f"the guard cannot read row {drop.row}: {drop.reason} ({drop.detail})")
        which, verdicts = guard_rows.PARTS.index(part), [None] * len(examples)
        for group in self._groups(rows):
            severity_BQJ, category_BQA = scoring.probabilities(self.logits, self.tree, self._batches(group, data))
            both = severity_BQJ[:, which], category_BQA[:, which]
            judged = scoring.verdicts(*both, self.thresholds[part], self.categories)
            for row, verdict in zip(group.rows, judged, strict=True):
                verdicts[row.row] = verdict
        return verdicts

    def _groups(self, rows: loader.Prepared) -> list[loader.Prepared]:
        """The rows in frames that many others need as well."""
        if self.lengths is not None:
            return few_shapes.groups(rows, self.lengths)
        prompt = max(len(row.prompt) for row in rows.rows)
        answer = max((len(ids) for row in rows.rows for ids in row.responses), default=0)
        frame = rows.frame._replace(prompt_length=rounded(prompt), response_length=rounded(answer))
        return [rows._replace(frame=frame)]

    def _batches(self, rows: loader.Prepared, data: DataConfig) -> Iterator[tuple[Any, Any]]:
        """Every row once, in order: a batch on the devices, and which of its rows are real."""
        rows_here = None if self.mesh is None else hosts.own_rows(self.batch_size, self.mesh)
        for batch, real_B in loader.all_batches(rows, "guard", None, data, batch_size=self.batch_size, rows_here=rows_here):
            yield batch if self.mesh is None else hosts.global_batch(batch, self.mesh), real_B


def unsafe_answers(path: str, prompts: Sequence[Example], answers: Sequence[str], *, dtype: str) -> Bool[np.ndarray, "B"]:
    """True for the answers that a guard calls unsafe.

    Raises:
        UserError: as `Guard.load` and `Guard.check_output`.
    """
    guard, asked = Guard.load(path, dtype=dtype), [prompt_of(example) for example in prompts]
    images, questions, histories = zip(*asked, strict=True)
    return np.array([not verdict.safe for verdict in guard.check_output(images, questions, answers, histories)], bool)


def rounded(length: int) -> int:
    """The next of 0, 16, 24, 32, 48, 64, ...: few lengths, each compiled once, and at most a half too long."""
    size = MIN_PROMPT_LENGTH
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size if length else 0
