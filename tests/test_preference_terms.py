"""From labels and numbers of models to what the loss reads: every method's arrays, and its loss, by hand."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stages import settings

from srlhfv_jax.batches import PreferenceBatch
from srlhfv_jax.config import PreferenceConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError
from srlhfv_jax.preference import run as preference, terms
from srlhfv_jax.preference.terms import Numbers


def row(number: int, chosen: int, unsafe) -> Encoded:
    told = Example((), "", ("", ""), chosen=chosen, unsafe=unsafe)
    ids = np.arange(3, dtype=np.int32)
    return Encoded(number, ids, ids, (ids[:2], ids), told, (), ())


ROWS = (row(0, 1, (True, False)), row(1, 0, (False, True)), row(2, 1, (False, False)), row(3, 0, (True, True)))
WINNERS = [1, 0, 1, 0]
UNLABELLED = (row(7, 0, ()),)


def of(**changes) -> PreferenceConfig:
    return settings(PreferenceConfig, "preference", init="sft", **changes)


def column(name: str, made: tuple) -> list:
    return [getattr(one, name) for one in made]


def test_a_plain_method_has_its_scale_and_nothing_else():
    made = terms.make(of(beta=0.35, flip=0.1, offset=0.7, sft_coef=0.25), ROWS, Numbers(np.array([[-3.5, -2.25]] * 4)))
    assert column("winner", made) == WINNERS and column("reference", made) == [(-3.5, -2.25)] * 4
    assert column("scale", made) == [0.35] * 4 and column("sft", made) == [0.25] * 4
    np.testing.assert_allclose(column("offset", made), [0.7] * 4)
    np.testing.assert_allclose(column("flip", made), [0.1] * 4)


def test_an_unsafe_offset_is_for_a_loser_that_is_alone_unsafe_and_against_a_winner_that_is():
    made = terms.make(of(unsafe_offset=2.5), (*ROWS, row(4, 0, (True, False))), Numbers())
    assert column("offset", made) == [2.5, 2.5, 0.0, 0.0, -2.5]


def test_a_target_is_made_of_both_answers_flags():
    bfpo = {"target.safe_winner": 1.5, "target.safe_loser": 0.5, "target.constant": -0.5}
    made = terms.make(of(loss="square", beta=0.2, **bfpo), ROWS, Numbers())
    np.testing.assert_allclose(column("target", made), [1.0 / 0.2, 1.0 / 0.2, 0.5 / 0.2, -0.5 / 0.2])
    made = terms.make(of(loss="square", beta=0.2), ROWS, Numbers())
    np.testing.assert_allclose(column("target", made), [1 / 0.4] * 4)  # IPO


def test_a_margin_is_taken_off_and_the_rest_of_the_weight_divides():
    margins = np.array([[1.5, -0.5], [0.25, 1.0], [-2.0, 1.0], [0.0, 0.0]])
    made = terms.make(of(beta=0.5, **{"margin.path": "m", "margin.weight": 0.2}), ROWS, Numbers(margin_NS=margins))
    gaps = [-2.0, -0.75, 3.0, 0.0]  # winner less loser
    np.testing.assert_allclose(column("offset", made), [0.2 * 0.5 * gap / 0.8 for gap in gaps], atol=1e-12)
    np.testing.assert_allclose(column("scale", made), [0.5 / 0.8] * 4)


def test_scores_say_who_wins_and_how_surely():
    scores = np.array([[0.5, 2.0], [1.0, 1.0], [3.0, -1.0], [-0.5, 0.0]])
    made = terms.make(of(axis="scores", **{"scores.scorer": "s"}), ROWS, Numbers(score_NS=scores))
    assert column("winner", made) == [1, 0, 0, 1]
    np.testing.assert_allclose(column("flip", made), 1 / (1 + np.exp([1.5, 0.0, 4.0, 0.5])), rtol=1e-6)


def test_an_answer_without_a_flag_is_neither_safe_nor_unsafe_for_the_log_and_safe_for_no_method():
    (made,) = terms.make(of(unsafe_offset=2.5), UNLABELLED, Numbers())
    assert made.offset == 0.0
    assert of(unsafe_offset=2.5).reads_flags and not of().reads_flags  # rows without flags are dropped before


@pytest.mark.parametrize("name", ["reference_NS", "margin_NS", "score_NS"])
def test_a_row_with_a_number_that_is_not_finite_is_dropped_and_counted(name):
    values = np.arange(8.0).reshape(4, 2)
    values[2, 1] = np.nan
    codec = dict.fromkeys(("codec", "frame", "room", "pictures"))
    prepared = loader.Prepared("preference", "label", [None] * 4, ROWS, (), Counter(bad_label=1), **codec)
    left, told = terms.finite(prepared, Numbers(**{name: values}))
    assert left.rows == (*ROWS[:2], ROWS[3]) and left.drops == {"bad_label": 1, "non_finite_score": 1}
    assert left.dropped[0].row == 2
    np.testing.assert_array_equal(told._asdict()[name], values[[0, 1, 3]])
    assert terms.finite(left, told) == (left, told)
    with pytest.raises(UserError, match="every pair a number that is not finite"):
        terms.finite(prepared, Numbers(**{name: np.full_like(values, np.inf)}))


REFERENCE = jnp.array([[-4.0, -2.5], [-3.0, -3.5]])
LOGP = jnp.array([[-3.25, -3.0], [-4.5, -2.0]])  # side 1 wins the first row, side 0 the second: h = -1.25 and -3.0
TOKENS = jnp.array([[4.0, 2.0], [3.0, 5.0]])


def batch(**changes) -> PreferenceBatch:
    zero_B = jnp.zeros(2)
    fields = dict.fromkeys(PreferenceBatch._fields) | dict(
        weight_B=jnp.ones(2),
        winner_B=jnp.array([1, 0]),
        unsafe_BS=jnp.array([[1.0, 0.0], [0.5, 0.0]]),
        reference_BS=REFERENCE,
        scale_B=jnp.full(2, 0.4),
        offset_B=zero_B,
        flip_B=zero_B,
        target_B=jnp.array([1.5, -0.5]),
        sft_B=zero_B,
    )
    return PreferenceBatch(**(fields | changes))


def value(config: PreferenceConfig, rows: PreferenceBatch) -> float:
    loss = preference.of_logp(config, LOGP, TOKENS, rows)
    return float(loss.sum / loss.count)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_dpo_is_the_log_sigmoid_of_beta_h():
    assert value(of(), batch()) == pytest.approx(-np.mean(np.log(sigmoid(0.4 * np.array([-1.25, -3.0])))), rel=1e-6)


def test_the_square_loss_fits_h_to_its_target():
    assert value(of(loss="square"), batch()) == pytest.approx(np.mean([(-1.25 - 1.5) ** 2, (-3.0 + 0.5) ** 2]), rel=1e-6)


def test_the_likelihood_of_the_winner_is_added_per_token_and_logged():
    likelihood = np.mean([3.0 / 2, 4.5 / 3])
    plain, weighted = value(of(), batch()), value(of(), batch(sft_B=jnp.full(2, 0.75)))
    assert weighted - plain == pytest.approx(0.75 * likelihood, rel=1e-5)
    total, count = preference.of_logp(of(), LOGP, TOKENS, batch()).metrics["winner_nll"]
    assert float(total / count) == pytest.approx(likelihood, rel=1e-6)


def test_means_divide_both_policies_by_the_tokens():
    ratios = np.array([[0.75 / 4, -0.5 / 2], [-1.5 / 3, 1.5 / 5]])
    h = np.array([ratios[0, 1] - ratios[0, 0], ratios[1, 0] - ratios[1, 1]])
    assert value(of(mean=True), batch()) == pytest.approx(-np.mean(np.log(sigmoid(0.4 * h))), rel=1e-6)


def test_unlearning_reads_no_reference():
    config = of(loss="unlearn", reference="none", axis="safer", forget_coef=0.3, forget_cap=0.5)
    expected = np.mean([3.0 / 2 - 0.3 * min(3.25 / 4, 0.5), 4.5 / 3 - 0.3 * min(2.0 / 5, 0.5)])
    assert value(config, batch()) == pytest.approx(expected, rel=1e-6)
    assert value(config, batch(reference_BS=REFERENCE * 7)) == pytest.approx(expected, rel=1e-6)


def test_without_the_winner_the_other_answer_is_only_forgotten_up_to_the_cap_or_only_learned_without_one():
    config = of(loss="unlearn", reference="none", axis="safer", keep_coef=0.0, forget_coef=1.0, forget_cap=0.5)
    assert value(config, batch()) == pytest.approx(-np.mean([min(3.25 / 4, 0.5), min(2.0 / 5, 0.5)]), rel=1e-6)
    config = of(loss="unlearn", reference="none", axis="safer", keep_coef=0.0, forget_coef=-1.0, forget_cap=0.5)
    assert value(config, batch()) == pytest.approx(np.mean([3.25 / 4, 2.0 / 5]), rel=1e-6)
    with pytest.raises(UserError, match="config.keep_coef and config.forget_coef are both 0"):
        of(loss="unlearn", reference="none", axis="safer", keep_coef=0.0, forget_coef=0.0).check()


def test_a_row_that_fills_a_batch_has_no_part_in_it():
    loss = preference.of_logp(of(), LOGP, TOKENS, batch(weight_B=jnp.array([1.0, 0.0])))
    assert float(loss.count) == 1 and float(loss.sum) == pytest.approx(-np.log(sigmoid(0.4 * -1.25)), rel=1e-6)
    assert float(loss.metrics["share.safe_unsafe"][0]) == 1
