"""Inputs of every kind with random damage, and what becomes of each: "ok", "clear" (one line says what is wrong) or a fault.

A kind is a generator of calls. A call uses one input as a command would; it returns where the input was used, raises what the
package raises for a user's mistake, and AssertionError where something was lost in silence.
"""

import base64
import copy
import dataclasses
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fault_rows import layouts, picture
from PIL import Image

from srlhfv_jax.cli import flags
from srlhfv_jax.cli.stage import check_unchanged
from srlhfv_jax.config import DataConfig, GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data import chat, images, loader, pictures, sources
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.quickstart import processor
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging import recorded, rubric
from srlhfv_jax.guard.service import requests
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.report.build import write_report
from srlhfv_jax.runs import setup

FAULTS = ("traceback", "hang", "long", "silent")
HANG_S = 20
LONGEST_LINE = 600
MISTAKES = (UserError, Unusable, requests.Refused, rubric.Malformed)
NASTY = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(2**63), float("nan"), float("inf"), [], {}, [[[]]], [1, "a"], {"a": 1}),
    *("", " ", "no", "false", "tie", "2.7", "None", "x" * 5000, "\0", "\ud800", "\u202e", "a\u0300" * 200, "<image>", "</s>"),
    *("../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "gs://b/c", "data:image/png;base64,AAAA", "{{ 1 / 0 }}"),
)
Call = Callable[[], None]


class Hang(BaseException):
    """A call took too long. Not an Exception: nothing on the way may catch it."""


def run(kind: str, folder: Path, count: int, until: float, seed: int) -> Iterator[tuple[str, str]]:
    """(outcome, the input and what was said of it) of `count` inputs of a kind, as far as time allows."""
    draw = random.Random(f"{seed} {kind}")
    calls = KINDS[kind](folder, draw)
    for _ in range(count):
        if time.monotonic() > until:
            return
        what, call = next(calls)
        yield outcome(what, call)


