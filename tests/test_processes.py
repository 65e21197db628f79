"""One run on more devices, or on several processes, is the same run; and one whose partner dies says so, and goes on later."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_sharing as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sharing")
    tiny.prepare(made)
    return made


@pytest.fixture(scope="module")
def alone(folder):
    return {way: tiny.run(folder, folder / "alone", way, 1, 1, 1) for way in tiny.WAYS if way != "idle"}


def pair(command: list[str], devices: int, **how) -> list[subprocess.Popen]:
    """Two processes of one run, each with some devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True, **how)
        for rank in (0, 1)
    ]


def same_numbers(log: list[dict], expected: list[dict]) -> None:
    """Within 2e-4: sums are taken in another order."""
    for one, other in zip(log, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("mesh", [(1, 2, 1), (1, 2, 2), (2, 2, 2)], ids=["2", "4", "8"])
@pytest.mark.parametrize("way", ["shared", "separate", "adapters"])
def test_more_devices_give_the_same_numbers(folder, alone, way, mesh, tmp_path):
    assert len(alone[way]) == 2 and alone[way][1]["policy_loss"] != 0
    same_numbers(tiny.run(folder, tmp_path, way, *mesh), alone[way])


def test_two_processes_of_four_devices_give_the_same_numbers(folder, alone, tmp_path):
    started = pair([sys.executable, tiny.__file__, str(folder), str(tmp_path), "2", "2", "2"], devices=4)
    for said, code in [(process.communicate(timeout=400)[1], process.returncode) for process in started]:
        assert code == 0, said[-2000:]
    for way in tiny.WAYS:
        log = map(json.loads, (tmp_path / way / "metrics.jsonl").read_text().splitlines())
        numbers = [{name: value for name, value in line.items() if "second" not in name} for line in log]
        same_numbers(numbers, alone["shared" if way == "idle" else way])
