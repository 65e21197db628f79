"""Damaged rows, files of rows, prepared data sets and pictures."""

import contextlib
import dataclasses
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fault_damage import Inputs, damaged, damaged_bytes
from fault_rows import layouts, picture
from PIL import Image

from srlhfv_jax.cli import data as data_command, flags
from srlhfv_jax.config import DataConfig, SFTConfig
from srlhfv_jax.data import chat, images, loader, pictures, sources
from srlhfv_jax.data.quickstart import processor


def settings(path: Path, split: str = "") -> DataConfig:
    tiny, _ = flags.stage("sft", SFTConfig, ["--config=sft.py:tiny", "--workdir=none"], "")
    return dataclasses.replace(
        tiny.data, path=str(path), split=split, prompt_length=40, response_length=18, batch_size=2, workers=0
    )


def use_rows(path: Path, kind: str, made_for: Any, split: str = "") -> None:
    """Read rows, fit them, and make every batch; nothing may be lost on the way."""
    data = settings(path, split)
    examples = sources.load_examples(data)
    dropped = examples.drops.total()
    assert len(examples) + dropped == examples.source_rows, f"{examples.source_rows} rows: {len(examples)} and {dropped} dropped"
    fitted = loader.fit(kind, examples, made_for, data)
    assert len(fitted.rows) + fitted.drops.total() == len(examples), f"{len(examples)} examples: {fitted.drops}"
    batches = loader.all_batches(fitted, kind, None, data, batch_size=2)
    seen = sum(int(np.sum(real_B)) for _, real_B in batches)
    assert seen == len(fitted.rows), f"{seen} of {len(fitted.rows)} rows came in batches"


def rows(folder: Path, draw: random.Random) -> Inputs:
    """One damaged row between two good ones, as JSON lines or parquet."""
    made_for = processor.processor(16)
    place = folder / "rows"
    place.mkdir(exist_ok=True)
    (place / "a.png").write_bytes(picture(draw, shape=(30, 26)))
    while True:
        name, good = draw.choice(list(layouts(draw).items()))
        done, bad = damaged(good, draw)
        kind = draw.choice(loader.KINDS)
        for old in place.glob("rows.*"):
            old.unlink()
        path = place / "rows.jsonl"
        three = [good, bad, good]
        try:
            if draw.random() < 0.3:
                path = place / "rows.parquet"
                pq.write_table(pa.Table.from_pylist(three), path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in three))
        except (pa.ArrowException, ValueError, OverflowError, AttributeError, TypeError):  # no parquet can hold these rows
            continue
        yield f"{name} as {kind} in {path.suffix}: {done}", lambda: use_rows(path, kind, made_for)


def files(folder: Path, draw: random.Random) -> Inputs:
    """Damaged files of good rows, JSON lines and parquet."""
    made_for = processor.processor(16)
    good = [{"question": f"what is this ? {number}", "response": "it is a knife ."} for number in range(8)]
    contents = {"rows.jsonl": _lines(good), "rows.parquet": _table(good)}
    place = folder / "files"
    while True:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        name = draw.choice(list(contents))
        done, content = damaged_bytes(contents[name], draw)
        (place / name).write_bytes(content)
        yield f"{name} {done}", lambda name=name: use_rows(place / name, "supervised", made_for)


def prepared(folder: Path, draw: random.Random) -> Inputs:
    """TFDS folders of any state: files cut, changed, away, twice, of other values, beside another version."""
    made_for, source, target, place = processor.processor(16), folder / "source", folder / "prepared_good", folder / "prepared"
    source.mkdir()
    four = [layouts(random.Random(number))["PKU-SafeRLHF"] | {"prompt": f"what is this ? {number}"} for number in range(4)]
    for split in ("train", "test"):
        (source / f"{split}.jsonl").write_bytes(_lines(four))
    _prepare(f"--source={source}", f"--target={target}")
    (good,) = {path.parent for path in target.rglob("features.json")}
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place / "a" / "1.0.0")
        own, (way,) = place / "a" / "1.0.0", draw.choices(("values", "bytes", "gone", "twice", "folder"), (4, 4, 1, 1, 1))
        names = sorted(path.name for path in own.iterdir())
        name = draw.choice([one for one in names if one.endswith(".json")] if way == "values" else names)
        victim, done = own / name, way
        if way == "values":
            done, changed = damaged(json.loads(victim.read_text()), draw)
            victim.write_text(json.dumps(changed))
        elif way == "bytes":
            done, content = damaged_bytes(victim.read_bytes(), draw)
            victim.write_bytes(content)
        elif way == "twice":
            others = ("a/2.0.0", "b/1.0.0", "a/1.0.0/1.0.0", "a/.writing-x/1.0.0")
            shutil.copytree(good, place / draw.choice(others))
        else:
            victim.unlink()
            if way == "folder":
                victim.mkdir()
        split = draw.choice(("train", "train", "train", "test", "", "none", "train[1:]"))
        yield f"{split!r} of {name}: {done}", lambda split=split: use_rows(place, "pairs", made_for, split)


