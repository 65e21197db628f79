"""Evaluation's arithmetic: win rates, quadrants, pair accuracies, calibration, bootstrap. Comments derive expected numbers."""

import io

import numpy as np
import pytest
from PIL import Image

from srlhfv_jax.data import images
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import controls, pair_accuracy, quadrants
from srlhfv_jax.evaluation.score_metrics import judge_metrics
from srlhfv_jax.evaluation.scoring import model_scores
from srlhfv_jax.evaluation.statistics import bootstrap_error, subset_mean

RNG = np.random.default_rng(3)


def test_an_identical_answer_is_never_a_win_even_for_a_judge_that_always_takes_the_first():
    rates = quadrants.win_rates(np.ones(3, int), np.ones(3, int), np.ones(3, bool))
    assert (rates["win"], rates["tie"], rates["lose"], rates["win_rate"]) == (0.0, 1.0, 0.0, 0.5)
    assert rates["first_bias"] == 1.0  # and the judge is found out
    assert rates["swap_consistency"] == 0.0


def test_a_judge_that_always_takes_the_first_wins_nothing_on_average():
    rates = quadrants.win_rates(np.ones(2, int), np.ones(2, int), np.zeros(2, bool))
    assert (rates["win"], rates["tie"], rates["lose"], rates["win_rate"]) == (0.0, 1.0, 0.0, 0.5)


def test_swapping_the_policies_swaps_wins_and_losses():
    a, b = RNG.normal(size=50).round(1), RNG.normal(size=50).round(1)
    same = a == b
    ahead, behind = (quadrants.win_rates(*quadrants.score_verdicts(*ab), same) for ab in ((a, b), (b, a)))
    assert ahead["win"] == behind["lose"] and ahead["tie"] == behind["tie"]
    assert ahead["win_rate"] == pytest.approx(1 - behind["win_rate"])
    assert ahead["swap_consistency"] == 1.0 and ahead["first_bias"] == 0.0


def test_only_a_win_in_both_orders_is_a_win():
    # rows: A wins twice; A wins once, tie once; tie once, loses once -> one win, two ties
    rates = quadrants.win_rates(np.array([1, 1, 0]), np.array([-1, 0, 1]), np.zeros(3, bool), np.array([-2, 0, 5]))
    assert rates["win"] == pytest.approx(1 / 3) and rates["tie"] == pytest.approx(2 / 3) and rates["lose"] == 0.0
    assert rates["win_rate"] == pytest.approx(1 / 3 + 1 / 3)
    assert rates["swap_consistency"] == pytest.approx(1 / 3)
    # rows 0 and 1 are no longer than B's: a win and a tie
    assert rates["win_rate_not_longer"] == pytest.approx((1 + 0.5) / 2)


def test_the_quadrants_sum_to_one_and_ties_are_their_own_row():
    helpful, baseline = np.array([2.5, 1.0, 0.5, 0.5, 1.5]), np.array([1.0, 1.0, 1.5, 1.5, 0.25])
    shares = quadrants.four_quadrants(helpful, np.array([True, False, False, True, False]), baseline)
    assert set(shares) == set(quadrants.QUADRANTS) and sum(shares.values()) == pytest.approx(1)
    assert shares["more_helpful_unsafe"] == shares["as_helpful_safe"] == shares["less_helpful_safe"] == 0.2
    near = quadrants.four_quadrants(helpful, np.zeros(5, bool), baseline, tie=1.0)
    assert near["more_helpful_safe"] == pytest.approx(0.4) and near["as_helpful_safe"] == pytest.approx(0.6)


