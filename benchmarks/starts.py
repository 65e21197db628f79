"""What the cache of compiled programs saves at the start of a stage: the same command with an empty cache folder and with the one it filled.

    python benchmarks/starts.py [--times=2] [--stages=sft,ppo_lag] [--settings=config.model.scan_unroll=1]

Each pair is two processes of `srlhfv STAGE --config=STAGE.py:tiny`, one after the other, on a random LLaVA and eight rows. Prints a line of
JSON a process, and the ratios last: `first_step_s`, from the start of the process to the log line of its first step; `total_s`; `cpu_s`,
seconds of all cores, which other programs on the machine change least; `programs`, files of the cache.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from format_rows import LAYOUTS, talks

FUNCTIONS = Path(__file__).with_name("rewards.py")
MEASURES = ("first_step_s", "total_s", "cpu_s")


def command(stage: str, folder: Path, workdir: Path) -> list[str]:
    """A stage of two steps."""
    given = [f"config.data.path={folder / 'rows.jsonl'}", "config.data.prompt_length=64", "config.mesh.fsdp=1"]
    if stage == "ppo_lag":
        given += [
            f"config.policy={folder / 'sft'}",
            f"config.reward_fn={FUNCTIONS}:brevity",
            f"config.cost_fn={FUNCTIONS}:forbidden",
        ]
    elif stage == "sft":
        given += [f"config.init={folder / 'shape'}", "config.init_random=true"]
    else:
        given += [f"config.init={folder / 'sft'}"]
    return [
        sys.executable,
        "-m",
        "srlhfv_jax",
        stage,
        f"--config={stage}.py:tiny",
        f"--workdir={workdir}",
        *map("--{}".format, given),
    ]


def timed(words: list[str], cache: Path) -> dict[str, Any]:
    """Run a stage with a cache folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    before, start, first = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), None
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if first is None and ": step 1/" in line:
                first = time.perf_counter() - start
    if process.returncode or first is None:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{''.join(lines)}")
    total, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (first, total, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: round(value, 2) for name, value in zip(MEASURES, seconds)} | {"programs": len(list(cache.glob("*-cache")))}


def prepared(folder: Path) -> None:
    """Rows, and a policy that every stage can start from."""
    from srlhfv_jax.data.quickstart import processor

    rows = [json.dumps(LAYOUTS["plain"].row(talk)) + "\n" for talk in talks(folder)]
    (folder / "rows.jsonl").write_text("".join(rows))
    processor.write_base(folder / "shape", patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    timed(command("sft", folder, folder / "sft"), folder / "unmeasured")


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--times", type=int, default=2)
    flags.add_argument("--stages", default="sft,ppo_lag")
    flags.add_argument("--settings", default="", help="more flags of all stages, with commas between them")
    given = flags.parse_args()
    more, lines = [f"--{one}" for one in given.settings.split(",") if one], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared(folder)
        for number in range(given.times):
            for stage in given.stages.split(","):
                for cache in ("cold", "warm"):
                    words = command(stage, folder, folder / f"{stage}-{cache}-{number}") + more
                    lines.append({"stage": stage, "cache": cache} | timed(words, folder / f"cache-{stage}-{number}"))
                    print(json.dumps(lines[-1] | {"load": round(os.getloadavg()[0], 1)}), flush=True)
    ratios = {}
    for stage in given.stages.split(","):
        for name in MEASURES:
            cold, warm = (
                [line[name] for line in lines if (line["stage"], line["cache"]) == (stage, one)] for one in ("cold", "warm")
            )
            ratios[f"{stage}.{name.removesuffix('_s')}"] = round(statistics.mean(warm) / statistics.mean(cold), 2)
    print(json.dumps({"warm_over_cold": ratios}))


if __name__ == "__main__":
    main()
