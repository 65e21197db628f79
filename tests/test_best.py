"""The best evaluation of a run: which one it is, when no better one is waited for, and what a kill changes of both: nothing."""

import asyncio
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_training as tiny

from srlhfv_jax.config.held_out import METRICS
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts
from srlhfv_jax.training import best, loop

LOWER = best.Rule("evaluation.loss", "lower", 0)
HIGHER = best.Rule("guard.f1", "higher", 2)
LOSS = {
    1: 0.9,
    2: 0.7,
    3: 0.5,
    4: 0.6,
    5: 0.55,
    6: 0.5,
    7: 0.8,
    8: 0.65,
    9: 0.75,
    10: 0.52,
}  # by step: 3 is the first of the best


def follow(rule, values):
    """The best after evaluations at steps 5, 10, ..."""
    found = best.Best()
    for number, value in enumerate(values, 1):
        found = best.after(found, 5 * number, value, best.improves(rule, found, value))
    return found


@pytest.mark.parametrize(
    "rule, values, step, value, later",
    [
        (LOWER, [1.25, 0.5, 0.75], 10, 0.5, 1),
        (HIGHER, [0.25, 0.5, 0.75], 15, 0.75, 0),
        (LOWER, [0.5, 0.5, 0.5], 5, 0.5, 2),  # of equal ones the first
        (LOWER, [math.nan, 0.5, math.nan, -math.inf], 10, 0.5, 2),
        (HIGHER, [math.inf, -0.25], 10, -0.25, 0),
        (LOWER, [math.nan, math.nan], 0, math.nan, 2),
        (LOWER, [], 0, math.nan, 0),
    ],
)
def test_the_best_is_the_first_of_the_best_finite_values(rule, values, step, value, later):
    found = follow(rule, values)
    assert (found.step, found.later) == (step, later) and found.value == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "values, ends", [([0.5, 0.4], False), ([0.5, 0.4, 0.3], True), ([0.5, 0.4, 0.6, 0.6], False), ([], False)]
)
def test_a_run_waits_for_as_many_evaluations_as_its_patience_says(values, ends):
    assert best.exhausted(HIGHER, follow(HIGHER, values)) is ends
    assert not best.exhausted(HIGHER._replace(patience=0), follow(HIGHER, values))


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, 0.25]])
def test_a_best_comes_back_from_its_note_and_not_as_that_of_another_rule(values):
    note = best.to_note(HIGHER, follow(HIGHER, values))
    assert str(best.from_note(HIGHER, note)) == str(follow(HIGHER, values))
    assert best.from_note(HIGHER._replace(patience=7), note) is not None
    assert best.from_note(HIGHER._replace(metric="guard.auroc"), note) is None
    assert best.from_note(HIGHER._replace(rows=("other.jsonl", "")), note) is None
    assert best.from_note(HIGHER, None) is None


def test_a_metric_that_rows_do_not_give_is_refused_with_those_that_they_give():
    with pytest.raises(UserError, match="keep_best=guard.f1 cannot be measured .* one of evaluation.loss, guard.accuracy$"):
        best.value_of(HIGHER, {"guard.accuracy": 0.5, "guard.rows": 7.0, "evaluation.loss": 0.25})


def test_losses_and_errors_are_better_when_they_are_lower():
    assert {name for name, better in METRICS.items() if better == "lower"} == {
        name for name in METRICS if name.endswith(("loss", "error"))
    }


class Run:
    """A tiny run whose evaluations are those of LOSS."""

    def __init__(self, workdir, mesh, rule=LOWER, fail=None):
        self.workdir, self.mesh, self.rule, self.fail = workdir, mesh, rule, fail
        self.evaluated = {}

    def __call__(self, **changes):
        state, notes = tiny.train(
            self.workdir,
            self.mesh,
            evaluate=self.evaluate,
            evaluate_every=1,
            every=4,
            best=self.rule,
            evaluate_first=True,
            **changes,
        )
        return state.params, notes

    def evaluate(self, state, step):
        if step == self.fail:
            raise RuntimeError("gone")
        self.evaluated[step] = hosts.to_host(state.params)
        return {"evaluation.loss": LOSS.get(step, 1.5)}

    def saved(self):
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir() if path.name.isdecimal())


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from srlhfv_jax.config import MeshConfig
    from srlhfv_jax.parallel.mesh import make_mesh

    run = Run(tmp_path_factory.mktemp("whole"), make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)))
    return run, *run()


