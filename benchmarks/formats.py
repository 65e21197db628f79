"""Every layout of rows that people have: written, read as meant, and trained on for two tiny steps.

    python benchmarks/formats.py [--only=messages,verl] [--untrained] [--table]

One small set of conversations (a system turn, an earlier question, pictures, two answers, labels) is written in every layout, as far as
the layout can say it, and read again: `as_meant` counts rows whose turns, pictures, answers and labels are what was written. Then
`sft`, `scores` and `guard` train on it where its answers and labels allow, and `ppo_lag` where it has questions alone: the command that a user
types, two steps that read every row, a small LLaVA, a workdir of its own. `as_plain` says whether every number of metrics.jsonl is that of
the same content in plain rows, to the last digit: then what was learned is what was meant. (Plain rows cannot say OpenAI's flags: null.)

Prints a line of JSON a layout, and how many are right last; exit code 1 unless that is all of them. `--table` prints the table of
docs/data.md. Programs are compiled once: all rows have one shape, and one cache folder serves all runs.
"""

import contextlib
import functools
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from format_rows import LAYOUTS, ROWS, VIOLENCE, Talk, Written, as_meant, desirable, plain, talks

FLAGS = flags.FLAGS
flags.DEFINE_list("only", [], "layouts; empty: all")
flags.DEFINE_boolean("untrained", False, "read the rows, and train on none")
flags.DEFINE_boolean(
    "table", False, "print a table of layouts, rows, stages with the rows that they learned from, and what inspect says"
)

FUNCTIONS = Path(__file__).with_name("rewards.py")
STAGES = {  # -> its command, and settings
    "sft": ("sft", ("data.batch_size=4",)),
    "scores": ("scores", ("data.batch_size=4", "sign_weight=0.0")),
    "guard": ("guard", ("data.batch_size=8", "category_weight=0.0")),
    **{f"guard:{name}": ("guard", ("data.batch_size=8", f"taxonomy={name}")) for name in VIOLENCE},
    "guard:openai_moderation": ("guard", ("data.batch_size=4", "taxonomy=openai_moderation", "parts=('input',)")),
    "ppo_lag": ("ppo_lag", ("data.batch_size=4", f"reward_fn={FUNCTIONS}:brevity", f"cost_fn={FUNCTIONS}:forbidden")),
}


class Trained(NamedTuple):
    """What two steps of a stage left in its workdir."""

    rows: int  # that it learned from
    loss: float
    metrics: str  # metrics.jsonl


def train(stage: str, base: Path, rows: Path, options: Iterable[str], workdir: Path, *more: str) -> Trained:
    """Two steps of a stage, by its command."""
    from srlhfv_jax.cli import main

    command, changes = STAGES[stage]
    start = "policy" if command == "ppo_lag" else "init"
    lengths = ("data.prompt_length=64", f"data.response_length={8 if command == 'ppo_lag' else 32}", "checkpoint.every_steps=2")
    few = ("model.scan_unroll=1", "mesh.fsdp=1")
    given = (f"{start}={base}", f"data.path={rows}", *lengths, *few, *(f"data.{one}" for one in options), *changes, *more)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main.main([command, f"--config={command}.py:tiny", f"--workdir={workdir}", *(f"--config.{one}" for one in given)])
    if code:
        raise RuntimeError(f"srlhfv {command} of {rows.name} ended with {code}:\n{output.getvalue()}")
    numbers, metrics = json.loads((workdir / "result.json").read_text()), (workdir / "metrics.jsonl").read_text()
    if command == "ppo_lag":  # its result.json counts no rows
        numbers["rows"] = re.search(r"(\d+) of \d+ rows used as prompts", output.getvalue())[1]
    return Trained(int(numbers["rows"]), numbers.get("loss", numbers.get("critic_loss")), metrics)


