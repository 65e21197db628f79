"""A supervised stage that is measured on held-out rows while it trains: what it logs, answers and exports, killed or not."""

import json

import numpy as np
import pytest
import tiny_hf
from tiny_stages import numbers, settings

from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.cli import flags
from srlhfv_jax.config import GuardConfig, ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.guard import measure
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.supervised import sft

STEPS = 4


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Settings of a random Llama on short rows, at a rate at which it does not end with its best step."""
    folder = tmp_path_factory.mktemp("text")
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("held", 5)):
        words = [[f"w{token}" for token in rng.integers(5, tiny_hf.VOCAB, 7)] for _ in range(count)]
        rows = [{"question": " ".join(row[:3]), "response": " ".join(row[3 : 5 + place % 3])} for place, row in enumerate(words)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {"data.response_length": 8, "data.split": "", "optimizer.learning_rate": 0.3, "optimizer.schedule": "constant"}
    return {"init": str(folder / "llama"), "data.path": str(folder / "train.jsonl"), "steps": STEPS} | lengths


@pytest.fixture(scope="module")
def watched(start):
    held = start["data.path"].replace("train", "held")
    measured = {"evaluation": held, "evaluation_every": 1, "keep_best": "evaluation.loss", "microbatches": 2}
    return start | measured | {"log.samples_every": 2, "log.samples": 3, "checkpoint.every_steps": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, watched):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, sft.run(settings(SFTConfig, "sft", **watched), workdir)


def exported(workdir):
    return load_pretrained(workdir).params["text"]["embed"]["embedding"]


def test_the_best_step_is_exported_with_its_numbers(whole):
    workdir, done = whole
    loss = {line["step"]: line["evaluation.loss"] for line in numbers(workdir) if "evaluation.loss" in line}
    assert list(loss) == list(range(STEPS + 1))
    best = min(range(1, STEPS + 1), key=loss.get)
    assert 1 <= best < STEPS and loss[best] < loss[STEPS]  # or the test shows nothing
    assert (done["best.step"], done["step"], done["evaluation.loss"]) == (best, STEPS, loss[best])
    asked = [json.loads(line) for line in (workdir / same_prompts.FILE).read_text().splitlines()]
    assert [list(row["answers"]) for row in asked] == [["0", "2", "4"]] * 3


def test_what_is_measured_and_answered_changes_no_number_of_the_training(start, whole, tmp_path):
    sft.run(settings(SFTConfig, "sft", **start, microbatches=2), tmp_path)
    trained = [line for line in numbers(whole[0]) if "loss" in line]
    assert numbers(tmp_path) == trained
    assert (exported(tmp_path) != exported(whole[0])).any()  # the last step, and the best


def test_the_held_out_loss_is_that_of_the_training(start, tmp_path):
    """A batch of all rows: step k + 1 begins with the loss that was measured after step k."""
    everything = {"evaluation": start["data.path"], "evaluation_every": 1, "data.batch_size": 12, "microbatches": 3, "steps": 2}
    sft.run(settings(SFTConfig, "sft", **start | everything), tmp_path)
    log = numbers(tmp_path)
    measured, trained = ({line["step"]: line[name] for line in log if name in line} for name in ("evaluation.loss", "loss"))
    assert [measured[0], measured[1]] == pytest.approx([trained[1], trained[2]], rel=1e-5)


def test_the_log_loss_of_a_guard_is_the_mean_surprise():
    """-(ln 0.75 + ln 0.75 + ln 0.5) / 3; a certain mistake is finite."""
    found = measure.log_loss(np.array([0.75, 0.25, 0.5]), np.array([True, False, True]))
    assert found == pytest.approx((2 * np.log(4 / 3) + np.log(2)) / 3)
    assert measure.log_loss(np.array([1.0]), np.array([False])) == pytest.approx(7 * np.log(10))


def test_a_run_killed_between_its_best_evaluation_and_the_checkpoint_exports_the_same(watched, whole, tmp_path, monkeypatch):
    save, best = Manager.save, whole[1]["best.step"]

    def die(manager, step, *rest):
        if step == best:
            raise KeyboardInterrupt
        save(manager, step, *rest)

    wanted = settings(SFTConfig, "sft", **watched)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manager, "save", die)
        sft.run(wanted, tmp_path)
    assert sft.run(wanted, tmp_path) == whole[1]
    for name in ("metrics.jsonl", same_prompts.FILE):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()
    np.testing.assert_array_equal(exported(tmp_path), exported(whole[0]))


@pytest.mark.parametrize("kind, command", [(SFTConfig, "sft"), (ScoresConfig, "scores"), (GuardConfig, "guard")])
def test_a_metric_that_no_stage_has_is_refused_with_those_that_it_has(kind, command):
    given = ["--workdir=W", "--config.evaluation=x", "--config.evaluation_every=5", "--config.keep_best=loss"]
    with pytest.raises(UserError, match="config.keep_best.*evaluation.loss.*loss"):
        flags.stage(command, kind, given, "doc")
