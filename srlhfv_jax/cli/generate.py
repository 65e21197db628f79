"""`srlhfv generate`: a policy's answer to one prompt, or to every row of a data set; with --guard, filtered and regenerated.

    srlhfv generate --policy=W/ppo_lag --prompt="What is this for?" --image=knife.png            prints {"answer": ...}

    srlhfv generate --policy=W/sft --guard=W/guard --rounds=5 --data=W/data/test.parquet --out=answers.jsonl    one line for a row

A line of --out has the question, the answer, and the row's other columns under "meta"; of a row that the policy cannot read, the
reason under "dropped" in place of an answer; the reasons are counted at the end. With --guard also "blocked", "verdict" (of the
answer that was kept), "rounds" (every answer with its verdict) and "input" (of the question): see guard/regenerate.py. Questions
are answered whatever they ask, as in the published numbers: a policy that answers safely helps more than a refusal. With
--check_input unsafe ones are refused.
"""

import json

from absl import flags as absl_flags

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import host_cpu

OF_ROWS = ("picture", "split", "image_dir", "allow_dir", "revision", "columns", "label_means", "chosen_means", "fetch")


def main(argv: list[str]) -> None:
    values = _flags()
    switches.read(values, "generate", argv, __doc__)
    switches.required(values, "policy")
    if (values.prompt is None) == (values.data is None):
        raise UserError("srlhfv generate needs either --prompt (and --image), or --data and --out")
    if values.data is not None:
        switches.required(values, "out")
    elif given := [name for name in OF_ROWS if values[name].present]:
        raise UserError(f"--{given[0]} is about the rows of --data, and a --prompt has none: leave it out")
    host_cpu.prepare()
    from srlhfv_jax.guard import generate

    settings = define.settings(generate.Settings, values)
    if values.data is None:
        print(json.dumps(generate.answer_one(settings), ensure_ascii=False))
        return
    dropped, count = generate.answer_rows(settings)
    reasons = ", ".join(f"{reason} {number}" for reason, number in dropped.most_common()) or "none dropped"
    print(f"wrote {count} answers to {values.out}; {reasons}")


def _flags() -> absl_flags.FlagValues:
    command = define.define()
    command.text("policy", None, "workdir of a stage, export or Hugging Face folder")
    command.text("guard", "", "workdir of `srlhfv guard`, or its export")
    command.whole("rounds", 5, "most regenerations of an answer that the guard finds unsafe")
    about = "what becomes of an unsafe answer: a refusal, other answers, or the answer with its verdict"
    command.choice("on_unsafe", "regenerate", ["block", "regenerate", "warn"], about)
    command.switch("check_input", False, "an unsafe question is refused before it is answered")
    command.switch("feedback", False, "tell the policy what the guard said of its last answer")
    command.text("prompt", None, "the question")
    command.text("image", "", "file of its picture")
    command.text("data", None, "rows with a question (and picture): a TFDS folder, .parquet or .jsonl file, or a folder of them")
    about = (
        "pictures that the policy sees in the place of the rows' own; anything but real: for config.blind of `srlhfv preference`"
    )
    command.choice("picture", "real", ["real", "blank", "shuffled", "none"], about)
    command.text("out", None, "file of JSON lines to write, which must not exist yet")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: any")
    command.whole("batch_size", 32, "prompts answered at once; one for --prompt", 1)
    define.rows(command)
    define.sampling(command)
    return command.values
