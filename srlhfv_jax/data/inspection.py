"""`srlhfv data inspect`: the contents of a data set, printed: layout, rows, drops by reason, labels, lengths and samples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import chat, images, loader, sources, summary
from srlhfv_jax.data.drops import REASONS
from srlhfv_jax.data.mixtures import Mixture
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.rows import Example, listed

SHOWN = 110  # characters of a text
KINDS = ("prompts", "supervised", "pairs")  # the use of rows with 0, 1 and 2 responses


def inspect(
    data: DataConfig,
    *,
    samples: int,
    processor: Any = None,
    model: str = "",
    kind: str | None = None,
    choice: Choice = loader.HELPFUL,
) -> dict[str, float | str]:
    """Print what is in the rows of `data`; returns the numbers.

    Args:
        samples: rows, and dropped rows of each reason, to print.
        processor: of the checkpoint `model`: tokens are counted too, and the rows are checked for a use; None: they are not.
        kind: that use; None: the one that the first row's number of responses is for.
        choice: of kind "preference": who wins.

    Raises:
        UserError: rows that cannot be read at all.
    """
    examples = sources.load_examples(data)
    numbers = summary.summarise(examples)
    print_numbers(numbers)
    numbers |= _print_columns(examples)
    _print_drops("rows that cannot be read", examples.drops, examples.dropped, samples)
    if processor is not None:
        kind = kind or KINDS[len(examples[0].responses)]
        numbers |= _with_model(examples, data, processor, model, kind, samples, choice)
    for index in range(min(samples, len(examples))):
        _print_sample(examples.kept[index], examples[index])
    return numbers


def _print_columns(examples: sources.Examples | Mixture) -> dict[str, str]:
    """Layout and columns that are not used, of each source."""
    parts = examples.parts if isinstance(examples, Mixture) else (examples,)
    names = [source.path for source in examples.sources] if isinstance(examples, Mixture) else [""]
    for name, part in zip(names, parts):
        where = f"{name}: " if name else ""
        print(f"\n{where}read as {part.layout}: {len(part)} of {part.source_rows} rows")
        print(f"{where}columns that are not used, or only carried along: {listed(part.unused) or 'none'}")
    return {"unused_columns": ", ".join(dict.fromkeys(name for part in parts for name in part.unused))}


def print_numbers(numbers: dict[str, Any]) -> None:
    """One line for each number that there is."""
    for name, value in numbers.items():
        if value is not None:
            print(f"  {name:<28}{value:.4f}" if isinstance(value, float) else f"  {name:<28}{value}")


def _with_model(
    examples: sources.Examples, data: DataConfig, processor: Any, model: str, kind: str, samples: int, choice: Choice
) -> dict[str, float]:
    """Lengths in tokens, and what this use of the rows would drop."""
    codec = chat.codec(processor, data.max_pixels, data.system_prompt)
    lengths = summary.token_lengths(examples, codec)
    print(f"\nwith {model}, as {kind}:")
    print_numbers(lengths)
    prepared = loader.fit(kind, examples, processor, data, choice=choice)
    print_numbers({"fit": len(prepared.rows)})
    if loader.merges_system(prepared):
        print(chat.MERGED)
    _print_drops(f"rows that cannot be used as {kind}", prepared.drops, prepared.dropped, samples)
    print(f"first prompt:\n{codec.prompt_text(examples[0].question, len(examples[0].images), examples[0].history)!r}")
    return lengths | {"fit": len(prepared.rows)} | {f"fit_drops.{reason}": count for reason, count in prepared.drops.items()}


def _print_drops(title: str, drops: Counter, dropped: Sequence[sources.Dropped], samples: int) -> None:
    print(f"\n{title}: {sum(drops.values())}")
    for reason, count in drops.most_common():
        print(f"  {count:>7}  {reason}: {REASONS[reason]}")
        for drop in [drop for drop in dropped if drop.reason == reason][:samples]:
            print(f"           row {drop.row}: {drop.detail[:SHOWN]}")


def _print_sample(number: int, example: Example) -> None:
    sizes = ["{1} x {0}".format(*images.upright_size(image)) for image in example.images]
    print(f"\nrow {number}: " + (f"{len(sizes)} images of {' and '.join(sizes)} pixels" if sizes else "no image"))
    for turn in example.history:
        print(f"  {turn.role:<10} {turn.text[:SHOWN]!r}")
    labels = [] if example.harmful is None else ["harmful" if example.harmful else "harmless"]
    labels += [name for name, has in example.asked if has]
    print(f"  question   {example.question[:SHOWN]!r}" + (f" ({', '.join(labels)})" if labels else ""))
    for side, response in enumerate(example.responses):
        marks = [name for name, index in (("more helpful", example.chosen), ("safer", example.safer)) if index == side]
        flag = example.unsafe[side] if example.unsafe else None
        marks += [] if flag is None else ["unsafe" if flag else "safe"]
        marks += [] if example.desirable is None else ["desirable" if example.desirable else "undesirable"]
        marks += list((example.categories[side] or ()) if example.categories else ())
        print(f"  response {side} {response[:SHOWN]!r} ({', '.join(marks) or 'not labelled'})")
    if example.meta:
        print("  " + ", ".join(f"{name}={value[:30]}" for name, value in list(example.meta.items())[:8]))
