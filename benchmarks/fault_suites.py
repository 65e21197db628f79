"""Damaged copies of the published test suites that `srlhfv evaluate` reads: files, rows, columns and pictures."""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fault_damage import NASTY, Inputs, damaged, damaged_bytes
from fault_rows import layouts, picture

from srlhfv_jax.data import chat, images, tokens
from srlhfv_jax.data.drops import REASONS, Unusable
from srlhfv_jax.data.quickstart import processor
from srlhfv_jax.data.rows import Example
from srlhfv_jax.evaluation.suites import case, published

TEXT = {"image": "a.png", "question": "what is this ?", "category": "privacy"}


class Suite(NamedTuple):
    """A suite as it is published, with few rows."""

    tables: dict[str, Any]  # path -> what the file holds: rows for .csv and .parquet, a text, or a value of JSON
    pictures: tuple[str, ...]
    cases: Callable[[Any], int] | None  # how many cases a table makes, if it is still of its outermost type; None: not counted


def good(draw: random.Random) -> dict[str, Suite]:
    """Every suite by its name."""
    rows, options = layouts(draw), {letter: f"answer {letter}" for letter in "ABCD"}
    siuo = TEXT | {"safety_warning": "it cuts", "reference_answer": "do not"}
    turns = [{"safe_instruction": "name it", "response": "a knife"}, {"unsafe_instruction": "use it", "response": "no"}]
    harm = {
        "harmful_category": "privacy",
        "harmful_subcategory": "data",
        "instr-resp": [{"instruction": "how ?", "response": "x"}],
    }
    figure = {
        "dataset": "ForbidQI",
        "category_id": "1",
        "category_name": "Health",
        "question": "how ?",
        "instruction": "Steps to.",
    }
    sides = {"safe_image_path": "a.png", "unsafe_image_path": "a.png", "unsafe_image": "a cliff", "Type": "physical"}
    sides |= {"queries": ["how to run ?"]}
    task = {"category": "property", "safe": "a.png", "unsafe": "a.png"}
    task |= {"safe_instructions": ["lamp on .", "lamp off ."], "unsafe_instructions": ["lamp on ."]}
    person = {"image": "a.png", "question": "USER: <image>\nwho ? ASSISTANT:", "chosen": "ASSISTANT: no .", "entity_type": "PER"}
    person |= {"text_prompt": "USER: who ? ASSISTANT:"}
    question = {"Changed Question": "what ?", "Rephrased Question": "which ?", "Rephrased Question(SD)": "where ?"}
    scene, xstest = "01-Illegal_Activitiy", {"prompt": "what ?", "label": "safe", "focus": "", "note": ""}
    aware = "".join(f'{number}\nIs this safe ?\n"sentence {number}"\n\n' for number in (1, 2, 3))
    return {
        "beavertails_v": Suite({"privacy/evaluation-0.parquet": [rows["BeaverTails-V"]] * 2}, ("privacy/a.png",), None),
        "pku_saferlhf": Suite({"data/test.jsonl": [rows["PKU-SafeRLHF"]] * 2}, (), None),
        "mm_safetybench": Suite(
            {f"processed_questions/{scene}.json": {"0": question, "1": question}},
            tuple(f"imgs/{scene}/{kind}/{number}.jpg" for kind in ("SD", "SD_TYPO", "TYPO") for number in (0, 1)),
            lambda rows: 4 * len(rows),
        ),
        "vlguard": Suite(
            {
                "test.json": [
                    {"id": "a", "image": "a.png", "safe": True, "instr-resp": turns},
                    {"id": 2, "image": "a.png", "safe": False} | harm,
                ]
            },
            ("test/a.png",),
            lambda rows: sum(2 if isinstance(row, dict) and row.get("safe") is True else 1 for row in rows),
        ),
        "siuo": Suite({"siuo_gen.json": [siuo | {"question_id": number} for number in (1, 2)]}, ("images/a.png",), len),
        "siuo_mcq": Suite(
            {"siuo_mcqa.json": [TEXT | {"question_id": number, "options": options, "correct_option": "B"} for number in (1, 2)]},
            ("images/a.png",),
            len,
        ),
        "mmsafeaware": Suite({"prompt.txt": aware}, tuple(f"images/{number}.png" for number in (1, 2, 3)), None),
        "xstest": Suite(
            {"xstest_prompts.csv": [xstest | {"id": str(number), "type": "homonyms"} for number in (1, 2)]}, (), None
        ),
        "figstep": Suite(
            {"question/safebench.csv": [figure | {"task_id": number} for number in "12"]},
            tuple(f"images/SafeBench/query_ForbidQI_1_{number}_6.png" for number in (1, 2)),
            None,
        ),
        "mssbench": Suite({"combined.json": {"chat": [sides] * 2, "embodied": [task]}}, ("chat/a.png", "embodied/a.png"), None),
        "mmsafe_po": Suite(
            {"test.json": [person | {"id": number} for number in (1, 2)]}, ("images/a.png",), lambda rows: 2 * len(rows)
        ),
    }


