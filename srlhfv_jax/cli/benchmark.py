"""`srlhfv benchmark --config=configs/benchmark.py:SUITE`: policies on local copies of published safety benchmarks.

    srlhfv benchmark --config=configs/benchmark.py:safety --workdir=E --config.root=FOLDER --config.policies=base=PATH,ours=PATH

Reads the benchmarks, answers them with each policy (or takes recorded answers), judges, and writes result.json
(POLICY.BENCHMARK.NUMBER, POLICY.vs_BASELINE.BENCHMARK.NUMBER), benchmarks.md (a table), judged.jsonl (every answer with the
opinion of it), answers/POLICY.jsonl and verdicts.jsonl. The last two are kept by content: the same command goes on where it was
stopped, and asks neither policy nor judge for anything twice.

    srlhfv benchmark --config=configs/benchmark.py:safety --config.root=FOLDER --write-cases=cases.jsonl

Writes the cases (benchmark, id, prompt, image: a path or null) and ends: for a model that runs elsewhere, whose answers come back as
the policy answers.jsonl, with {"benchmark", "id", "answer"} on each line.
"""

import functools
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax import files
from srlhfv_jax.cli import flags, switches
from srlhfv_jax.cli.help import About
from srlhfv_jax.config import EvaluateConfig, unread
from srlhfv_jax.parsing import parse
from srlhfv_jax.runs.stage import given

ROOT = "the folder that holds one folder for each benchmark"


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "folder to write to; an interrupted run goes on there", flag_values=values)
    absl_flags.DEFINE_string("write-cases", None, "write the cases to this .jsonl file, and answer none", flag_values=values)
    config, changed = flags.read_with_config(About("benchmark", __doc__, EvaluateConfig), values, argv)
    settings = parse(EvaluateConfig, config)
    unread.check_changed(settings, changed)
    if values["write-cases"].value is not None:
        given(settings.root, "config.root", ROOT)
        _write_cases(settings, files.local(values["write-cases"].value, "--write-cases"))
        return
    switches.required(values, "workdir")
    given(settings.policies, "config.policies", "name=path,name=path; a path is a checkpoint or a .jsonl file of answers")
    given(settings.root, "config.root", ROOT)
    from srlhfv_jax.evaluation import run_suites
    from srlhfv_jax.runs import run

    run_suites.check(settings)
    run.command(functools.partial(run.record, run_suites.run), settings, Path(values.workdir))
    print(f"wrote {Path(values.workdir) / 'result.json'} and {run_suites.TABLE}")


def _write_cases(settings: EvaluateConfig, path: Path) -> None:
    from srlhfv_jax.evaluation import run_suites
    from srlhfv_jax.evaluation.suites.write_cases import check_place, write_cases

    check_place(path)
    run_suites.check_benchmarks(settings)
    _, cases = run_suites.read_benchmarks(settings)
    print(f"wrote {write_cases(path, cases)} cases to {path}")
