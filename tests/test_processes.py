"""One run on more devices, or on several processes, is the same run; and one whose partner dies says so, and goes on later."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny_sharing as tiny
from commands import ENVIRONMENT, SRLHFV
from tiny_stages import numbers, same_numbers


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
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
    }
    return [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]


def both(folder, out, mesh: tuple[int, int, int], devices: int, *names: str) -> None:
    """Run some of tiny_sharing's stages on two processes."""
    command = [sys.executable, tiny.__file__, str(folder), str(out), *map(str, mesh), *names]
    for said, code in [(process.communicate(timeout=400)[1], process.returncode) for process in pair(command, devices)]:
        assert code == 0, said[-2000:]


MESHES = {"shared": [(1, 2, 1), (1, 2, 2), (2, 2, 2)], "separate": [(2, 2, 2)], "adapters": [(1, 2, 2), (2, 2, 2)]}


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
        same_numbers(numbers(tmp_path / way), alone["shared" if way == "idle" else way], 2e-4)


@pytest.mark.parametrize(("mesh", "devices"), [((1, 1, 2), 1), ((2, 1, 2), 2), ((1, 2, 2), 2)])
def test_every_stage_and_its_held_out_rows_give_the_same_numbers_where_rows_lie_on_two_processes(
    folder, stages_alone, mesh, devices, tmp_path
):
    """(1, 1, 2): all rows on both, whose devices share the heads. The numbers are those of both processes."""
    both(folder, tmp_path, mesh, devices, *tiny.STAGES)
    for name, expected in stages_alone.items():
        for process in (0, 1):
            same_numbers(json.loads((tmp_path / f"{name}.{process}.json").read_text()), expected, 2e-4)


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
