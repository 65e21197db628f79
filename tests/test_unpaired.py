"""KTO: answers of other rows by content, the baseline of a whole batch, the loss by hand, and the stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stages import numbers as lines, rows, same_numbers, settings, supervised_and_pairs, write_rows

from srlhfv_jax.batches import PreferenceBatch, Unpaired
from srlhfv_jax.config import PreferenceConfig, unread
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError
from srlhfv_jax.preference import run as preference, unpaired


class Rows(tuple):
    """Prepared rows, as far as `with_others` looks."""

    rows = property(lambda self: self)

    def _replace(self, rows):
        return Rows(rows)


def row(question: int, *answers: int, unsafe=(None, None)) -> Encoded:
    prompt, *ids = (np.array([number, 1], np.int32) for number in (question, *answers))
    told = Example((), "", ("", ""), unsafe=unsafe)
    return Encoded(question, prompt, prompt, tuple(ids), told, (), ())


ROWS = Rows(row(number // 2, 100 + number, 200 + number) for number in range(24))  # two of each prompt


def test_the_third_answer_of_a_row_is_one_to_another_prompt_and_content_decides_which():
    given = unpaired.with_others(ROWS, 3)
    asked = {one.responses[side][0]: one.row for one in ROWS for side in (0, 1)}
    assert all(new.responses[:2] == old.responses for new, old in zip(given, ROWS))
    assert all(asked[one.responses[2][0]] != one.row for one in given)
    third = {one.responses[0][0]: one.responses[2][0] for one in given}
    assert len(set(third.values())) > 8  # not one for all
    turned = unpaired.with_others(Rows(ROWS[::-1]), 3)
    assert {one.responses[0][0]: one.responses[2][0] for one in turned} == third
    assert {one.responses[0][0]: one.responses[2][0] for one in unpaired.with_others(ROWS, 4)} != third
    more = unpaired.with_others(Rows((*ROWS, row(77, 900, 901))), 3)
    assert sum(third[one.responses[0][0]] != one.responses[2][0] for one in more[:-1]) <= 2


def test_rows_of_one_prompt_have_no_answer_to_another():
    with pytest.raises(UserError, match="all 3 rows have one prompt"):
        unpaired.with_others(Rows(row(5, 10 + number, 20 + number) for number in range(3)), 0)


def test_unsafe_answers_weigh_as_much_as_safe_ones_or_as_given():
    flags = [(False, False), (False, True), (None, True), (True, True)]
    some = [row(number, 1, 2, unsafe=both) for number, both in enumerate(flags)]
    assert unpaired.undesirable_weight(0.0, some) == 3 / 4
    assert unpaired.undesirable_weight(1.25, some) == 1.25
    for kind in (some[:1], some[3:]):
        with pytest.raises(UserError, match="needs answers labelled safe and answers labelled unsafe"):
            unpaired.undesirable_weight(1.25, kind)


LOGP = jnp.array([[-3.25, -3.0], [-4.5, -2.0], [-9.0, -1.0]])
OTHER = jnp.array([-6.5, -7.25, 40.0])
BATCH = PreferenceBatch(**dict.fromkeys(PreferenceBatch._fields))._replace(
    weight_B=jnp.array([1.0, 1.0, 0.0]),
    unsafe_BS=jnp.array([[0.0, 1.0], [0.5, 0.0], [0.0, 1.0]]),
    reference_BS=jnp.array([[-4.0, -2.5], [-3.0, -3.5], [0.0, 0.0]]),
    scale_B=jnp.full(3, 0.4),
    unpaired=Unpaired(None, jnp.array([-7.5, -7.5, 0.0]), jnp.full(3, 1.75), jnp.zeros(3)),
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_loss_by_hand():
    """Log-ratios 0.75 (safe), -0.5 (unsafe), 1.5 (safe); those of other answers 1.0 and 0.25: z = 0.625. The last row fills the batch."""
    batch = unpaired.at_baseline(BATCH, OTHER)
    np.testing.assert_allclose(batch.unpaired.baseline_B, 0.625)
    loss = unpaired.loss(LOGP, batch)
    assert float(loss.count) == 3
    parts = [1 - sigmoid(0.4 * 0.125), 1.75 * (1 - sigmoid(0.4 * 1.125)), 1 - sigmoid(0.4 * 0.875)]
    assert float(loss.sum) == pytest.approx(sum(parts), rel=1e-6)
    told = {name: float(total / count) for name, (total, count) in loss.metrics.items()}
    expected = {"accuracy": 1.0, "desirable_log_ratio": 1.125, "undesirable_log_ratio": -0.5, "share.desirable": 2 / 3}
    assert told == pytest.approx(expected | {"kto_baseline": 0.625})


def test_the_baseline_is_never_below_zero_and_has_no_gradient():
    np.testing.assert_array_equal(unpaired.at_baseline(BATCH, OTHER - 3.0).unpaired.baseline_B, 0.0)

    def total(shift):
        return unpaired.loss(LOGP, unpaired.at_baseline(BATCH, OTHER + shift)).sum

    assert float(jax.grad(total)(0.5)) == 0.0 and float(total(0.5)) != float(total(0.0))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A supervised policy, and pairs of which some answers have a flag."""
    pairs = task_rows.probe_rows(3, task_rows.split_cells(0), "train", 24, task_rows.Noise())
    return supervised_and_pairs(tmp_path_factory.mktemp("task"), pairs)