def preparing(folder: Path, draw: random.Random) -> Inputs:
    """`srlhfv data prepare` of a file with a damaged row, to places of any state; what it wrote reads as the file does."""
    source, target = folder / "preparing", folder / "preparing_target"
    while True:
        for old in (source, target):
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)
        source.mkdir()
        (source / "a.png").write_bytes(picture(draw, shape=(30, 26)))
        layout, good = draw.choice([one for one in layouts(draw).items() if not one[0].startswith("plain")])
        done, bad = damaged(good, draw)
        name = draw.choice(("train.jsonl", "train.parquet", "train-00000-of-00001.jsonl", "odd name.jsonl", "train[1].jsonl"))
        try:
            content = (_table if name.endswith("parquet") else _lines)([good, bad, good])
        except (pa.ArrowException, ValueError, OverflowError, AttributeError, TypeError):  # no parquet can hold these rows
            continue
        if draw.random() < 0.2:
            done, content = damaged_bytes(content, draw)
        (source / name).write_bytes(content)
        state = draw.choice(("none", "none", "none", "a file", "below a file", "there already", "overwritten", "debris"))
        yield (
            f"{layout} in {name}, target {state}: {done}",
            lambda name=name, state=state: _use_prepared(source / name, target, state),
        )


def _use_prepared(source: Path, target: Path, state: str) -> None:
    flags = ["--overwrite"] if state == "overwritten" else []
    if state in ("a file", "below a file"):
        target.write_text("x")
        target = target / "below" if state == "below a file" else target
    elif state == "debris":
        (target / ".writing-old" / "x").mkdir(parents=True)
    elif state in ("there already", "overwritten"):
        _prepare(f"--source={source.parent}", f"--target={target}")
    _prepare(f"--source={source.parent}", f"--target={target}", *flags)
    assert state != "there already", "an earlier data set was replaced"
    expected, got = (sources.load_examples(settings(path)) for path in (source, target))
    dropped = sum(json.loads(next(target.rglob("drops.json")).read_text()).values())
    assert got.source_rows + dropped == expected.source_rows, (
        f"{got.source_rows} rows and {dropped} dropped of {expected.source_rows}"
    )
    same = [one._replace(meta={}) for one in expected] == [one._replace(meta={}) for one in got]
    assert same, "rows differ from those of the file"


def _prepare(*given: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        data_command.main(["prepare", *given])


def _lines(good: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in good).encode()


def _table(good: list[Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(good), out)
    return out.getvalue()


def odd_pictures(folder: Path, draw: random.Random) -> Inputs:
    """Pictures of odd shapes, modes and formats, whole and damaged, through the reader of a checkpoint."""
    reader = chat.codec(processor.processor(16), 0).reader
    modes = {
        "PNG": ("1", "L", "P", "RGB", "RGBA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "GIF": ("P",),
        "BMP": ("RGB",),
        "WEBP": ("RGB",),
    }

    def use(encoded: bytes) -> None:
        (patches,) = pictures.cut(reader, [images.decode(encoded)])
        assert np.isfinite(patches).all(), "values that are not finite"

    while True:
        kind = draw.choice(list(modes))
        mode = draw.choice(modes[kind])
        shape = draw.choice((None, (1, 1), (1, draw.randrange(1, 3000)), (draw.randrange(1, 3000), 1), (400, 300)))
        encoded = picture(draw, shape=shape, mode="L" if mode == "I;16" else mode, kind=kind)
        if mode == "I;16":
            out = io.BytesIO()
            Image.fromarray(np.frombuffer(draw.randbytes(2 * 12 * 9), np.uint16).reshape(9, 12)).save(out, "PNG")
            encoded = out.getvalue()
        done = "whole"
        if draw.random() < 0.6:
            done, encoded = damaged_bytes(encoded, draw)
        yield f"{kind} {mode} {shape} {done}", lambda: use(encoded)
