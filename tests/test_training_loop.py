"""The loop that all stages share: resume, kill, SIGTERM, non-finite numbers, what is logged and when."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training as tiny

from srlhfv_jax import signals
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.training import compiles, loop, metrics


def assert_same_bits(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(workdir, final state, notes) of one run from start to end."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, *tiny.train(workdir, make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)))


@pytest.mark.parametrize("stopped_at", [4, 9, 10])
def test_resume_equals_uninterrupted(tmp_path, one_device, uninterrupted, stopped_at):
    """State, notes and every byte of metrics.jsonl: stopped at an evaluation, at a checkpoint, at the end."""
    whole, state, notes = uninterrupted
    with pytest.raises(loop.Preempted):
        tiny.train(tmp_path, one_device, stop=lambda step: step == stopped_at)
    resumed, resumed_notes = tiny.train(tmp_path, one_device)
    assert_same_bits(resumed, state)
    assert resumed_notes == notes
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, one_device, uninterrupted):
    with pytest.raises(RuntimeError, match="gone"):
        tiny.train(tmp_path, one_device, evaluate=None, change=lambda step_fn: fail_at(2, step_fn))
    assert len(tiny.rows(tmp_path)) == 1
    assert_same_bits(tiny.train(tmp_path, one_device)[0], uninterrupted[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted[0] / "metrics.jsonl").read_bytes()


def fail_at(step, step_fn):
    def wrapped(state, x):
        if int(state.step) == step:
            raise RuntimeError("gone")
        return step_fn(state, x)

    return wrapped


def test_running_a_finished_run_again_changes_nothing(uninterrupted, one_device):
    whole, state, notes = uninterrupted
    before = (whole / "metrics.jsonl").read_bytes()
    again, again_notes = tiny.train(whole, one_device)
    assert_same_bits(again, state)
    assert again_notes == notes and (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_kill_and_terminate_equal_uninterrupted(tmp_path, one_device, uninterrupted):
    """Killed between a checkpoint and its manifest, then during an evaluation; terminated; then left to finish."""
    script = Path(tiny.__file__)

    def child(*arguments):
        return subprocess.run([sys.executable, str(script), str(tmp_path), *arguments], capture_output=True, text=True)

    assert child("--kill=seal:3").returncode == -signal.SIGKILL
    assert child("--kill=evaluate:8").returncode == -signal.SIGKILL
    terminated = child("--kill=term:9")
    assert terminated.returncode == 143, terminated.stderr
    assert "resumed from the checkpoint of step" in terminated.stderr  # 3, or 6 if that was complete when the evaluation ended
    assert "stopped and saved at step 9 of 10" in terminated.stderr
    assert_same_bits(tiny.train(tmp_path, one_device)[0], uninterrupted[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted[0] / "metrics.jsonl").read_bytes()


def test_a_real_sigterm_is_heard_in_this_process_and_the_old_handler_comes_back(tmp_path, one_device):
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(loop.Preempted) as stopped:
        tiny.train(tmp_path, one_device, batches=tiny.Batches(2, signal.SIGTERM))
    assert stopped.value.code == 143 and [row["step"] for row in tiny.rows(tmp_path)] == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_in_the_loop_saves_wherever_it_lands_and_the_second_is_the_old_handlers(
    tmp_path, one_device, uninterrupted, capfd
):
    """It lands in a __del__, where a KeyboardInterrupt would be printed and swallowed."""

    class Dying(tiny.Batches):
        def __next__(self):
            if self.position == 4:
                Last()
            return super().__next__()

    class Last:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tmp_path, one_device, batches=Dying())
    assert "stopping after this step" in capfd.readouterr().err and [row["step"] for row in tiny.rows(tmp_path)][-1] == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert_same_bits(tiny.train(tmp_path, one_device)[0], uninterrupted[1])
    came = []
    monkey = signal.signal(signal.SIGINT, lambda *_: came.append("second"))
    try:
        with signals.heard() as number:
            os.kill(os.getpid(), signal.SIGINT)
            assert number() == signal.SIGINT and not came
            os.kill(os.getpid(), signal.SIGINT)
            assert came == ["second"]
    finally:
        signal.signal(signal.SIGINT, monkey)


def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, one_device):
    def explode(step_fn):
        def wrapped(state, x):
            if int(state.step) == 5:
                state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
            return step_fn(state, x)

        return wrapped

    with pytest.raises(UserError, match=r"tiny: grad_norm is nan at step 6; the checkpoint of step 3 is kept"):
        tiny.train(tmp_path, one_device, change=explode)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]
    assert max(row["step"] for row in tiny.rows(tmp_path)) == 5


def test_the_first_and_the_last_step_are_logged_whatever_lies_between_lines(tmp_path, one_device, monkeypatch):
    monkeypatch.setattr(loop, "run", functools.partial(loop.run, log_every=4))
    tiny.train(tmp_path, one_device, steps=6)
    assert [row["step"] for row in tiny.rows(tmp_path) if "loss" in row] == [1, 4, 6]


def test_numbers_are_means_over_counts_and_nothing_counted_is_no_number():
    three, four, none = jnp.float32(3), jnp.float32(4), jnp.float32(0)
    assert loop._numbers({"a": (three, four), "b": (none, none), "c": jnp.float32(1.5)}) == {"a": 0.75, "c": 1.5}


def test_metrics_are_cut_back_and_torn_lines_are_dropped(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.cut_back(0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 7})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer.cut_back(2)
    writer.write(3, {"loss": float("nan")})
    writer.close()
    assert tiny.rows(tmp_path) == [{"step": 1, "loss": 1 / 7}, {"step": 2, "loss": 2 / 7}, {"step": 3, "loss": None}]


def test_results_are_sorted_flat_numbers(tmp_path):
    metrics.write_result(tmp_path, {"b": np.float32(0.25), "a": jnp.int32(3), "c": float("inf"), "d": "text"})
    text = (tmp_path / "result.json").read_text()
    assert list(json.loads(text).items()) == [("a", 3), ("b", 0.25), ("c", None), ("d", "text")]


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # tensorboardX would import it: seconds
    writer = metrics.Writer(tmp_path, ("tensorboard",))
    writer.cut_back(0)
    writer.write(1, {"loss": 0.5})
    writer.timing(1, 0.1)
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_progress_is_plain_lines_off_a_terminal(tmp_path, one_device, capsys):
    tiny.train(tmp_path, one_device)
    said = capsys.readouterr().err
    assert "tiny: compiling the first of 10 steps ..." in said
    assert "tiny: step 10/10" in said and "loss" in said and "\x1b" not in said


def test_every_compilation_is_named_with_its_cause():
    said = []

    @jax.jit
    def mean_of(batch):
        return jnp.mean(batch["patches"])

    with compiles.Watch(said.append, at_least=0) as watch:
        for step, rows in enumerate((3, 3, 5), start=1):
            watch.step(step, {"patches": np.ones((rows, 2))})
            mean_of({"patches": np.ones((rows, 2))})
        watch.step(4, {"patches": np.ones((5, 2))})
        mean_of({"patches": np.ones((5, 2), np.int32)})
    mean_of({"patches": np.ones((7, 2))})
    lines = [line.split(" in ")[0] + line[line.index("(step") :] for line in said if "mean_of" in line]
    assert lines == [
        "compiled jit(mean_of)(step 1: its first call)",
        "compiled jit(mean_of)(step 3: patches from (3, 2) to (5, 2))",
        "compiled jit(mean_of)(step 4: arguments of another kind or place)",
    ]


def test_an_evaluation_that_fails_loses_nothing(tmp_path, one_device, uninterrupted):
    """Its step is saved, and a run that goes on begins with it; at the last step the export came before."""
    whole, state, _ = uninterrupted
    exported, failing = [], {8, 10}

    def evaluate(current, step):
        if step in failing:
            raise ZeroDivisionError(f"at {step}")
        return {"size": float(jnp.sum(current.params["text"]["embed"]["embedding"] ** 2))}

    def start(judge=evaluate):
        return tiny.train(tmp_path, one_device, evaluate=judge, export=lambda state: exported.append(int(state.step)))[0]

    for step in (8, 10):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match=f"at {step}"):
                start()
            assert Manager(tmp_path, 1, 2).latest() == step
        failing.remove(step)
    assert exported == [10, 10]
    for _ in range(2):
        assert_same_bits(start(), state)
        assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_run_whose_evaluation_failed_goes_on_without_one(tmp_path, one_device, uninterrupted):
    def fail(current, step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny.train(tmp_path, one_device, evaluate=fail)
    assert_same_bits(tiny.train(tmp_path, one_device, evaluate_every=0)[0], uninterrupted[1])


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny_training
from srlhfv_jax.cli import main
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.parallel.mesh import make_mesh

mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
main._run = lambda name, argv: tiny_training.train(Path(sys.argv[2]), mesh)
resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))
sys.exit(main.main(["sft"]))
"""


def test_a_disk_that_takes_no_more_is_one_line_and_the_run_goes_on_when_it_does(tmp_path, one_device, uninterrupted):
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(Path(tiny.__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("srlhfv: error: ") and "; free some room" in ended.stderr.splitlines()[-1]
    assert_same_bits(tiny.train(tmp_path, one_device)[0], uninterrupted[1])
