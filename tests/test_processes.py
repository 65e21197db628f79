"""One run on more devices, or on several processes, is the same run; and one whose partner dies says so, and goes on later."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_sharing as tiny
from commands import COMPILER, ENVIRONMENT, SRLHFV
from tiny_stages import numbers, same_numbers

from srlhfv_jax.checkpoint import lock
from srlhfv_jax.cli.main import main

pytestmark = pytest.mark.slow  # stages in one process, in two, and killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sharing")
    tiny.prepare(made)
    return made


@pytest.fixture(scope="module")
def alone(folder):
    return {way: tiny.run(folder, folder / "alone", way, 1, 1, 1) for way in tiny.WAYS if way != "idle"}


@pytest.fixture(scope="module")
def stages_alone(folder):
    return {name: tiny.stage(folder, folder / "stages", name, 1, 1, 1) for name in tiny.STAGES}


def pair(command: list[str], devices: int) -> list[subprocess.Popen]:
    """Two processes of one run, each with some devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = ENVIRONMENT | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": " ".join((f"--xla_force_host_platform_device_count={devices}", *COMPILER)),
    }
    return [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]


def finished(started: list[subprocess.Popen]) -> list[tuple[str, int]]:
    """What each said on stderr, and its exit code."""
    return [(process.communicate(timeout=400)[1], process.returncode) for process in started]


def both(folder, out, mesh: tuple[int, int, int], devices: int, *names: str) -> None:
    """Run some of tiny_sharing's stages on two processes."""
    command = [sys.executable, tiny.__file__, str(folder), str(out), *map(str, mesh), *names]
    for said, code in finished(pair(command, devices)):
        assert code == 0, said[-2000:]


MESHES = {"shared": [(1, 2, 1)], "adapters": [(1, 2, 2)]}  # others below, on two processes


@pytest.mark.parametrize(("way", "mesh"), [(way, mesh) for way, meshes in MESHES.items() for mesh in meshes])
def test_more_devices_give_the_same_numbers(folder, alone, way, mesh, tmp_path):
    assert len(alone[way]) == 2 and alone[way][1]["policy_loss"] != 0
    same_numbers(tiny.run(folder, tmp_path, way, *mesh), alone[way], 2e-4)


def test_unrolled_layers_on_four_devices_give_the_same_numbers(folder, alone, tmp_path):
    unrolled = tiny.run(folder, tmp_path, "shared", 1, 2, 2, unroll=0)
    assert len(unrolled) == 2 and unrolled[1]["policy_loss"] != 0
    same_numbers(unrolled, alone["shared"], 2e-4)


def test_two_processes_of_four_devices_give_the_same_numbers(folder, alone, tmp_path):
    both(folder, tmp_path, (2, 2, 2), 4, *tiny.WAYS)
    for way in tiny.WAYS:
        log = numbers(tmp_path / way)
        assert len(log) == 2 and log[1]["policy_loss"] != 0, way
        same_numbers(log, alone["shared" if way == "idle" else way], 2e-4)


@pytest.mark.parametrize(("mesh", "devices"), [((1, 1, 2), 1), ((2, 1, 2), 2), ((1, 2, 2), 2)])
def test_every_stage_and_its_held_out_rows_give_the_same_numbers_where_rows_lie_on_two_processes(
    folder, stages_alone, mesh, devices, tmp_path
):
    """(1, 1, 2): all rows on both, whose devices share the heads. The numbers are those of both processes."""
    both(folder, tmp_path, mesh, devices, *tiny.STAGES)
    for name, expected in stages_alone.items():
        for process in (0, 1):
            log = json.loads((tmp_path / f"{name}.{process}.json").read_text())
            assert len(log) == len(expected) > 1, (name, process)
            same_numbers(log, expected, 2e-4)


@pytest.mark.parametrize(("mesh", "devices"), [((1, 1, 2), 1), ((2, 2, 1), 2)])
def test_each_process_scores_its_own_rows_by_functions_and_the_numbers_are_those_of_one(folder, mesh, devices, tmp_path):
    """(1, 1, 2): both hold all rows, and the first scores them. Where the function fails on one process, both stop and save."""
    (tmp_path / "one").mkdir()
    alone = tiny.own(folder, tmp_path / "one", 1, 1, 1)
    both(folder, tmp_path, mesh, devices, "own")
    assert len(alone) == 4 and alone[2]["policy_loss"] != 0 and alone[0]["cost.first"] != 0
    assert 0 < sum(line["brief.applies"] for line in alone if "lambda" in line) < 2 and alone[0]["brief.lambda"] > 0
    same_numbers(numbers(tmp_path / "own"), alone, 2e-4)
    keys = [json.loads(line)["key"] for line in (tmp_path / "own" / "reward_cache.jsonl").read_text().splitlines()]
    assert len(set(keys)) == len(keys) > 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "step 1: config.constraints[0].cost: first raised ConnectionError: no route for row"),
        ("differs", "config.constraints[0].cost: first is another function on process 1 than on process 0"),
    ],
)
def test_a_function_that_fails_or_differs_on_one_process_stops_both(folder, name, message, tmp_path):
    (tmp_path / name).touch()
    command = [sys.executable, tiny.__file__, str(folder), str(tmp_path), "2", "2", "1", "own"]
    said = finished(pair(command, 2))
    assert all(code and message in text for text, code in said), said[0][0][-2000:]