def test_the_state_of_the_best_evaluation_comes_back_and_its_checkpoint_stays(whole):
    run, params, notes = whole
    same(params, run.evaluated[3])
    assert notes[loop.BEST] == {"metric": "evaluation.loss", "rows": [], "step": 3, "value": 0.5, "later": 7}
    assert run.saved() == [3, 8, 10]  # the newest two, and the best
    assert [row["step"] for row in tiny.rows(run.workdir) if "evaluation.loss" in row] == list(range(11))
    before = (run.workdir / "metrics.jsonl").read_bytes()
    again, notes_again = Run(run.workdir, run.mesh)()
    same(again, params)
    assert notes_again == notes and (run.workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("stopped_at, fail", [(3, None), (5, None), (10, None), (0, 3), (0, 6)])
def test_a_run_that_was_stopped_or_failed_finds_the_same_best(tmp_path, one_device, whole, stopped_at, fail):
    """Stopped at the best, after it and at the end; failed in the evaluation that finds the best, and in a later one."""
    run = Run(tmp_path, one_device, fail=fail)
    with pytest.raises(RuntimeError if fail else loop.Preempted):
        run(stop=lambda step: step == stopped_at)
    run.fail = None
    params, notes = run()
    same(params, whole[1])
    assert notes == whole[2] and (tmp_path / "metrics.jsonl").read_bytes() == (whole[0].workdir / "metrics.jsonl").read_bytes()


def test_a_run_that_died_between_an_evaluation_and_its_checkpoint_finds_the_same_best(tmp_path, one_device, whole, monkeypatch):
    """Before its first checkpoint, at the best and later."""
    save = loop.Manager.save

    def dying(at):
        def die(manager, step, *rest):
            if step == at:
                raise KeyboardInterrupt
            save(manager, step, *rest)

        return die

    run = Run(tmp_path, one_device)
    for at in (1, 3, 8):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop.Manager, "save", dying(at))
            run()
    params, notes = run()
    same(params, whole[1])
    assert notes == whole[2] and (tmp_path / "metrics.jsonl").read_bytes() == (whole[0].workdir / "metrics.jsonl").read_bytes()


def test_a_checkpoint_keeps_the_notes_of_its_own_step(tmp_path, monkeypatch):
    """They are written while the next steps change them."""
    write = ocp.JsonCheckpointHandler._save_fn

    async def late(*arguments):
        await asyncio.sleep(0.2)
        await write(*arguments)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", late)
    manager, notes = loop.Manager(tmp_path, 1, 2), {"best": {"step": 3}}
    manager.save(3, {"x": jax.numpy.ones(2)}, {}, notes)
    notes["best"]["step"] = 4
    assert manager.restore(manager.latest(), {"x": jax.ShapeDtypeStruct((2,), "float32")})[2] == {"best": {"step": 3}}
    manager.close()


def test_patience_ends_a_run_once_and_for_all(tmp_path, one_device, whole, capsys):
    run = Run(tmp_path, one_device, LOWER._replace(patience=2))
    params, notes = run()
    same(params, whole[1])
    assert "no better evaluation.loss in 2 evaluations: training ends at step 5" in capsys.readouterr().err
    assert run.saved() == [3, 4, 5][-3:] and [row["step"] for row in tiny.rows(tmp_path)][-1] == 5
    same(run()[0], params)
    assert max(run.evaluated) == 5
    patient = Run(tmp_path, one_device)  # patience may be given more: the run goes on
    same(patient()[0], whole[1])
    assert (
        min(patient.evaluated) == 6
        and (tmp_path / "metrics.jsonl").read_bytes() == (whole[0].workdir / "metrics.jsonl").read_bytes()
    )


def test_a_best_whose_checkpoint_is_lost_is_sought_anew(tmp_path, one_device, capsys):
    run = Run(tmp_path, one_device)
    with pytest.raises(loop.Preempted):
        run(stop=lambda step: step == 7)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    _, notes = run()
    assert "the best evaluation.loss is sought from step 7 on" in capsys.readouterr().err
    assert (notes[loop.BEST]["step"], notes[loop.BEST]["value"]) == (10, 0.52)
