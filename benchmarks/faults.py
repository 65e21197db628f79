"""What becomes of kills at any moment, and of inputs of any kind; one JSON line, and a line for each fault that was found.

    python benchmarks/faults.py --kills=100 --inputs=10000 [--seconds=7200] [--seed=0] [--kinds=rows,files]

Kills: every stage runs whole once; then it is started, killed after a random time (one time in five by SIGTERM, else by SIGKILL) and
started again, until so many kills are spent. Each such run must end with the log, result.json and exported weights of the whole one,
and leave nothing half-written; `different`, `badly` (an exit code of its own) and `debris` count those that do not.

Inputs: good rows, files, prepared data sets, pictures, test suites, settings, checkpoints, adapters, heads, workdirs, requests and
judges' replies with random damage (`fault_inputs.py`). Each is used, or refused in one line of at most 600 characters. `traceback`, `hang` (20 s), `long` (no such line)
and `silent` (used, and something is not accounted for) are faults. All of it ends after --seconds; what was done until then goes to
stderr, after each killed run and each kind.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_inputs
import fault_runs

from srlhfv_jax.data.quickstart import processor, rows as task
from srlhfv_jax.quickstart.pipeline import write_rows

STEPS = 6
PATIENCE_S = 900  # of one start
HUNG = 1000  # in the place of the exit code of a start that outlasts it
STAGES = ("sft", "scores", "guard", "ppo_lag")
KILL_FAULTS = ("different", "badly", "debris")


def prepared(folder: Path) -> Path:
    """A random LLaVA and rows of the embedded task for each stage."""
    shape = dict(patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    processor.write_base(folder / "base", **shape)
    cells = task.split_cells(0)
    write_rows(folder / "sft.parquet", task.sft_rows(0, cells, 48))
    write_rows(folder / "scores.parquet", task.probe_rows(0, cells, "train", 24, task.Noise()))
    write_rows(folder / "guard.parquet", task.guard_rows(0, cells, "train", 48))
    write_rows(folder / "ppo_lag.parquet", task.prompt_rows(0, cells, "train", 32))
    return folder


def command(stage: str, folder: Path, workdir: Path) -> list[str]:
    """A stage over what the stages before it made in `folder`."""
    if stage == "sft":
        given = fault_runs.sft(folder, workdir, STEPS)
    elif stage == "ppo_lag":
        made = dict(policy=folder / "sft", scorer=folder / "scores", iterations=STEPS)
        given = fault_runs.stage(stage, folder, workdir, **made, **{"validation.path": folder / "ppo_lag.parquet"})
    else:
        given = fault_runs.stage(stage, folder, workdir, init=folder / "sft", steps=STEPS)
    if stage == "guard":
        given += ["--config.taxonomy=embedded", f"--config.calibration={folder / 'guard.parquet'}"]
    return [sys.executable, "-m", "srlhfv_jax", stage, *given]


def start(stage: str, folder: Path, workdir: Path, kill_after_s: float | None = None, by: int = signal.SIGKILL) -> int:
    """Run a stage, and send a signal after some time; returns the exit code, below 0 where a signal ended it, or HUNG."""
    with (folder / "output.txt").open("ab") as said:
        process = subprocess.Popen(command(stage, folder, workdir), stdout=said, stderr=said, stdin=subprocess.DEVNULL)
        try:
            if kill_after_s is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(kill_after_s)
                process.send_signal(by)
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return HUNG
        finally:
            process.kill()
            process.wait()


def outputs(workdir: Path) -> dict[str, Any]:
    """What must be equal in two runs: the log and the result without their times, and every tensor file of the exports."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if "second" not in name} for line in lines]
    result = json.loads((workdir / "result.json").read_text())
    tensors = {str(path.relative_to(workdir)): _digest(path) for path in sorted(workdir.glob("*/*.safetensors"))}
    return {"log": numbers, "result": {name: value for name, value in result.items() if "second" not in name}, "tensors": tensors}


