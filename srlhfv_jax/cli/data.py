"""`srlhfv data inspect`: layout, rows, drops by reason, labels, lengths and samples of a data set.
`srlhfv data prepare`: write a TFDS folder (ArrayRecord, read row by row) from downloaded files, or of the embedded task.

    srlhfv data inspect --path=FOLDER [--split=train] [--model=HF_FOLDER --kind=pairs --prompt_length=640 --response_length=512]
    srlhfv data prepare --source=FOLDER --target=FOLDER [--name=beavertails_v]
    srlhfv data prepare --name=look_before_you_answer/pairs --target=FOLDER --seed=0 --count=4000
"""

from functools import partial
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.config import DataConfig, choose
from srlhfv_jax.errors import UserError

BUILDERS = ("beavertails_v", "beavertails_v_qa", "pku_saferlhf", "beavertails")
TASK = "look_before_you_answer"
TASK_CONFIGS = ("naming", "sft", "prompts", "pairs")


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    match argv[0]:
        case "inspect":
            _inspect(argv[1:])
        case "prepare":
            _prepare(argv[1:])
        case other:
            raise UserError(
                f"srlhfv data takes prepare or inspect, got {other!r}; {flags.nearest(other, ('prepare', 'inspect'))}"
            )


def _inspect(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("path", None, ".jsonl or .parquet file, a folder of them, or a TFDS folder", flag_values=values)
    absl_flags.DEFINE_string("split", "", "such as train, train[:1000] or [10%:]", flag_values=values)
    absl_flags.DEFINE_string(
        "image_dir", "", "folder of images named by relative paths; empty: beside the file", flag_values=values
    )
    absl_flags.DEFINE_string("allow_dir", "", "a second folder that links of images may lead to; empty: none", flag_values=values)
    absl_flags.DEFINE_integer("max_pixels", 0, "most pixels of a picture; 0: the checkpoint's own limit", flag_values=values)
    absl_flags.DEFINE_string("model", "", "Hugging Face folder: also count tokens and check the lengths", flag_values=values)
    absl_flags.DEFINE_enum("kind", None, ["supervised", "pairs", "prompts"], "use to check the rows for", flag_values=values)
    absl_flags.DEFINE_integer("prompt_length", 1 << 20, "P: prompts with more tokens are dropped", flag_values=values)
    absl_flags.DEFINE_integer("response_length", 1 << 20, "R: responses with more tokens are dropped", flag_values=values)
    absl_flags.DEFINE_integer("workers", 4, "threads that decode pictures", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer("samples", 3, "rows to print", lower_bound=0, flag_values=values)
    absl_flags.DEFINE_string("workdir", "", "write the numbers to WORKDIR/result.json", flag_values=values)
    flags.read(values, "data inspect", argv, __doc__)
    flags.required(values, "path")
    from srlhfv_jax.data import sources, summary

    data = DataConfig(
        path=values.path,
        split=values.split,
        image_dir=values.image_dir,
        allow_dir=values.allow_dir,
        prompt_length=values.prompt_length,
        response_length=values.response_length,
        batch_size=1,
        workers=values.workers,
        max_pixels=values.max_pixels,
        picture_buckets=1,
    )
    examples = sources.load_examples(data)
    numbers = summary.summarise(examples)
    _print_numbers(numbers)
    _print_drops("rows that cannot be read", examples.drops, examples.dropped, values.samples)
    if values.model:
        numbers |= _with_model(values, data, examples)
    for index in range(min(values.samples, len(examples))):
        _print_sample(examples.kept[index], examples[index])
    if values.workdir:
        from srlhfv_jax.training.metrics import write_result

        write_result(Path(values.workdir), numbers)


def _with_model(values: absl_flags.FlagValues, data: DataConfig, examples) -> dict:
    """Lengths in tokens, and what this use of the rows would drop."""
    from srlhfv_jax.data import chat, loader, summary
    from srlhfv_jax.hf.load import load_config_and_processor

    processor = load_config_and_processor(values.model)[1]
    codec = chat.codec(processor, data.max_pixels)
    kind = values.kind or ("prompts", "supervised", "pairs")[len(examples[0].responses)]
    lengths = summary.token_lengths(examples, codec)
    print(f"\nwith {values.model}, as {kind}:")
    _print_numbers(lengths)
    prepared = loader.fit(kind, examples, processor, data)
    _print_numbers({"fit": len(prepared.rows)})
    _print_drops(f"rows that cannot be used as {kind}", prepared.drops, prepared.dropped, values.samples)
    print(f"first prompt:\n{codec.prompt_text(examples[0].question, len(examples[0].images))!r}")
    return lengths | {"fit": len(prepared.rows)} | {f"fit_drops.{reason}": count for reason, count in prepared.drops.items()}


def _prepare(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    known = ", ".join((*BUILDERS, *(f"{TASK}/{config}" for config in TASK_CONFIGS)))
    absl_flags.DEFINE_string("name", "", f"data set to write: {known}; empty: the layout of the source", flag_values=values)
    absl_flags.DEFINE_string("source", "", "downloaded .parquet or .jsonl files, or their folder", flag_values=values)
    absl_flags.DEFINE_string("target", None, "folder to write below", flag_values=values)
    absl_flags.DEFINE_integer("seed", 0, f"of {TASK}", lower_bound=0, upper_bound=flags.SEEDS, flag_values=values)
    absl_flags.DEFINE_integer("count", 4000, f"training rows of {TASK}", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_bool("overwrite", False, "replace what is there", flag_values=values)
    absl_flags.DEFINE_string("workdir", "", "write the numbers to WORKDIR/result.json", flag_values=values)
    flags.read(values, "data prepare", argv, __doc__)
    flags.required(values, "target")
    folder = _build_task(values) if values.name.split("/")[0] == TASK else _build_files(values)
    numbers = _written(folder)
    print(f"wrote {folder}: use it as data.path")
    _print_numbers(numbers)
    if values.workdir:
        from srlhfv_jax.training.metrics import write_result

        write_result(Path(values.workdir), numbers | {"path": str(folder)})


def _build_task(values: absl_flags.FlagValues) -> Path:
    from srlhfv_jax.data.tfds import look_before_you_answer as task

    config = choose(values.name.partition("/")[2], f"--name={TASK}/...", *TASK_CONFIGS)
    try:
        splits = task.standard(config, seed=values.seed, count=values.count)
    except ModuleNotFoundError as error:
        raise UserError(f"{TASK} needs {error.name}, which is not installed: pip install 'srlhfv-jax[quickstart]'") from error
    return task.write(Path(values.target), config, splits, overwrite=values.overwrite)


def _build_files(values: absl_flags.FlagValues) -> Path:
    from srlhfv_jax.data import rows, sources
    from srlhfv_jax.data.tfds import records

    flags.required(values, "source")
    source = Path(values.source)
    if not values.source or not source.exists():
        raise UserError(f"--source={values.source} does not exist: give the files of the data set, downloaded before")
    first = next(iter(records.local_splits(source).values()))[0]
    columns = sources.open_rows(str(first), "", "").columns
    layout = values.name or rows.detect(columns)
    match layout:
        case "beavertails_v":
            from srlhfv_jax.data.tfds.beavertails_v import BeavertailsV as Builder
        case "beavertails_v_qa":
            from srlhfv_jax.data.tfds.beavertails_v_qa import BeavertailsVQa as Builder
        case "pku_saferlhf":
            from srlhfv_jax.data.tfds.pku_saferlhf import PkuSaferlhf as Builder
        case "beavertails":
            from srlhfv_jax.data.tfds.beavertails import Beavertails as Builder
        case "plain":
            raise UserError(f"{first} is a plain question file, which stages read as it is: there is nothing to prepare")
        case other:
            raise UserError(f"there is no data set {other!r}; {flags.nearest(other, (*BUILDERS, TASK))}")
    left_out = [name for name in columns if name not in Builder.COLUMNS]
    if left_out:
        print(f"columns that are not written: {rows.listed(left_out)}")
    return records.build(partial(Builder, source=source), Path(values.target), overwrite=values.overwrite)


def _written(folder: Path) -> dict[str, int]:
    import json

    info = json.loads((folder / "dataset_info.json").read_text())
    drops = json.loads((folder / "drops.json").read_text())
    splits = {f"split.{split['name']}": sum(int(count) for count in split["shardLengths"]) for split in info["splits"]}
    return splits | {f"drops.{reason}": count for reason, count in drops.items()}


def _print_numbers(numbers: dict) -> None:
    for name, value in numbers.items():
        if value is not None:
            print(f"  {name:<28}{value:.4f}" if isinstance(value, float) else f"  {name:<28}{value}")


def _print_drops(title: str, drops, dropped, samples: int) -> None:
    from srlhfv_jax.data.drops import REASONS

    print(f"\n{title}: {sum(drops.values())}")
    for reason, count in drops.most_common():
        print(f"  {count:>7}  {reason}: {REASONS[reason]}")
        for drop in [drop for drop in dropped if drop.reason == reason][:samples]:
            print(f"           row {drop.row}: {drop.detail[:110]}")


def _print_sample(number: int, example) -> None:
    sizes = " and ".join(f"{len(image)} bytes" for image in example.images)
    print(f"\nrow {number}: {f'{len(example.images)} images of {sizes}' if sizes else 'no image'}")
    print(f"  question   {example.question[:110]!r}")
    for side, response in enumerate(example.responses):
        marks = [name for name, index in (("more helpful", example.chosen), ("safer", example.safer)) if index == side]
        flag = example.unsafe[side] if example.unsafe else None
        marks += [] if flag is None else ["unsafe" if flag else "safe"]
        print(f"  response {side} {response[:110]!r} ({', '.join(marks) or 'not labelled'})")
    if example.meta:
        print("  " + ", ".join(f"{name}={value[:30]}" for name, value in list(example.meta.items())[:8]))
