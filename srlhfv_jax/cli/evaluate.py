"""`srlhfv evaluate`: several policies on the same prompts, judged by the oracle of the embedded task, by learned models, or by
both. (Published test sets: `srlhfv benchmark`.)

    srlhfv evaluate --policies=sft=W/sft,ppo_lag=W/ppo_lag --data=W/data/test.parquet --scorer=W/scores --workdir=E

    srlhfv evaluate --scorer=W/scores --pairs=W/heldout.parquet --workdir=E          the reward and cost models themselves

Writes result.json (POLICY.NUMBER, and POLICY.vs_BASELINE.NUMBER against the baseline), answers.jsonl, samples.jsonl and
score_distributions.json; `srlhfv report --workdir=E` makes a page of them. Prompts longer than the longest that is asked for, and
everything else that cannot be used, are dropped for a named reason.
"""

import functools
import sys
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import benchmark, define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    if any(argument.lstrip("-").partition("=")[0].partition(".")[0] == "config" for argument in argv):
        moved = "srlhfv evaluate --config is now srlhfv benchmark --config; the old name works for one more release"
        print(f"warning: {moved}", file=sys.stderr)
        benchmark.main(argv)
        return
    values = _flags()
    switches.read(values, "evaluate", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "workdir")
    if values.policies or not values.pairs:
        switches.required(values, "policies", "data")
    from srlhfv_jax.evaluation import compare_policies
    from srlhfv_jax.runs import run

    settings, workdir = define.settings(compare_policies.Settings, values), Path(values.workdir)
    compare_policies.check(settings)
    run.command(functools.partial(run.record, compare_policies.run), settings, workdir)
    print(f"wrote {workdir / 'result.json'}; `srlhfv report --workdir={workdir}` makes a page of it")


def _flags() -> absl_flags.FlagValues:
    command = define.define()
    command.text("workdir", None, "folder to write to")
    command.text(
        "policies", None, "name=path,name=path: workdirs of stages, exports or Hugging Face folders; the first is the baseline"
    )
    command.text("baseline", "", "name of the policy that the others are compared against; empty: the first")
    command.text("data", None, "rows with a question (and picture): a TFDS folder, .parquet or .jsonl file, or a folder of them")
    command.text(
        "pairs", "", "labelled pairs: measures the scorer itself, with its own pictures, with shuffled and with grey ones"
    )
    command.text("scorer", "", "workdir or export with the heads reward and cost, or REWARD,COST: two with one each")
    command.choice("judge", "", ["", "oracle", "models"], "empty: models with --scorer, else the oracle")
    command.real("budget", None, "largest feasible mean cost, drawn in the report")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("batch_size", 32, "prompts answered at once", 1)
    command.whole("samples", 24, "rows of samples.jsonl, with pictures")
    define.rows(command)
    define.sampling(command)
    return command.values
