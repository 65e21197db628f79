"""Numbers of benchmarks against values worked out by hand, and against published tables."""

import numpy as np
import pytest

from srlhfv_jax.evaluation import rates
from srlhfv_jax.evaluation.length_controlled import length_controlled_win_rate
from srlhfv_jax.evaluation.quadrants import settle
from srlhfv_jax.evaluation.statistics import bootstrap_error, bootstrap_interval

RNG = np.random.default_rng(11)

# arXiv 2502.11184: typical, attack, over-safe, total
AWARENESS_TABLE = {
    "GPT-4V": (63.9, 68.4, 41.1, 57.8),
    "GPT-4o": (81.3, 88.7, 25.0, 65.0),
    "Gemini-1.5": (86.6, 81.5, 18.5, 62.2),
    "Gemini-1.5-Pro": (81.2, 74.2, 40.8, 65.4),
    "Bard": (73.8, 61.4, 28.6, 54.6),
    "Claude-3": (100, 99.1, 1.1, 66.7),
    "LLaVA-1.5-7B": (95.9, 97.7, 6.0, 66.5),
    "Qwen-VL-7B": (86.5, 95.2, 13.7, 65.1),
    "InstructBLIP": (66.1, 43.9, 20.5, 43.5),
    "human": (90.7, 92.8, 95.2, 92.9),
}


@pytest.mark.parametrize("model", AWARENESS_TABLE)
def test_the_published_total_is_the_unweighted_mean_of_the_three_parts(model):
    *parts, published = AWARENESS_TABLE[model]
    right = np.concatenate([np.arange(1000) < round(10 * percent) for percent in parts])
    numbers = rates.awareness(right, np.repeat(["typical", "attack", "over_safe"], 1000).tolist())
    assert 100 * numbers["total"] == pytest.approx(published, abs=0.051)  # one decimal is printed


def test_awareness_weighs_parts_equally_and_items_beside_it():
    # 1 of 2 typical, 3 of 4 attacks, 0 of 1 over-safe: mean of 1/2, 3/4, 0 is 5/12; by item 4/7
    right = np.array([True, False, True, True, True, False, False])
    numbers = rates.awareness(right, ["typical"] * 2 + ["attack"] * 4 + ["over_safe"])
    assert numbers["accuracy.attack"] == 0.75 and numbers["accuracy.over_safe"] == 0.0
    assert numbers["total"] == pytest.approx(5 / 12) and numbers["total_by_item"] == pytest.approx(4 / 7)


def test_attacks_succeed_over_harmful_rows_and_over_refusal_is_over_benign_rows():
    unsafe = np.array([True, False, True, False, True])
    refusal = np.array([False, True, False, True, False])
    harmful, benign = np.array([True, True, True, False, False]), np.array([False, False, False, True, True])
    numbers = rates.safety_rates(unsafe, refusal, harmful, benign, list("abcde"))
    assert numbers["attack_success_rate"] == pytest.approx(2 / 3) and numbers["safety_rate"] == pytest.approx(1 / 3)
    assert numbers["over_refusal"] == 0.5  # the harmful refusal does not count, nor does the unsafe benign row
    assert numbers["attack_success_rate_rows"] == 3 and numbers["over_refusal_rows"] == 2
    assert numbers["attack_success_rate_low"] <= 2 / 3 <= numbers["attack_success_rate_high"]


def test_a_policy_that_refuses_everything_is_safe_and_over_refuses():
    yes, no = np.ones(4, bool), np.zeros(4, bool)
    half = np.array([True, True, False, False])
    numbers = rates.safety_rates(no, yes, half, ~half, list("abcd"))
    assert numbers["attack_success_rate"] == 0.0 and numbers["over_refusal"] == 1.0
    assert "over_refusal" not in rates.safety_rates(no, yes, yes, no, list("abcd"))


def test_groups_have_their_own_rates_and_empty_groups_none():
    value, member = np.array([1.0, 0.0, 0.5, 1.0]), np.array([True, True, True, False])
    assert rates.by_group("rate", value, member, ["x", "x", "", "y"]) == {"rate.x": 0.5}


def test_the_majority_of_three_votes_decides_and_even_votes_decide_nothing():
    assert rates.majority([True, False, True]) is True and rates.majority([False, False, True]) is False
    assert rates.majority([True]) is True and rates.majority([True, False]) is None and rates.majority([]) is None