def debris(workdir: Path) -> list[str]:
    """Files that a finished run should not leave."""
    left = [path for pattern in (".*draft*", ".*previous*", "*.tmp", "*tmp-*") for path in workdir.rglob(pattern)]
    return sorted({str(path.relative_to(workdir)) for path in left})


def kills(folder: Path, count: int, until: float, draw: random.Random) -> Iterator[tuple[str, str, str]]:
    """(stage, outcome, what of): "sigkill" or "sigterm" for each kill, "run" for each run that came to its end, and the faults."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    complete, took_s = {}, {}
    for stage in STAGES:  # twice: the second start finds everything compiled, as a start after a kill does
        for workdir in (folder / f"{stage}_first", folder / stage):
            began = time.monotonic()
            if code := start(stage, folder, workdir):
                raise RuntimeError(f"{stage} ended with {code}: see {folder / 'output.txt'}")
            took_s[stage] = time.monotonic() - began
        complete[stage] = outputs(folder / stage)
        if complete[stage] != outputs(folder / f"{stage}_first"):
            yield stage, "different", "two whole runs differ"
    spent, number = 0, 0
    while spent < count and time.monotonic() < until:
        stage, workdir = STAGES[number % len(STAGES)], folder / f"killed_{number}"
        number += 1
        for _ in range(min(draw.choice((1, 1, 2, 3)), count - spent)):
            by = signal.SIGTERM if draw.random() < 0.2 else signal.SIGKILL
            after_s = draw.uniform(0.1, took_s[stage])
            code = start(stage, folder, workdir, after_s, by)
            spent += 1
            yield stage, by.name.lower(), f"after {after_s:.2f} s"
            if code not in (0, -signal.SIGKILL, 128 + signal.SIGTERM):
                yield stage, "badly", f"{_end(code)} after {by.name} at {after_s:.2f} s"
        if code := start(stage, folder, workdir):
            yield stage, "different", f"{workdir} {_end(code)} when it was started again"
            continue
        if outputs(workdir) != complete[stage]:
            yield stage, "different", f"{workdir}"
        for left in debris(workdir):
            yield stage, "debris", f"left {left}"
        yield stage, "run", f"{workdir}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(fault_inputs.KINDS))
    given = parser.parse_args(argv)
    until = time.monotonic() + given.seconds
    by_stage: dict[str, Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="faults") as place:
        folder = prepared(Path(place))
        killed = kills(folder, given.kills, until, random.Random(given.seed)) if given.kills else ()
        for stage, outcome, what in killed:
            by_stage.setdefault(stage, Counter())[outcome] += 1
            if outcome in KILL_FAULTS:
                print(f"{outcome}: {stage}: {what}", flush=True)
            if outcome == "run":
                print(json.dumps({"so_far": by_stage}), file=sys.stderr, flush=True)
        kinds = given.kinds.split(",")
        for number, kind in enumerate(kinds):
            share = given.inputs // len(kinds) + (number < given.inputs % len(kinds))
            by_kind[kind] = Counter()
            for outcome, what in fault_inputs.run(kind, folder, share, until, given.seed):
                by_kind[kind][outcome] += 1
                if outcome in fault_inputs.FAULTS:
                    print(f"{outcome}: {kind}: {what}", flush=True)
            print(json.dumps({"so_far": {kind: by_kind[kind]}}), file=sys.stderr, flush=True)
    kills_of, runs_of = sum(by_stage.values(), Counter()), sum(by_kind.values(), Counter())
    found = sum(kills_of[name] for name in KILL_FAULTS) + sum(runs_of[name] for name in fault_inputs.FAULTS)
    line = {"kills": kills_of["sigkill"] + kills_of["sigterm"], "killed_runs": kills_of["run"], "inputs": runs_of.total()}
    line |= {"faults": found, "by_stage": by_stage, "by_kind": by_kind}
    print(json.dumps(line))
    return line


def _end(code: int) -> str:
    return f"had not ended after {PATIENCE_S} s" if code == HUNG else f"ended with {code}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(1 if main()["faults"] else 0)
