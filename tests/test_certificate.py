"""A certificate's verdict, sentence and needed numbers, from arrays; and what is refused."""

import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import bounds, certificate
from srlhfv_jax.evaluation.certificate import Labels


def claim(kind: str = "probability", budget: float = 0.05, *limits: str, clip: bool = False, method: str = "", confidence=0.95):
    return certificate.claim(kind, budget, confidence, limits, clip=clip, method=method)


def events(count: int, of: int) -> np.ndarray:
    return np.random.default_rng(7).permutation(np.r_[np.ones(count), np.zeros(of - count)])


def test_a_policy_passes_exactly_where_the_exact_bound_is_within_the_budget():
    for count, of, passed in ((0, 59, True), (0, 58, False), (2, 124, True), (2, 123, False)):
        found = certificate.certify(claim(), events(count, of), None)
        assert found.passed is passed and found.numbers["passed"] == passed
        assert found.numbers["upper"] == pytest.approx(bounds.clopper_pearson(count, of, 0.05))
        assert found.sentence.startswith("PASS: with 95 % confidence" if passed else "NO GUARANTEE: with 95 % confidence")


def test_as_many_more_prompts_as_are_named_do_when_they_look_alike():
    found = certificate.certify(claim(), events(0, 40), None)
    assert found.numbers["more_prompts"] == 19 and "about 19 more prompts would do" in found.sentence
    assert certificate.certify(claim(), events(0, 59), None).passed


def test_no_number_of_prompts_does_while_the_mean_is_over_the_budget():
    found = certificate.certify(claim(), events(5, 60), None)
    assert "no number of prompts would do" in found.sentence and "more_prompts" not in found.numbers
    assert "by the judge is at most" in found.sentence


def test_labels_correct_a_scorer_that_overlooks_harm():
    truth = events(60, 400)
    blind = np.where(np.arange(400) % 2, truth, 0.0)  # it finds about half of it
    labels = Labels(tuple(range(200)), truth[:200])
    found = certificate.certify(claim(budget=0.3), blind, labels)
    assert found.numbers["scored"] == pytest.approx(blind.mean()) and found.numbers["bias"] > 0.02
    assert found.numbers["mean"] == pytest.approx(blind.mean() + (truth - blind)[:200].mean())
    assert found.numbers["upper"] == found.numbers["bound.prediction_powered"] > 0.15


def test_labels_alone_are_a_sample_of_their_own():
    found = certificate.certify(claim(), None, Labels(tuple(range(80)), events(0, 80)))
    assert found.passed and found.numbers["labels"] == found.numbers["prompts"] == 80


def test_more_labels_are_asked_for_where_they_would_do_and_more_prompts_where_not():
    scores = events(8, 800)
    few = Labels(tuple(range(30)), scores[:30])
    found = certificate.certify(claim(), scores, few)
    assert not found.passed and "more labels would do" in found.sentence and "more_prompts" not in found.numbers
    assert "by the labels is at most" in found.sentence
    enough = 30 + int(found.numbers["more_labels"])
    assert certificate.certify(claim(), scores, Labels(tuple(range(enough)), scores[:enough])).passed
    both = certificate.certify(claim(budget=0.0125), scores, Labels(tuple(range(400)), scores[:400]))
    assert both.numbers["more_labels"] > 0 and both.numbers["more_prompts"] == pytest.approx(
        2 * both.numbers["more_labels"], rel=0.1
    )


def test_a_mean_cost_is_bounded_by_its_range_and_raised_to_its_lower_end():
    cost = np.array([-3.0, -0.5, 0.25, 1.5])
    assert certificate.statistic(claim("mean", 0.0, "-1", "2"), cost, "x").tolist() == [-1.0, -0.5, 0.25, 1.5]
    assert certificate.statistic(claim("rectified", 0.5, "0", "2"), cost, "x").tolist() == [0.0, 0.0, 0.25, 1.5]
    assert certificate.statistic(claim("probability"), cost, "x").tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="x gives answer 3 a cost of 1.5, above --range=-1,1: no bound holds"):
        certificate.statistic(claim("mean", 0.0, "-1", "1"), cost, "x")
    assert certificate.statistic(claim("mean", 0.0, "-1", "1", clip=True), cost, "x").max() == 1


def test_betting_decides_of_means():
    values = np.random.default_rng(5).uniform(-1, 0.25, 300)
    found = certificate.certify(claim("mean", 0.0, "-1", "1.5"), values, None)
    assert found.passed and found.numbers["upper"] == bounds.betting(values, 0.05, bounds.Interval(-1, 1.5))
    assert "bound.clopper_pearson" not in found.numbers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: claim(budget=1.0), "--budget must lie between 0 and 1, which probability can reach, got 1"),
        (lambda: claim(budget=1.7), "--budget must lie between 0 and 1"),
        (lambda: claim("mean", 3.0, "-1", "2"), "--budget must lie between -1 and 2, which mean can reach, got 3"),
        (lambda: claim("mean", 0.5), "--kind=mean needs --range=LOW,HIGH"),
        (lambda: claim("mean", 0.5, "2", "1"), "the smaller one first"),
        (lambda: claim("mean", 0.5, "0", "inf"), "two finite numbers"),
        (lambda: claim("rectified", 0.5, "-2", "-1"), "give a range that ends above 0"),
        (lambda: claim("probability", 0.5, "0", "2"), "a probability lies between 0 and 1"),
        (lambda: claim("mean", 0.5, "0", "2", method="clopper_pearson"), "is for values of 0 and 1"),
        (lambda: claim(confidence=1.0), "--confidence must lie between 0 and 1"),
        (lambda: certificate.certify(claim(), events(0, 1), None), "at least 2 prompts, got 1"),
        (lambda: certificate.certify(claim(), events(0, 9), Labels((0,), events(0, 1))), "at least 2 labels, got 1"),
        (
            lambda: certificate.certify(claim(), events(0, 9), Labels((0, 2), events(0, 2))),
            "line 2 of answers.jsonl has no label",
        ),
        (lambda: certificate.certify(claim(method="prediction_powered"), events(0, 9), None), "corrects scores by labels"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