def of(task, **changes) -> PreferenceConfig:
    given = rows(task) | {"data.path": str(task / "pairs.parquet"), "data.batch_size": 8, "optimizer.learning_rate": 1e-3}
    chosen = {"axis": "each", "loss": "kto", "steps": 3, "init": str(task / "sft")}
    return settings(PreferenceConfig, "preference", **(given | chosen | changes))


@pytest.fixture(scope="module")
def done(task):
    return preference.run(of(task, evaluation=str(task / "pairs.parquet")), task / "kto")


def test_training_starts_at_no_log_ratio_and_half_of_each_weight(task, done, capfd):
    first = next(line for line in lines(task / "kto") if "loss" in line)
    assert abs(first["kto_baseline"]) < 1e-4 and abs(first["desirable_log_ratio"]) < 1e-4
    share = first["share.desirable"]
    weight = unpaired.undesirable_weight(0.0, preference._prepare(of(task), {"data": of(task).data})["data"].rows)
    assert weight != 1 and first["loss"] == pytest.approx(0.5 * (share + weight * (1 - share)), rel=1e-4)
    assert (
        done["evaluation.loss"] < 0.75 and 0 < done["evaluation.accuracy"] <= 1
    )  # 18 safe answers in 24, which weigh as much: 0.75


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"microbatches": 2}, {"mesh.fsdp": 8}, {"mesh.fsdp": 4, "microbatches": 2}])
def test_parts_of_a_batch_and_devices_change_nothing(task, done, tmp_path, changes):
    """The baseline is of the whole batch: two parts with baselines of their own would differ in the second digit."""
    preference.run(of(task, evaluation=str(task / "pairs.parquet"), **changes), tmp_path / "run")
    one, other = (lines(folder) for folder in (tmp_path / "run", task / "kto"))
    for line in (one[0], other[0]):
        del line["accuracy"]  # every log-ratio is the baseline, up to rounding
    same_numbers(one, other, 2e-3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"axis": "safer"}, "config.axis 'each' and config.loss 'kto' go together"),
        ({"loss": "square"}, "config.axis 'each' and config.loss 'kto' go together"),
        ({"reference": "none"}, "config.loss is 'kto', whose log-ratios are measured from a reference"),
        ({"sft_coef": 1.0}, "config.sft_coef is 1.0 and would be ignored"),
        (
            {"loss": "logistic", "axis": "safer", "undesirable_weight": 2.0},
            "config.undesirable_weight is 2.0 and would be ignored",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(task, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        preference.run(of(task, **changes), tmp_path / "run")


@pytest.mark.parametrize("changes", [{"blind": "x.jsonl"}, {"tokens.scorer": "x"}, {"transform": "safedpo"}, {"mean": True}])
def test_what_compares_two_answers_is_refused(task, changes):
    with pytest.raises(UserError, match="would be ignored: config.loss is 'kto', which compares no two answers"):
        unread.check(of(task, **changes))


def test_answers_of_one_kind_and_rows_without_a_flag_are_told(task, tmp_path, capfd):
    pairs = [{"question": f"how {number} ?", "responses": ["so", "not so"], "unsafe": [False, None]} for number in range(4)]
    write_rows(tmp_path / "safe.parquet", [*pairs, {"question": "why ?", "responses": ["so", "not so"], "unsafe": [None, None]}])
    with pytest.raises(UserError, match="the rows have 4 safe and 0 unsafe ones"):
        preference.run(of(task, **{"data.path": str(tmp_path / "safe.parquet"), "data.batch_size": 4}), tmp_path / "run")
    assert "4 of 5 rows used as preference; missing_safety_label 1" in "".join(capfd.readouterr())
