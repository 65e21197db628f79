"""`srlhfv data inspect`: layout, rows, drops by reason, labels, lengths and samples of a data set.
`srlhfv data prepare`: write a TFDS folder (ArrayRecord, read row by row) from downloaded files, or of the embedded task.

    srlhfv data inspect --path=FOLDER [--split=train] [--model=HF_FOLDER --kind=pairs --prompt_length=640 --response_length=512]
    srlhfv data prepare --source=FOLDER --target=FOLDER [--name=beavertails_v|beavertails_v_qa|pku_saferlhf|beavertails]
    srlhfv data prepare --name=look_before_you_answer/naming|sft|prompts|pairs --target=FOLDER --seed=0 --count=4000
"""

from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError, nearest


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    uses = {"inspect": _inspect, "prepare": _prepare}
    if argv[0] not in uses:
        raise UserError(f"srlhfv data takes prepare or inspect, got {argv[0]!r}; {nearest(argv[0], uses)}")
    workdir, numbers = uses[argv[0]](argv[1:])
    if workdir:
        from srlhfv_jax.training.metrics import write_result

        write_result(Path(workdir), numbers)


def _inspect(argv: list[str]) -> tuple[str, dict]:
    command = define.define()
    command.text("path", None, "file or folder of rows, TFDS folder, or owner/name of the hub; several: a.jsonl:0.7,b.csv:0.3")
    define.rows(command)
    command.text("model", "", "Hugging Face folder: also count tokens and check the lengths")
    command.choice("kind", None, ["supervised", "pairs", "preference", "prompts"], "use to check the rows for")
    command.choice("axis", "helpful", ["helpful", "safer", "each"], "of --kind=preference: who wins a pair; each: nobody (KTO)")
    command.choice("transform", "none", ["none", "safe_winner", "safedpo"], "of --kind=preference: pairs whose winner is unsafe")
    command.text("chat_template", "", "file of a chat template in the place of the model's own; empty: its own")
    command.whole("prompt_length", 0, "P: prompts with more tokens are dropped; 0: none is")
    command.whole("response_length", 0, "R: responses with more tokens are dropped; 0: none is")
    command.whole("workers", 4, "threads that decode pictures", 1)
    command.whole("samples", 3, "rows to print")
    command.text("workdir", "", "write the numbers to WORKDIR/result.json")
    values = command.values
    switches.read(values, "data inspect", argv, __doc__)
    switches.required(values, "path")
    from srlhfv_jax.data import given, inspection, loader, preferences, templates
    from srlhfv_jax.hf.load import load_config_and_processor

    P, R = (length or loader.UNLIMITED for length in (values.prompt_length, values.response_length))
    how = define.settings(given.RowSettings, values)
    data = given.single_pass(values.path, how, prompt_length=P, response_length=R, workers=values.workers)
    processor = templates.override(load_config_and_processor(values.model)[1], values.chat_template) if values.model else None
    choice = preferences.Choice(values.axis, values.transform, flags=False)
    how = dict(samples=values.samples, processor=processor, model=values.model, kind=values.kind, choice=choice)
    numbers = inspection.inspect(data, **how)
    return values.workdir, numbers


def _prepare(argv: list[str]) -> tuple[str, dict]:
    command = define.define()
    command.text("name", "", "data set to write, as above; empty: the layout of the source")
    command.text("source", "", "downloaded .parquet or .jsonl files, or their folder")
    command.text("target", None, "folder to write below")
    command.whole("seed", 0, "of look_before_you_answer", most=define.SEEDS)
    command.whole("count", 4000, "training rows of look_before_you_answer", 1)
    command.switch("overwrite", False, "replace what is there")
    command.text("workdir", "", "write the numbers to WORKDIR/result.json")
    values = command.values
    switches.read(values, "data prepare", argv, __doc__)
    switches.required(values, "target")
    from srlhfv_jax.data import inspection
    from srlhfv_jax.data.tfds import prepare

    options = dict(seed=values.seed, count=values.count, overwrite=values.overwrite)
    folder = prepare.prepare(values.name, values.source, Path(values.target), **options)
    numbers = prepare.written_rows(folder)
    print(f"wrote {folder}: use it as data.path")
    inspection.print_numbers(numbers)
    return values.workdir, numbers | {"path": str(folder)}
