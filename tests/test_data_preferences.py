"""Who wins a pair: by axis and transform, and every reason for which a pair takes no part."""

import pytest

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.preferences import Choice, decided
from srlhfv_jax.data.rows import Example


def pair(chosen=0, safer=1, unsafe=(True, False), **changes) -> Example:
    return Example((), "how?", ("so", "not so"), chosen=chosen, safer=safer, unsafe=unsafe, **changes)


def winner(example: Example, axis: str, transform: str = "none", flags: bool = False) -> int:
    return decided(example, Choice(axis, transform, flags)).chosen


def reason(example: Example, axis: str, transform: str = "none", flags: bool = False) -> str:
    with pytest.raises(Unusable) as dropped:
        decided(example, Choice(axis, transform, flags))
    return dropped.value.reason


def test_the_axis_says_who_wins():
    assert winner(pair(), "helpful") == 0 and winner(pair(), "safer") == 1
    assert winner(pair(chosen=None, safer=None, unsafe=()), "scores") == 0  # until scores are there


def test_ties_and_missing_labels_are_told_apart():
    assert reason(pair(chosen=None, helpful_tie=True), "helpful") == "helpful_tie"
    assert reason(pair(safer=None, safety_tie=True), "safer") == "safety_tie"
    assert reason(pair(chosen=None), "helpful") == reason(pair(safer=None), "safer") == "missing_label"
    assert winner(pair(safer=None, safety_tie=True), "helpful") == 0  # the other axis is nobody's business
    assert reason(Example((), "how?", ("so",), chosen=None), "helpful") == "missing_response"


@pytest.mark.parametrize(
    "unsafe, expected",
    [((False, False), 0), ((False, True), 0), ((True, False), 1), ((True, True), "both_unsafe")],
)
def test_safedpo_keeps_a_safe_winner_turns_an_unsafe_one_round_and_drops_two_unsafe_ones(unsafe, expected):
    asked = (pair(safer=None, unsafe=unsafe), "helpful", "safedpo")
    assert (winner(*asked) if isinstance(expected, int) else reason(*asked)) == expected


@pytest.mark.parametrize("unsafe, expected", [((False, True), 0), ((False, None), 0), ((True, False), "unsafe_winner")])
def test_safe_winner_drops_a_pair_whose_winner_is_unsafe(unsafe, expected):
    asked = (pair(safer=None, unsafe=unsafe), "helpful", "safe_winner")
    assert (winner(*asked) if isinstance(expected, int) else reason(*asked)) == expected


@pytest.mark.parametrize("unsafe", [(None, False), (False, None), ()])
def test_a_missing_flag_is_not_safe(unsafe):
    unlabelled = pair(safer=None, unsafe=unsafe)
    assert reason(unlabelled, "helpful", "safedpo") == "missing_safety_label"
    assert reason(unlabelled, "helpful", flags=True) == "missing_safety_label"
    assert winner(unlabelled, "helpful") == 0


def test_nothing_but_the_winner_is_left_of_the_preferences():
    left = decided(pair(severity=(2.0, -1.0)), Choice("safer", "none", False))
    assert (left.chosen, left.safer, left.severity, left.unsafe) == (1, None, (), (True, False))
