"""Every layout of rows that people have: written, read as meant, and trained on for two tiny steps.

    python benchmarks/formats.py [--only=messages,verl] [--untrained] [--table]

One small set of conversations (a system turn, an earlier question, pictures, two answers, labels) is written in every layout, as far as
the layout can say it, and read again. `as_meant` counts rows that are what was written. Then `sft`, `scores` and `guard` train on it where
the labels allow, for two steps on a made model, each in a workdir of its own. Prints a line of JSON a layout, and the share of layouts
that are as meant last; exit code 1 unless that is all of them. `--table` prints the table of docs/data.md instead of training.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from PIL import Image

FLAGS = flags.FLAGS
flags.DEFINE_list("only", [], "layouts; empty: all")
flags.DEFINE_boolean("untrained", False, "read the rows, and train on none")
flags.DEFINE_boolean("table", False, "print a table of layouts, rows, commands and what inspect says")

ROWS = 8
FLAGS_OF_OPENAI = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


class Talk(NamedTuple):
    """The content of one row."""

    number: int
    picture: str  # a file beside the rows
    question: str
    better: str
    worse: str


class Written(NamedTuple):
    """One layout: its row, what of the content it can say, and the stages that can learn from it."""

    row: Callable[[Talk], dict[str, Any]]
    says: str  # of "picture", "history", "system", "pair", "answer"
    stages: tuple[str, ...]  # as in `train`
    options: tuple[str, ...] = ()  # of the data section


def talks(folder: Path) -> list[Talk]:
    """Content whose rows all differ, and its pictures."""
    things = "knife rope match pill saw lamp cup hammer".split()
    for number in range(ROWS):
        Image.linear_gradient("L").resize((30 + number, 26)).convert("RGB").save(folder / f"{number}.png")
    return [
        Talk(i, f"{i}.png", f"what is the {things[i]} for ?", f"the {things[i]} is for work .", "do not ask .")
        for i in range(ROWS)
    ]


def user(text: Any, role: str = "role", content: str = "content", who: str = "user") -> dict[str, Any]:
    return {role: who, content: text}


def assistant(text: str, role: str = "role", content: str = "content", who: str = "assistant") -> dict[str, Any]:
    return {role: who, content: text}


SYSTEM = {"role": "system", "content": "be brief ."}
EARLIER = [user("is it old ?"), assistant("it is new .")]
HUMAN = {"role": "from", "content": "value", "who": "human"}
GPT = {"role": "from", "content": "value", "who": "gpt"}
BOTH = ("chosen_means=both",)
PAIR = ("sft", "scores")
LAYOUTS: dict[str, Written] = {
    "beavertails_v": Written(
        lambda t: {
            "image": t.picture,
            "question": t.question,
            "response_1": t.better,
            "response_2": t.worse,
            "more_helpful_response_id": "1",
            "safer_response_id": "1",
            "is_response_1_safe": "yes",
            "is_response_2_safe": "no",
        },
        "picture pair",
        ("sft", "scores", "guard"),
    ),
    "beavertails_v_qa": Written(
        lambda t: {
            "image": t.picture,
            "question": t.question,
            "response": t.better,
            "is_response_safe": "yes" if t.number % 2 else "no",
        },
        "picture answer",
        ("sft", "guard"),
    ),
    "pku_saferlhf": Written(
        lambda t: {
            "prompt": t.question,
            "response_0": t.better,
            "response_1": t.worse,
            "better_response_id": 0,
            "safer_response_id": 0,
            "is_response_0_safe": True,
            "is_response_1_safe": False,
        },
        "pair",
        ("sft", "scores", "guard"),
    ),
    "beavertails": Written(
        lambda t: {"prompt": t.question, "response": t.better, "category": {"violence": False}, "is_safe": bool(t.number % 2)},
        "answer",
        ("sft", "guard"),
    ),
    "openai_moderation": Written(
        lambda t: (
            {"prompt": t.question} | {name: int(t.number == place) for place, name in enumerate(FLAGS_OF_OPENAI[:-1])} | {"V2": 0}
        ),
        "",
        ("openai",),
    ),
    "preference": Written(
        lambda t: {
            "prompt": [SYSTEM, *EARLIER, user(t.question)],
            "chosen": [assistant(t.better)],
            "rejected": [assistant(t.worse)],
            "images": [t.picture],
        },
        "system history picture pair",
        PAIR,
        BOTH,
    ),
    "preference (standard)": Written(
        lambda t: {"prompt": t.question, "chosen": f" {t.better}", "rejected": f" {t.worse}"}, "pair", PAIR, BOTH
    ),
    "preference (implicit)": Written(
        lambda t: {"chosen": [user(t.question), assistant(t.better)], "rejected": [user(t.question), assistant(t.worse)]},
        "pair",
        PAIR,
        BOTH,
    ),
    "spa_vl": Written(
        lambda t: {"image": t.picture, "question": t.question, "chosen": t.better, "rejected": t.worse},
        "picture pair",
        PAIR,
        BOTH,
    ),
    "mmsafe_po": Written(
        lambda t: {
            "question": f"USER: <image>\n{t.question} ASSISTANT:",
            "image": t.picture,
            "chosen": f"ASSISTANT: {t.better}",
            "rejected": f"ASSISTANT: {t.worse}",
            "type": "harmless" if t.number % 2 else "helpful",
            "text_prompt": "USER: x ASSISTANT:",
        },
        "picture pair",
        ("scores",),
    ),
    "alpaca_pairs": Written(
        lambda t: {"instruction": t.question, "input": "", "chosen": t.better, "rejected": t.worse}, "pair", PAIR, BOTH
    ),
    "sharegpt_pairs": Written(
        lambda t: {
            "conversations": [user(t.question, **HUMAN)],
            "chosen": assistant(t.better, **GPT),
            "rejected": assistant(t.worse, **GPT),
        },
        "pair",
        PAIR,
        BOTH,
    ),
    "message_pairs": Written(
        lambda t: {
            "chosen_messages": [*EARLIER, user(t.question), assistant(t.better)],
            "rejected_messages": [*EARLIER, user(t.question), assistant(t.worse)],
        },
        "history pair",
        PAIR,
        BOTH,
    ),
    "aligner": Written(lambda t: {"question": t.question, "answer": t.worse, "correction": t.better}, "pair", PAIR, BOTH),
    "messages": Written(
        lambda t: {
            "messages": [
                SYSTEM,
                *EARLIER,
                user([{"type": "image_url", "image_url": {"url": t.picture}}, {"type": "text", "text": t.question}]),
                assistant(t.better),
            ]
        },
        "system history picture answer",
        ("sft",),
    ),
    "messages (rejected)": Written(
        lambda t: {"messages": [user(t.question), assistant(t.better)], "rejected_response": t.worse}, "pair", PAIR, BOTH
    ),
    "conversation": Written(
        lambda t: {"conversations": [user(f"<image>\n{t.question}", **HUMAN), assistant(t.better, **GPT)], "image": t.picture},
        "picture answer",
        ("sft",),
    ),
    "verl": Written(
        lambda t: {"data_source": "made", "prompt": [user(t.question)], "reward_model": {"style": "rule", "ground_truth": "4"}},
        "",
        (),
    ),
    "unpaired": Written(
        lambda t: {"prompt": t.question, "completion": t.better, "label": bool(t.number % 2)},
        "answer",
        ("sft", "guard"),
        ("label_means=unsafe",),
    ),
    "prompt_completion": Written(lambda t: {"prompt": t.question, "completion": t.better}, "answer", ("sft",)),
    "question_answer": Written(lambda t: {"question": t.question, "answer": t.better}, "answer", ("sft",)),
    "alpaca": Written(lambda t: {"instruction": t.question, "input": "", "output": t.better}, "answer", ("sft",)),
    "swift": Written(
        lambda t: {
            "system": "be brief .",
            "query": t.question,
            "response": t.better,
            "history": [["is it old ?", "it is new ."]],
            "images": [t.picture],
        },
        "system history picture answer",
        ("sft",),
    ),
    "swift (rejected)": Written(
        lambda t: {"query": t.question, "response": t.better, "rejected_response": t.worse}, "pair", PAIR, BOTH
    ),
    "plain": Written(
        lambda t: {
            "question": t.question,
            "image": t.picture,
            "responses": [t.better, t.worse],
            "chosen": 0,
            "safer": 0,
            "unsafe": [False, True],
        },
        "picture pair",
        ("sft", "scores", "guard"),
    ),
}


def as_meant(example, talk: Talk, says: str, folder: Path) -> bool:
    """Whether an example is the content, as far as its layout says it."""
    from srlhfv_jax.data.rows import Turn

    history = (Turn("system", "be brief ."),) * ("system" in says)
    history += (Turn("user", "is it old ?"), Turn("assistant", "it is new .")) * ("history" in says)
    answers = (talk.better, talk.worse) if "pair" in says else (talk.better,) if "answer" in says else ()
    images = ((folder / talk.picture).read_bytes(),) * ("picture" in says)
    question = example.question.removeprefix("<image>").strip()
    return (example.history, question, example.responses, example.images) == (history, talk.question, answers, images)


STAGES = {
    "sft": ("sft", ()),
    "scores": ("scores", ("sign_weight=0.0",)),
    "guard": ("guard", ("category_weight=0.0",)),
    "openai": ("guard", ("taxonomy=openai_moderation", "parts=('input',)")),
}


def train(stage: str, base: Path, rows: Path, options: tuple[str, ...], workdir: Path) -> dict[str, float]:
    """Two steps of a stage; its last numbers."""
    from srlhfv_jax.cli import flags as settings
    from srlhfv_jax.config import GuardConfig, ScoresConfig, SFTConfig
    from srlhfv_jax.guard import train as guard
    from srlhfv_jax.supervised import scores, sft

    command, changes = STAGES[stage]
    kind, run = {"sft": (SFTConfig, sft.run), "scores": (ScoresConfig, scores.run), "guard": (GuardConfig, guard.run)}[command]
    lengths = ("data.prompt_length=64", "data.response_length=32", "model.scan_unroll=1", "mesh.fsdp=1")
    weights = () if (base / "export").exists() or command != "sft" else ("init_random=true",)
    given = (f"init={base}", *weights, f"data.path={rows}", *lengths, *(f"data.{one}" for one in options), *changes)
    argv = [f"--config={command}.py:tiny", f"--workdir={workdir}", *(f"--config.{one}" for one in given)]
    return run(*settings.stage(command, kind, argv, ""))


def base_model(folder: Path, content: list[Talk]) -> Path:
    """The workdir of a small LLaVA with weights: two steps from random ones."""
    from srlhfv_jax.data.quickstart import processor

    small = dict(patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    rows = folder / "base.jsonl"
    rows.write_text("".join(json.dumps(LAYOUTS["plain"].row(talk)) + "\n" for talk in content))
    with contextlib.redirect_stdout(io.StringIO()):
        train("sft", processor.write_base(folder / "shape", **small), rows, (), folder / "base")
    return folder / "base"


def chosen() -> Iterator[tuple[str, Written]]:
    """The layouts of --only."""
    for name, written in LAYOUTS.items():
        if not FLAGS.only or name in FLAGS.only:
            yield name, written


def tried(name: str, written: Written, folder: Path, base: Path, content: list[Talk]) -> dict[str, Any]:
    """One layout: rows as meant, and the losses of its stages."""
    from srlhfv_jax.data import loader, sources

    rows = folder / f"{name.replace(' ', '_')}.jsonl"
    rows.write_text("".join(json.dumps(written.row(talk)) + "\n" for talk in content))
    options = dict(one.split("=") for one in written.options)
    examples = sources.load_examples(loader.single_pass(str(rows), **options))
    right = sum(as_meant(example, talk, written.says, folder) for example, talk in zip(examples, content))
    losses = {}
    for stage in () if FLAGS.untrained else written.stages:
        with contextlib.redirect_stdout(io.StringIO()):
            numbers = train(stage, base, rows, written.options, folder / "runs" / f"{rows.stem}-{stage}")
        losses[stage] = next(value for key, value in numbers.items() if "loss" in key)
    told = {"layout": examples.layout, "as_meant": f"{right} of {len(content)}", "named": examples.layout == name.split(" ")[0]}
    return {"name": name} | told | {f"loss.{stage}": round(loss, 4) for stage, loss in losses.items()}


def table(folder: Path, content: list[Talk]) -> None:
    """Rows of Markdown."""
    from srlhfv_jax.data import loader, sources, summary

    print("| layout | a row | stages | `srlhfv data inspect` |\n|---|---|---|---|")
    for name, written in chosen():
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(written.row(talk)) + "\n" for talk in content))
        options = dict(one.split("=") for one in written.options)
        examples = sources.load_examples(loader.single_pass(str(rows), **options))
        numbers = summary.summarise(examples)
        heads = ", ".join(
            f"{key.removeprefix('labelled.')} {count}" for key, count in numbers.items() if "labelled." in key and count
        )
        turns = ", earlier turns" * (numbers["with_earlier_turns"] > 0) + ", a system turn" * (numbers["with_system_turn"] > 0)
        pictures = ", a picture" * (numbers["with_image"] > 0)
        said = f"`{examples.layout}`, {len(examples)} of {examples.source_rows} rows{turns}{pictures}; labelled rows: {heads or 'none'}"
        row = json.dumps(written.row(content[1]))
        stages = ", ".join(STAGES[stage][0] for stage in written.stages) or "prompts"
        print(f"| {name} | `{row}` | {stages}{''.join(f', `--config.data.{one}`' for one in written.options)} | {said} |")


def main(_) -> int:
    """Every layout, one line each."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.set_verbosity(logging.WARNING)  # of the library that writes checkpoints
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        content = talks(folder)
        if FLAGS.table:
            table(folder, content)
            return 0
        base = folder if FLAGS.untrained else base_model(folder, content)
        right, count = 0, 0
        for name, written in chosen():
            line = tried(name, written, folder, base, content)
            print(json.dumps(line), flush=True)
            count += 1
            right += line["named"] and line["as_meant"] == f"{ROWS} of {ROWS}"
        print(json.dumps({"layouts": count, "as_meant": right}))
    return int(right != count)


if __name__ == "__main__":
    app.run(main)