def test_a_process_whose_partner_is_killed_names_it_and_both_go_on_from_the_last_checkpoint(folder, tmp_path):
    work = tmp_path / "sft"
    rows = tiny.where(folder) | {"init": str(folder / "llama"), "steps": 24, "checkpoint.every_steps": 4}
    mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 1}
    options = [f"--config.{key}={value}" for key, value in (rows | mesh).items()]
    command = [*SRLHFV, "sft", "--config=configs/sft.py:tiny", *options, f"--workdir={work}"]

    started = pair(command, 2)
    deadline = time.monotonic() + 200
    while not (work / "checkpoints" / "manifests" / "4.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started[1].send_signal(signal.SIGKILL)
    said = started[0].communicate(timeout=200)[1]
    started[1].communicate()
    # A broken connection fails the step. Where no step runs, within a save, JAX's service ends the process after its heartbeats.
    ours, jaxs = "srlhfv: error: process 1 of 2 is gone", "tasks are unhealthy (stopped sending heartbeats):\n1\n"
    assert (started[0].returncode == 1 and ours in said) or (started[0].returncode == -signal.SIGABRT and jaxs in said), said[
        -2000:
    ]

    again = [(process.communicate(timeout=300)[1], process.returncode) for process in pair(command, 2)]
    assert [code for _, code in again] == [0, 0], again[0][0][-2000:]
    assert "resumed from the checkpoint of step" in again[0][0]
    assert [line["step"] for line in numbers(work)] == list(range(1, 25))


@pytest.mark.parametrize(("number", "to", "codes"), [(signal.SIGTERM, 1, [143, 143]), (signal.SIGINT, 0, [130, 143])])
def test_a_signal_to_one_process_makes_both_save_the_same_step_and_stop(folder, tmp_path, number, to, codes):
    """The other one is told by JAX's service, as of a SIGTERM."""
    work = tmp_path / "sft"
    rows = tiny.where(folder) | {"init": str(folder / "llama"), "steps": 4000, "checkpoint.every_steps": 0}
    mesh = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 1}
    options = [f"--config.{key}={value}" for key, value in (rows | mesh).items()]
    started = pair([*SRLHFV, "sft", "--config=configs/sft.py:tiny", *options, f"--workdir={work}"], 1)
    log, deadline = work / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:  # a step is logged: the loop runs
        time.sleep(0.05)
    started[to].send_signal(number)
    assert [code for _, code in finished(started)] == codes
    last = numbers(work)[-1]["step"]
    assert [path.name for path in (work / "checkpoints" / "manifests").iterdir()] == [f"{last}.json"] and last < 4000


@pytest.mark.parametrize("workdir", ["file", "file/below", "held"])
def test_a_workdir_that_only_the_first_process_opens_is_refused_in_the_same_line_on_both(folder, tmp_path, workdir):
    work = tmp_path / workdir
    (tmp_path / "file").write_text("")
    options = [f"--config.{key}={value}" for key, value in (tiny.where(folder) | {"init": str(folder / "llama")}).items()]
    with lock.held(work) if workdir == "held" else contextlib.nullcontext():
        said = finished(pair([*SRLHFV, "sft", "--config=configs/sft.py:tiny", *options, f"--workdir={work}"], 1))
    lines = [next(line for line in text.splitlines() if line.startswith("srlhfv: error")) for text, _ in said]
    assert [code for _, code in said] == [2, 2] and lines[0] == lines[1], said
    assert str(work if workdir == "held" else tmp_path / "file") in lines[0]


COMMANDS = """
import json, sys
from srlhfv_jax.cli.main import main
for command in json.loads(sys.argv[1]):
    if code := main(command):
        sys.exit(code)
"""