def written_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base_model(folder: Path, content: list[Talk]) -> Path:
    """The workdir of a small LLaVA with weights: two steps from random ones."""
    from srlhfv_jax.data.quickstart import processor

    small = dict(patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    rows = written_rows(folder / "base.jsonl", map(LAYOUTS["plain"].row, content))
    train("sft", processor.write_base(folder / "shape", **small), rows, (), folder / "base", "init_random=true")
    return folder / "base"


def read(written: Written, rows: Path):
    """The examples of a file of a layout."""
    from srlhfv_jax.data import loader, sources

    return sources.load_examples(loader.single_pass(str(rows), **dict(one.split("=") for one in written.options)))


def chosen() -> Iterator[tuple[str, Written]]:
    """The layouts of --only."""
    for name, written in LAYOUTS.items():
        if not FLAGS.only or name in FLAGS.only:
            yield name, written


class Trial:
    """All layouts, tried one after the other in one folder."""

    def __init__(self, folder: Path):
        self.folder, self.content = folder, talks(folder)
        self.base = folder if FLAGS.untrained else base_model(folder, self.content)

    @functools.cache
    def plain(self, says: str, stage: str) -> str:
        """metrics.jsonl of a stage on content in plain rows."""
        name = "-".join([*says.split(), stage])
        talks_to_learn = [talk for talk in self.content if desirable(talk, says) is not False]
        rows = written_rows(self.folder / f"plain-{name}.jsonl", (plain(talk, says) for talk in talks_to_learn))
        return train(stage, self.base, rows, (), self.folder / "plain" / name).metrics

    def trained(self, name: str, written: Written, rows: Path) -> Iterator[tuple[str, Trained, bool | None]]:
        """Each stage of a layout: its name, what it left, and whether it is what plain rows leave."""
        for stage in () if FLAGS.untrained else written.stages:
            done = train(stage, self.base, rows, written.options, self.folder / "runs" / f"{rows.stem}-{stage}")
            yield STAGES[stage][0], done, None if "asked" in written.says else done.metrics == self.plain(written.says, stage)

    def tried(self, name: str, written: Written) -> dict[str, Any]:
        """One layout: rows as meant, and rows and losses of its stages."""
        rows = written_rows(self.folder / f"{name.replace(' ', '_')}.jsonl", map(written.row, self.content))
        examples = read(written, rows)
        right = sum(as_meant(example, talk, written.says, self.folder) for example, talk in zip(examples, self.content))
        line = {
            "name": name,
            "layout": examples.layout,
            "as_meant": f"{right} of {len(self.content)}",
            "row": written.row(self.content[1]),
        }
        line |= {"named": examples.layout == name.split(" ")[0], "inspect": inspected(examples)}
        stages = list(self.trained(name, written, rows))
        line |= {stage: {"rows": done.rows, "loss": round(done.loss, 4)} for stage, done, _ in stages}
        same = [one for _, _, one in stages if one is not None]
        return line | {"as_plain": all(same) if same else None}


def inspected(examples) -> str:
    """What `srlhfv data inspect` says of rows, in a few words."""
    from srlhfv_jax.data import summary

    numbers = summary.summarise(examples)
    heads = ", ".join(
        f"{key.removeprefix('labelled.')} {count}" for key, count in numbers.items() if "labelled." in key and count
    )
    turns = ", earlier turns" * (numbers["with_earlier_turns"] > 0) + ", a system turn" * (numbers["with_system_turn"] > 0)
    pictures = ", a picture" * (numbers["with_image"] > 0)
    desirable = f", desirable {numbers['desirable']}" if numbers["desirable"] else ""
    labelled = f"labelled rows: {heads or 'none'}{desirable}"
    return f"`{examples.layout}`, {len(examples)} of {examples.source_rows} rows{turns}{pictures}; {labelled}"


def row_of_table(line: dict[str, Any], written: Written) -> str:
    """A line of Markdown."""
    commands = dict.fromkeys(STAGES[stage][0] for stage in written.stages)
    learned = ", ".join(f"{one} {line[one]['rows']}" if one in line else one for one in commands)
    given = [f"taxonomy={one.partition(':')[2]}" for one in written.stages if ":" in one]
    options = "".join(f", `--config.{one}`" for one in [*given, *(f"data.{one}" for one in written.options)])
    return f"| {line['name']} | `{json.dumps(line['row'])}` | {learned}{options} | {line['inspect']} |"


def main(_) -> int:
    """Every layout, one line each."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.set_verbosity(logging.WARNING)  # of the library that writes checkpoints
    right, count = 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        trial = Trial(Path(temporary))
        if FLAGS.table:
            print("| layout | a row | stages, and the rows they learned from | `srlhfv data inspect` |\n|---|---|---|---|")
        for name, written in chosen():
            line = trial.tried(name, written)
            print(row_of_table(line, written) if FLAGS.table else json.dumps(line), flush=True)
            count += 1
            right += line["named"] and line["as_meant"] == f"{ROWS} of {ROWS}" and line["as_plain"] is not False
    print(json.dumps({"layouts": count, "as_meant": right}))
    return int(right != count)


if __name__ == "__main__":
    app.run(main)