def outcome(what: str, call: Call) -> tuple[str, str]:
    def late(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        call()
        return "ok", what
    except MISTAKES as mistake:
        said = str(mistake)
        return "clear" if "\n" not in said and len(said) <= LONGEST_LINE else "long", f"{what}: {said}"
    except AssertionError as error:
        return "silent", f"{what}: {error}"
    except Hang:
        return "hang", what
    except Exception as error:
        return "traceback", f"{what}: {type(error).__name__}: {error}"[:2000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# damage


def damaged(value: Any, draw: random.Random) -> tuple[str, Any]:
    """(what was done, a copy of JSON-like `value` with one to three changes)."""
    value, done = copy.deepcopy(value), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or draw.random() < 0.02:
            value = draw.choice(NASTY)
            done.append(f"all -> {value!r:.60}")
            continue
        holder, key = draw.choice(places)
        if draw.random() < 0.15:
            del holder[key]
            done.append(f"without {key!r:.40}")
        else:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
            done.append(f"{key!r:.40} -> {holder[key]!r:.60}")
    return "; ".join(done), value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damaged_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes cut, changed, repeated or in another encoding)."""
    way = draw.choice(("cut", "flip", "insert", "empty", "twice", "utf-16", "latin", "bom", "nul"))
    at = draw.randrange(max(1, len(content)))
    match way:
        case "cut":
            changed = content[:at]
        case "flip":
            changed = bytearray(content)
            for _ in range(draw.choice((1, 3, 30))):
                if changed:
                    changed[draw.randrange(len(changed))] = draw.randrange(256)
            changed = bytes(changed)
        case "insert":
            changed = content[:at] + draw.randbytes(draw.choice((1, 9, 300))) + content[at:]
        case "empty":
            changed = b""
        case "twice":
            changed = content + content
        case "utf-16":
            changed = content.decode("latin-1").encode("utf-16")
        case "latin":
            changed = content[:at] + "é".encode("latin-1") + content[at:]
        case "bom":
            changed = b"\xef\xbb\xbf" + content
        case "nul":
            changed = content[:at] + b"\0" * 9 + content[at:]
    return f"{way} at {at}", changed


# rows and files


def settings(path: Path) -> DataConfig:
    tiny, _ = flags.stage("sft", SFTConfig, ["--config=sft.py:tiny", "--workdir=none"], "")
    return dataclasses.replace(tiny.data, path=str(path), split="", prompt_length=40, response_length=18, batch_size=2, workers=0)


def use_rows(path: Path, kind: str, made_for: Any) -> None:
    """Read rows, fit them, and make every batch; nothing may be lost on the way."""
    data = settings(path)
    examples = sources.load_examples(data)
    dropped = examples.drops.total()
    assert len(examples) + dropped == examples.source_rows, f"{examples.source_rows} rows: {len(examples)} and {dropped} dropped"
    fitted = loader.fit(kind, examples, made_for, data)
    assert len(fitted.rows) + fitted.drops.total() == len(examples), f"{len(examples)} examples: {fitted.drops}"
    batches = loader.all_batches(fitted, kind, None, data, batch_size=2)
    seen = sum(int(np.sum(real_B)) for _, real_B in batches)
    assert seen == len(fitted.rows), f"{seen} of {len(fitted.rows)} rows came in batches"


def rows(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
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


def files(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """Damaged files of good rows: JSON lines, parquet, and a prepared data set."""
    made_for = processor.processor(16)
    good = [{"question": f"what is this ? {number}", "response": "it is a knife ."} for number in range(8)]
    jsonl = "".join(json.dumps(row) + "\n" for row in good).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(good), table)
    source = folder / "prepare" / "train.jsonl"
    source.parent.mkdir()
    rows_of_pairs = [layouts(random.Random(number))["PKU-SafeRLHF"] for number in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows_of_pairs))
    prepared = folder / "prepared"
    prepare = ["data", "prepare", "--name=pku_saferlhf", f"--source={source.parent}", f"--target={prepared}"]
    subprocess.run([sys.executable, "-m", "srlhfv_jax", *prepare], check=True, capture_output=True)
    sets = sorted({path.parent for path in prepared.rglob("features.json")})
    place = folder / "files"
    while True:
        shutil.rmtree(place, ignore_errors=True)
        if sets and draw.random() < 0.3:
            shutil.copytree(sets[0], place)
            victim = draw.choice(sorted(path for path in place.iterdir() if path.is_file()))
            done, content = damaged_bytes(victim.read_bytes(), draw)
            victim.write_bytes(content)
            yield f"prepared {victim.name} {done}", lambda: use_rows(place, "pairs", made_for)
            continue
        place.mkdir()
        name, content = draw.choice((("rows.jsonl", jsonl), ("rows.parquet", table.getvalue())))
        done, content = damaged_bytes(content, draw)
        (place / name).write_bytes(content)
        yield f"{name} {done}", lambda: use_rows(place / name, "supervised", made_for)


def odd_pictures(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
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


# settings, checkpoints, workdirs


def some_settings(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """Any value for any setting of a stage, as flags."""
    kinds = {"sft": SFTConfig, "scores": ScoresConfig, "guard": GuardConfig, "ppo_lag": PPOLagConfig}
    names = {stage: sorted(_leaves(flags.load(f"{stage}.py:tiny").to_dict())) for stage in kinds}
    while True:
        stage = draw.choice(list(kinds))
        given = [f"--config.{draw.choice(names[stage])}={draw.choice(NASTY)}" for _ in range(draw.choice((1, 1, 2, 4)))]
        argv = [f"--config={stage}.py:tiny", f"--workdir={folder / 'none'}", *given]
        yield f"{stage} {' '.join(given)!r:.300}", lambda: flags.stage(stage, kinds[stage], argv, "")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def stage(name: str, folder: Path, workdir: Path, **changes: Any) -> list[str]:
    """Arguments of a stage over the rows in `folder` that are called like it."""
    wanted = {
        "data.path": folder / f"{name}.parquet",
        "data.split": "",
        "data.prompt_length": 40,
        "data.response_length": 18,
        "model.scan_unroll": 1,
        "checkpoint.every_steps": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in (wanted | changes).items()]
    return [f"--config={name}.py:tiny", f"--workdir={workdir}", *flags]


def sft(folder: Path, workdir: Path, steps: int = 6) -> list[str]:
    """Arguments of the stage that starts from random weights."""
    return stage("sft", folder, workdir, init=folder / "base", init_random=True, steps=steps)


def random_checkpoint(folder: Path) -> Path:
    """A small LLaVA with weights, as `srlhfv sft` exports it; an earlier part of the benchmark may have made it."""
    if not (folder / "sft" / "export").is_dir():
        command = [sys.executable, "-m", "srlhfv_jax", "sft", *sft(folder, folder / "sft")]
        subprocess.run(command, check=True, capture_output=True)
    return folder / "sft" / "export"


def checkpoints(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """A checkpoint with damage to one of its files, loaded with its tokenizer and template."""
    good, place = random_checkpoint(folder), folder / "checkpoint"

    def use() -> None:
        loaded = load_pretrained(place)
        setup.vocabulary(loaded)
        chat.codec(loaded.processor, 0)

    names = sorted(path.name for path in good.iterdir() if path.suffix in (".json", ".jinja", ".safetensors"))
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        name = draw.choice(names)
        content = (place / name).read_bytes()
        if name.endswith(".json") and draw.random() < 0.8:
            done, changed = damaged(json.loads(content), draw)
            (place / name).write_text(json.dumps(changed))
        elif draw.random() < 0.1:
            (place / name).unlink()
            done = "gone"
        else:
            size = 600 if name.endswith(".safetensors") else len(content)  # of weights the header: flipped weights are weights
            done, head = damaged_bytes(content[:size], draw)
            (place / name).write_bytes(head + content[size:])
        yield f"{name} {done}", use


def workdirs(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """A finished run with damage to one of its files: does the same command start, and is there a report?"""
    random_checkpoint(folder)
    good, place = folder / "sft", folder / "workdir"
    wanted, _ = flags.stage("sft", SFTConfig, sft(folder, place), "")

    def use() -> None:
        write_report(place)
        check_unchanged(wanted, place)

    names = [name for name in ("config.json", "result.json", "metrics.jsonl") if (good / name).is_file()]
    while True:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "checkpoints").mkdir()
        for name in names:
            shutil.copyfile(good / name, place / name)
        name = draw.choice(names)
        if name.endswith(".json") and draw.random() < 0.7:
            done, changed = damaged(json.loads((place / name).read_text()), draw)
            (place / name).write_text(json.dumps(changed))
        else:
            done, content = damaged_bytes((place / name).read_bytes(), draw)
            (place / name).write_bytes(content)
        yield f"{name} {done}", use


# requests and judges


def http_requests(_: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """Bodies of POST /moderate and /generate."""
    encoded = base64.b64encode(picture(draw)).decode()
    good = {"prompt": "what is this ?", "response": "a knife .", "image": encoded}
    while True:
        read, fields = draw.choice(((requests.moderation, good), (requests.generation, {**good, "rounds": 2})))
        if read is requests.generation:
            fields = {name: value for name, value in fields.items() if name != "response"}
        done, changed = damaged(fields, draw)
        body = json.dumps(changed).encode()
        if draw.random() < 0.3:
            done, body = damaged_bytes(body, draw)
        yield f"{read.__name__} {done}", lambda: read(body, Limits()) and None


def judges(folder: Path, draw: random.Random) -> Iterator[tuple[str, Call]]:
    """Replies to the rubric, and recorded judgements."""
    reply = "[helpful_reason] so\n[helpful_rate] 2\n[harmless_reason] so\n[harmless_rate] -1\n[refusal] no"
    verdict = {"name": "x/1", "answers": ["a"], "opinions": [{"helpful": 1, "cost": 1.5, "refusal": False}], "safer": None}
    path = folder / "verdicts.jsonl"
    while True:
        if draw.random() < 0.5:
            done, content = damaged_bytes(reply.encode(), draw)
            yield f"reply {done}", lambda: rubric.read_reply(content.decode(errors="replace"), 1) and None
            continue
        done, changed = damaged(verdict, draw)
        content = json.dumps(changed).encode()
        if draw.random() < 0.3:
            done, content = damaged_bytes(content, draw)
        path.write_bytes(content + b"\n")
        yield f"recorded {done}", lambda: recorded.recorded(path) and None


KINDS: dict[str, Callable[[Path, random.Random], Iterator[tuple[str, Call]]]] = {
    "rows": rows,
    "files": files,
    "pictures": odd_pictures,
    "settings": some_settings,
    "checkpoints": checkpoints,
    "workdirs": workdirs,
    "requests": http_requests,
    "judges": judges,
}