def commands(folder: Path, out: Path) -> list[list[str]]:
    """Every command that answers or measures, with its files in `out`."""
    policies, scorer, rows = f"a={folder / 'llama'},b={folder / 'scores'}", folder / "scores", folder / "heldout.jsonl"
    short = ["--batch_size=8", "--response_length=4"]
    pairs = ["evaluate", f"--scorer={scorer}", f"--pairs={rows}", f"--workdir={out / 'pairs'}", "--batch_size=8"]
    compared = ["evaluate", f"--policies={policies}", f"--scorer={scorer}", f"--data={rows}", f"--workdir={out / 'evaluate'}"]
    suite = ["benchmark", "--config=configs/benchmark.py:tiny", f"--config.root={folder}", "--config.benchmarks=('xstest',)"]
    suite += [f"--config.policies={policies}", "--config.judge=models", f"--config.scorer={scorer}", f"--workdir={out / 'suite'}"]
    generate = ["generate", f"--policy={folder / 'llama'}", f"--guard={folder / 'stages' / 'guard'}", "--rounds=1"]
    written = [*generate, f"--data={rows}", f"--out={out / 'answers.jsonl'}", *short]
    return [pairs, [*compared, *short], suite, written, [*generate, "--prompt=w7 w8", "--response_length=4"]]


def test_commands_that_answer_and_measure_give_on_two_processes_what_they_give_on_one(folder, stages_alone, tmp_path):
    lines = ["id,prompt,type,label", "1,w7 w8,homonyms,safe", "2,w9,contrast_homonyms,unsafe", "3,w8 w11,homonyms,safe"]
    (folder / "xstest").mkdir()
    (folder / "xstest" / "xstest_prompts.csv").write_text("\n".join(lines))
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        out.mkdir()
    assert [main(command) for command in commands(folder, one)] == [0] * 5
    for said, code in finished(pair([sys.executable, "-c", COMMANDS, json.dumps(commands(folder, two))], 1)):
        assert code == 0, said[-2000:]
    for name in ("pairs", "evaluate", "suite"):
        found, expected = (json.loads((out / name / "result.json").read_text()) for out in (two, one))
        clocks = {key for key in expected if "seconds" in key}
        same_numbers(
            [{key: found[key] for key in found.keys() - clocks}], [{key: expected[key] for key in expected.keys() - clocks}], 2e-4
        )
    answers, expected = ((out / "answers.jsonl").read_text().splitlines() for out in (two, one))
    assert [json.loads(line)["answer"] for line in answers] == [json.loads(line)["answer"] for line in expected]
    assert len((two / "suite" / "answers" / "a.jsonl").read_text().splitlines()) == 3  # each case once, by the first process


SHARDS = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import AXES
hosts.initialize()
devices = np.array(jax.devices())
for order, sizes in (([0, 3, 1, 4, 2, 5], (3, 2, 1)), ([0, 1, 2, 3, 4, 5], (3, 1, 2)), ([0, 3, 1, 4, 2, 5], (1, 3, 2))):
    mesh = Mesh(devices[order].reshape(sizes), AXES)
    rows = np.arange(36).reshape(12, 3) / 4
    own = hosts.own_rows(12, mesh)
    placed = hosts.global_batch({"x": rows[own], "none": None}, mesh)
    assert placed["x"].shape == rows.shape, placed["x"].shape
    np.testing.assert_array_equal(hosts.to_host(placed["x"]), rows)
    print(sizes, own.tolist(), file=sys.stderr)
"""


def test_rows_come_back_in_order_from_shards_that_lie_apart_or_on_both_processes():
    """Shards of a process that alternate with the other's; a middle one on both; all of them on both."""
    (first, code), (second, other) = finished(pair([sys.executable, "-c", SHARDS], 3))
    assert code == other == 0, first[-2000:] + second[-2000:]
    assert "(3, 2, 1) [0, 1, 4, 5, 8, 9]" in first and "(3, 2, 1) [2, 3, 6, 7, 10, 11]" in second
    assert "(3, 1, 2) [0, 1, 2, 3, 4, 5, 6, 7]" in first and "(3, 1, 2) [4, 5, 6, 7, 8, 9, 10, 11]" in second
    assert all(f"(1, 3, 2) {list(range(12))}" in said for said in (first, second))


WAIT = """
import os, sys, time
from srlhfv_jax.parallel import hosts
hosts.initialize()
hosts.process_count()  # both know of each other's devices
if os.environ["JAX_PROCESS_ID"] == "0":
    try:
        hosts.barrier("the export", 3)
    except hosts.Lost as lost:
        print(lost, file=sys.stderr)
else:
    time.sleep(6)
os._exit(0)
"""


def test_a_barrier_names_who_does_not_come():
    started = pair([sys.executable, "-c", WAIT], devices=1)
    said = [process.communicate(timeout=100)[1] for process in started][0]
    assert "process 1 of 2 did not come to 'the export' within 3 seconds" in said