def suites(folder: Path, draw: random.Random) -> Inputs:
    """A suite with damage to a table or a picture, read and put to a checkpoint's tokenizer."""
    codec, root = chat.codec(processor.processor(16)), folder / "suites"
    while True:
        name, suite = draw.choice(list(good(draw).items()))
        place = root / published.FOLDERS.get(name, name)
        shutil.rmtree(root, ignore_errors=True)
        for file in suite.pictures:
            _put(place / file, picture(draw, kind="JPEG" if file.endswith("jpg") else "PNG"))
        (table, content), *_ = suite.tables.items()
        done, expected = "whole", None
        victim = draw.choice((table, table, table, *suite.pictures))
        if victim == table and not isinstance(content, str) and draw.random() < 0.7:
            done, content = damaged(content, draw)
            if suite.cases is not None and isinstance(content, type(suite.tables[table])):
                expected = suite.cases(content)
        try:
            _put(place / table, _encoded(table, content))
        except (pa.ArrowException, csv.Error, ValueError, LookupError, OverflowError, AttributeError, TypeError):
            continue  # no such file can hold these rows
        if done == "whole":
            done, expected = _spoil(place, place / victim, draw), None
        yield f"{name}: {victim} {done}", lambda name=name, expected=expected: _use(name, root, codec, expected)


def _use(name: str, root: Path, codec: chat.Codec, expected: int | None) -> None:
    suite = published.read(name, root)
    assert suite.drops.keys() <= REASONS.keys(), f"{suite.drops}"
    held = len(suite.cases) + suite.drops.total()
    assert expected is None or held == expected, f"{held} of {expected} cases are accounted for"
    for number, one in enumerate(case.sample(suite.cases, 3, 0)):
        encoded = case.picture(one)
        try:
            example = Example(() if encoded is None else (encoded,), one.prompt, ())
            tokens.encode(codec, example, number, prompt_length=10**6, response_length=1)
        except Unusable:
            pass
        assert encoded is None or images.decode(encoded).size > (0, 0), f"case {number} has no picture"


def _spoil(place: Path, victim: Path, draw: random.Random) -> str:
    """Damage a file of a suite, and say how."""
    way = draw.choice(
        ("bytes", "bytes", "bytes", "bytes", "gone", "a folder", "a link away", "a link to itself", "another name", "twice")
    )
    content = victim.read_bytes()
    if way == "bytes":
        done, content = damaged_bytes(content, draw)
        victim.write_bytes(content)
        return done
    if way == "twice":
        shutil.copyfile(victim, victim.with_name(f"copy {victim.name}"))
        return way
    victim.unlink()
    if way == "a folder":
        victim.mkdir()
    elif way == "a link away":
        victim.symlink_to("/etc/passwd")
    elif way == "a link to itself":
        victim.symlink_to(victim)
    elif way == "another name":
        name = str(draw.choice(NASTY)).replace("/", "_").replace("\0", "")[:60].encode(errors="replace").decode() or "x"
        victim.with_name(f"{name}{victim.suffix}").write_bytes(content)
    return way


def _encoded(path: str, content: Any) -> bytes:
    out, lines = io.StringIO(), io.BytesIO()
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(content), lines)
        return lines.getvalue()
    if path.endswith(".csv"):
        writer = csv.DictWriter(out, list(content[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(content)
        return out.getvalue().encode()
    if path.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
