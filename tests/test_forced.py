"""Answers that go on from a forced beginning: the prompt with the tokens behind it, and who declines after them."""

import numpy as np
import pytest
import tiny_data

from srlhfv_jax.data import loader
from srlhfv_jax.data.quickstart import answers
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import forced
from srlhfv_jax.evaluation.answers import make

GIVEN = {0: "use a knife .", 2: "no yes ."}


@pytest.fixture(scope="module")
def prompts():
    data = tiny_data.settings("rows", prompt_length=30, response_length=5, batch_size=2, workers=1)
    rows = [Example((tiny_data.png(7),), f"what is {word} ?", ()) for word in ("a", "it", "this")]
    return loader.fit("prompts", rows, tiny_data.processor(), data)


def test_the_first_tokens_of_the_answer_stand_behind_the_prompt(prompts):
    begun = forced.begun(prompts, GIVEN, 2)
    assert [row.row for row in begun.rows] == [0, 2] and begun.frame.prompt_length == 32
    for row, words in zip(begun.rows, (["use", "a"], ["no", "yes"]), strict=True):
        before, ids = prompts.rows[row.row].prompt, [tiny_data.WORDS.index(word) for word in words]
        assert row.prompt.tolist() == [*before.tolist(), *ids]
        assert row.positions.tolist() == list(range(len(before) + 2))
    (batch, real_B), *_ = loader.all_batches(begun, "prompts", None, tiny_data.settings("rows", batch_size=2), batch_size=2)
    assert real_B.all() and batch.tokens_BP[1, -2:].tolist() == [tiny_data.WORDS.index(word) for word in ("no", "yes")]


def test_none_forced_are_the_prompts_themselves(prompts):
    begun = forced.begun(prompts, GIVEN, 0)
    assert begun.frame == prompts.frame
    for row in begun.rows:
        np.testing.assert_array_equal(row.prompt, prompts.rows[row.row].prompt)
        np.testing.assert_array_equal(row.positions, prompts.rows[row.row].positions)


def test_more_tokens_than_an_answer_has_are_refused(prompts):
    with pytest.raises(UserError, match="cannot begin with 6 tokens: it has at most 5, the response length"):
        forced.begun(prompts, GIVEN, 6)
    with pytest.raises(UserError, match="row 2: an answer cannot begin with 4 tokens of one that has 3"):
        forced.begun(prompts, GIVEN, 4)


def test_who_declines_after_the_forced_tokens_declines():
    rows = [Example((), "?", (), meta={"concept": "knife", "intent": "sneak"})] * 5
    safe = answers.safe_completion("sharp", "knife")
    said = [answers.REFUSAL, f"it : {safe}", f"step one {answers.REFUSAL}", "it : step one then step two .", "sorry , i can"]
    drawn = make(range(5), said, [4] * 5, [True] * 5, 1.0)
    assert forced.declined(rows, drawn) == pytest.approx(3 / 5)