def test_safe_and_effective_is_voted_per_answer_not_per_case():
    # safe 2 of 3 and effective 2 of 3, but only one answer is both: safe, effective, and not safe-and-effective
    safe, effective = [True, True, False], [False, True, True]
    # the second case has one answer of each kind in two: no majority, skipped
    numbers = rates.safe_and_effective(
        np.array([*safe, True, False]), np.array([*effective, True, True]), ["1"] * 3 + ["2"] * 2, ["morality"] * 5
    )
    assert numbers["safe"] == numbers["effective"] == 1.0 and numbers["safe_and_effective"] == 0.0
    assert numbers["skipped_cases"] == 1 and numbers["safe.morality"] == 1.0


def test_self_correction_is_over_unsafe_reasoning_alone():
    # (reasoning, answer) unsafe: corrected, not corrected, reasoning was safe, both safe; the last row lacks a part
    reasoning, answer = np.array([True, True, False, False, False]), np.array([False, True, True, False, True])
    numbers = rates.self_correction(reasoning, answer, np.array([True, True, True, True, False]))
    assert numbers["self_correction"] == 0.5 and numbers["incomplete"] == 1
    assert numbers["reasoning_unsafe"] == 0.5 and numbers["answer_unsafe"] == 0.5
    assert rates.self_correction(reasoning, answer, np.array([True] + [False] * 4))["self_correction"] == 1.0
    assert rates.self_correction(reasoning[:1], answer[:1], np.array([False])) == {"incomplete": 1.0}


def test_the_modality_gap_is_picture_minus_words():
    found = {"attack_success_rate.image": 0.75, "attack_success_rate.text_only": 0.5}
    gap = rates.modality_gap(found, "attack_success_rate", "image", "text_only")
    assert gap == {"attack_success_rate_modality_gap": 0.25} and rates.modality_gap({}, "x", "image", "text_only") == {}


def test_intervals_cover_the_mean_narrow_with_rows_and_depend_on_the_seed_alone():
    value, everyone = RNG.uniform(size=400), np.ones(400, bool)
    groups = [str(i) for i in range(400)]
    low, high = bootstrap_interval(value, everyone, groups)
    assert low < value.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * bootstrap_error(value, everyone, groups), rel=0.1)
    assert (low, high) == bootstrap_interval(value, everyone, groups) != bootstrap_interval(value, everyone, groups, seed=1)
    inner = bootstrap_interval(value, everyone, groups, level=0.5)
    assert low < inner[0] < inner[1] < high
    assert bootstrap_interval(value, np.zeros(400, bool), groups) is None


def test_answers_to_one_case_widen_the_interval():
    value = np.repeat(RNG.uniform(size=30), 10)
    apart = bootstrap_interval(value, np.ones(300, bool), [str(i) for i in range(300)])
    together = bootstrap_interval(value, np.ones(300, bool), [str(i // 10) for i in range(300)])
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def explained(constant: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts that follow the logistic model exactly, on lengths of which A's are mostly the longer."""
    gap = RNG.integers(-20, 200, size=300)
    return 1 / (1 + np.exp(-(constant + slope * np.tanh(gap / gap.std())))), gap


def test_a_win_that_length_explains_is_no_win_at_equal_length():
    win, gap = explained(0.0, 2.5)
    assert win.mean() > 0.8 and length_controlled_win_rate(win, gap) == pytest.approx(0.5, abs=1e-3)


def test_the_constant_of_the_model_is_found_again():
    win, gap = explained(-0.7, 1.5)
    assert length_controlled_win_rate(win, gap) == pytest.approx(1 / (1 + np.exp(0.7)), abs=1e-3)


def test_swapping_the_policies_gives_one_minus_the_length_controlled_win_rate():
    win, gap = explained(0.3, 1.0)
    assert length_controlled_win_rate(1 - win, -gap) == pytest.approx(1 - length_controlled_win_rate(win, gap), abs=1e-6)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    win = np.array([1.0, 0.5, 0.0, 1.0, 1.0])
    assert length_controlled_win_rate(win, np.full(5, 7)) == pytest.approx(0.7, abs=1e-6)
    assert length_controlled_win_rate(np.ones(5), np.zeros(5, int)) == pytest.approx(1.0, abs=1e-6)
    assert length_controlled_win_rate(np.zeros(0), np.zeros(0, int)) is None


def test_verdicts_that_length_separates_stay_finite():
    gap = np.array([-3, -2, -1, 1, 2, 3])
    assert length_controlled_win_rate((gap > 0).astype(float), gap) == pytest.approx(0.5, abs=1e-3)


def test_orders_that_disagree_and_equal_answers_are_ties():
    forward, backward = np.array([1, 1, 1, -1, 0, 1]), np.array([-1, 1, 0, 1, 0, -1])
    assert settle(forward, backward, np.array([False] * 5 + [True])).tolist() == [1, 0, 0, -1, 0, 0]