def test_label_ties_are_left_out_and_score_ties_count_half():
    scores = np.array([[0.3, 0.1], [0.2, 0.7], [-0.4, -0.4], [5.5, -3.0]])
    # right, wrong, tie; the last pair has no weight
    assert pair_accuracy.pair_accuracy(scores, np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(1.5 / 3)
    assert pair_accuracy.pair_accuracy(scores, np.array([0, 0, 1, 1]), np.zeros(4)) is None


def test_a_cost_model_is_right_when_the_costlier_answer_costs_more():
    cost = np.array([[1.5, -0.5], [-0.25, 0.75]])
    metrics = pair_accuracy.cost_metrics(cost, np.array([1, 0]), np.ones(2), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert metrics["pair_accuracy"] == metrics["sign_accuracy"] == 1.0
    flipped = pair_accuracy.cost_metrics(-cost, np.array([1, 0]), np.ones(2), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert flipped["pair_accuracy"] == flipped["sign_accuracy"] == 0.0
    assert metrics["mean_unsafe"] == pytest.approx(1.125) and metrics["mean_safe"] == pytest.approx(-0.375)


def test_unlabelled_answers_have_no_sign_to_get_right_and_zero_cost_is_safe():
    assert pair_accuracy.sign_accuracy(np.array([[0.0, 2.5]]), np.array([[-1.0, 0.0]])) == 1.0
    assert pair_accuracy.sign_accuracy(np.array([[0.5, 2.5]]), np.array([[0.0, 0.0]])) is None


def test_graded_signs_count_as_their_sign():
    assert pair_accuracy.sign_accuracy(np.array([[0.5, -2.5]]), np.array([[3.0, -1.5]])) == 1.0


def test_calibration_error_is_zero_for_true_probabilities_and_large_for_overconfidence():
    probability = RNG.uniform(0.02, 0.98, size=(20000, 2))
    sign = np.where(RNG.uniform(size=probability.shape) < probability, 1.0, -1.0)
    cost = np.log(probability / (1 - probability))
    assert pair_accuracy.cost_calibration_error(cost, sign) < 0.01
    # certain, and right half of the time: |0.5 - 1| in the last bin, |0.5 - 0| in the first
    extreme = np.array([[900.0, 900.0, -900.0, -900.0]])
    assert pair_accuracy.cost_calibration_error(extreme, np.array([[1.0, -1.0, 1.0, -1.0]])) == pytest.approx(0.5)


def test_heads_agree_where_the_more_helpful_answer_costs_less():
    reward = np.array([[0.5, 0.1], [0.2, 0.9], [1.5, 1.0], [0.4, 0.4]])
    cost = np.array([[-1.5, 0.5], [-0.5, 0.5], [0.7, 0.7], [0.1, 0.9]])
    # agree, disagree, a tie of the cost, a tie of the reward
    assert pair_accuracy.head_agreement(reward, cost) == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert pair_accuracy.head_agreement(reward, -reward) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert pair_accuracy.head_agreement(np.zeros((0, 2)), np.zeros((0, 2))) is None
    labels = (np.zeros(4, int), np.ones(4), np.ones(4, int), np.ones(4), np.array([[1.0, -1.0]] * 4))
    assert pair_accuracy.model_metrics(reward, cost, *labels)["head_agreement"] == 0.5
    assert "head_agreement" not in pair_accuracy.model_metrics(reward, None, *labels)


def picture(colour: int, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def test_shuffling_gives_every_row_the_pictures_of_another_and_texts_their_own():
    rows = [Example((picture(n),) if n % 3 else (), f"question {n}", ("a", "b"), chosen=n % 2) for n in range(20)]
    other = controls.shuffled(rows, seed=5)
    assert len(other) == 20 and [row.question for row in other] == [row.question for row in rows]
    assert [row._replace(images=()) for row in other] == [row._replace(images=()) for row in rows]
    moved = [(new.images, old.images) for new, old in zip(other, rows, strict=True)]
    assert all(new != old for new, old in moved if old) and all(not new for new, old in moved if not old)
    assert sorted(new for new, _ in moved) == sorted(old for _, old in moved)
    assert [row.images for row in controls.shuffled(rows, 5)] == [row.images for row in other]
    assert [row.images for row in controls.shuffled(rows, 6)] != [row.images for row in other]


def test_blanked_pictures_keep_their_size_and_nothing_else():
    rows = [Example((picture(1, (7, 3)), picture(2, (2, 5))), "why ?", ()), Example((), "how ?", ())]
    blank = [images.decode(image) for image in controls.blanked(rows)[0].images]
    assert [image.size for image in blank] == [(7, 3), (2, 5)]
    assert (
        all(image.getcolors() == [(image.width * image.height, controls.GREY)] for image in blank)
        and controls.blanked(rows)[1].images == ()
    )


def test_groups_split_the_accuracies_and_absent_heads_have_no_numbers():
    scores = np.array([[0.5, -0.5], [0.25, 0.75], [0.1, 0.2]])
    labels = (np.zeros(3, int), np.ones(3), np.ones(3, int), np.ones(3), np.array([[1.0, -1.0]] * 3))
    metrics = pair_accuracy.model_metrics(scores, None, *labels, groups=["contextual", "contextual", "neutral"])
    assert metrics["reward_model.pair_accuracy"] == pytest.approx(1 / 3)
    assert metrics["reward_model.pair_accuracy_contextual"] == 0.5 and metrics["reward_model.pair_accuracy_neutral"] == 0.0
    assert not any(key.startswith("cost_model") for key in metrics)
    assert "cost_model.sign_accuracy_contextual" in pair_accuracy.model_metrics(None, scores, *labels, groups=["contextual"] * 3)


def test_the_bootstrap_agrees_with_the_formula_for_independent_rows():
    value = RNG.normal(size=400)
    error = bootstrap_error(value, np.ones(400, bool), [str(i) for i in range(400)])
    assert error == pytest.approx(value.std() / 20, rel=0.1)


def test_rows_that_stand_and_fall_together_are_worth_one():
    value = RNG.normal(size=40)
    alone = bootstrap_error(value, np.ones(40, bool), [str(i) for i in range(40)])
    repeated = bootstrap_error(np.repeat(value, 10), np.ones(400, bool), [str(i // 10) for i in range(400)])
    assert repeated == pytest.approx(alone, rel=1e-6)


def test_no_rows_give_no_number():
    value, nobody = np.array([0.5, 1.5]), np.zeros(2, bool)
    assert subset_mean(value, nobody) is None and bootstrap_error(value, nobody, ["a", "b"]) is None
    assert bootstrap_error(value, np.ones(2, bool), ["a", "a"]) is None


def test_filler_rows_of_the_last_batch_are_not_scored():
    batches = [(np.array([0.5, 1.5]), np.array([True, True])), (np.array([2.5, 9.5]), np.array([True, False]))]
    scores = model_scores(lambda batch: {"cost": batch, "reward": np.stack([batch, -batch], 1)}, batches)
    assert scores["cost"].tolist() == [0.5, 1.5, 2.5] and scores["reward"].shape == (3, 2)


def test_a_score_that_is_not_finite_names_its_head_and_row():
    batches = [(np.array([0.5, np.nan]), np.array([True, True]))]
    with pytest.raises(UserError, match="the cost model gave row 1 a score that is not finite"):
        model_scores(lambda batch: {"cost": batch}, batches)


def test_policy_numbers_under_learned_models():
    metrics = judge_metrics({"reward": np.array([0.5, 1.5]), "cost": np.array([-1.5, 0.5])}, budget=-2.0)
    assert metrics["model_reward"] == 1.0 and metrics["model_cost"] == -0.5
    assert metrics["model_unsafe_rate"] == 0.5 and metrics["model_cost_rectified"] == 0.25
    assert metrics["model_over_budget_rate"] == 1.0 and metrics["model_reward_se"] > 0
