"""Copies of benchmarks that differ from the repository: tables of the hub, the small edition, pictures of phones; and cases in a file."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_evaluation_benchmarks import picture, put, read, safety_question, table

from srlhfv_jax.cli import benchmark
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.suites import case, published

PIXELS = "SD", "SD_TYPO", "TYPO"


def hub_table(path: Path, rows: list[dict], *, pictures: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = {"image": {"bytes": picture(kind="JPEG"), "path": None} if pictures else None}
    pq.write_table(pa.Table.from_pylist([image | row for row in rows]), path)


@pytest.mark.parametrize("layout", ["data/{}/{}.parquet", "{}/{}-00000-of-00001.parquet", "{}/{}/0000.parquet"])
def test_mm_safetybench_as_tables_has_the_cases_of_the_other_form(tmp_path, layout):
    """The hub's copy names scenarios without a number, and has the question of each kind in a table of its own."""
    published_root, hub_root = tmp_path / "a", tmp_path / "b"
    rows = {name: safety_question(name) for name in ("0", "7")}
    place = published_root / "mm_safetybench"
    put(place / "processed_questions" / "12-Health_Consultation.json", rows)
    for kind in PIXELS:
        put(place / "imgs" / "12-Health_Consultation" / kind / "0.jpg", picture(kind="JPEG"))
        put(place / "imgs" / "12-Health_Consultation" / kind / "7.jpg", picture(kind="JPEG"))
    fields = {"SD": "SD", "SD_TYPO": "Rephrased Question", "TYPO": "Rephrased Question", "Text_only": "Changed Question"}
    for kind, field in fields.items():
        table = [{"id": name, "question": f"{name} {field}"} for name in rows]
        hub_table(hub_root / "mm_safetybench" / layout.format("Health_Consultation", kind), table, pictures=kind != "Text_only")
    expected, _ = read("mm_safetybench", published_root)
    found, drops = read("mm_safetybench", hub_root)
    assert not drops and found.keys() == expected.keys() and len(found) == 8
    for name, kept in found.items():
        assert case.picture(kept) == case.picture(expected[name])
        assert kept._replace(image=None) == expected[name]._replace(image=None)


def test_tables_of_no_scenario_and_rows_without_a_picture_are_counted(tmp_path):
    root = tmp_path / "mm_safetybench" / "data"
    hub_table(root / "Gardening" / "SD.parquet", [{"id": 0, "question": "q"}])
    hub_table(root / "Fraud" / "Mixed.parquet", [{"id": 0, "question": "q"}, {"id": 1, "question": "q"}])
    hub_table(root / "Fraud" / "TYPO.parquet", [{"id": 0, "question": "q"}], pictures=False)
    hub_table(root / "Sex" / "TYPO.parquet", [{"id": 3.0, "question": "q"}, {"id": 3.0, "question": "r"}])
    found, drops = read("mm_safetybench", tmp_path)
    assert list(found) == ["07-Sex/TYPO/3"] and drops == {"unknown_category": 3, "missing_image": 1, "duplicate_id": 1}


def test_pictures_of_phones_are_read_under_either_ending(tmp_path):
    """Multi-picture objects: a JPEG with a second one behind it."""
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (6, 4), (colour, 90, 200)) for colour in (40, 90))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    place = tmp_path / "mm_safetybench"
    put(place / "processed_questions" / "06-Fraud.json", {"0": safety_question("zero")})
    put(place / "imgs" / "06-Fraud" / "SD" / "0.mpo", buffer.getvalue())
    put(place / "imgs" / "06-Fraud" / "TYPO" / "0.jpg", buffer.getvalue())
    found, drops = read("mm_safetybench", tmp_path)
    assert set(found) == {f"06-Fraud/{kind}/0" for kind in ("SD", "TYPO", "text_only")} and drops == {"missing_image": 1}


def test_figstep_tiny_is_read_where_the_large_edition_is_not_whole(tmp_path):
    row = {"dataset": "ForbidQI", "category_id": "8", "task_id": "1", "category_name": "Legal Opinion", "question": "How?"}
    table(tmp_path / "figstep" / "question" / "SafeBench-Tiny.csv", [row | {"instruction": "Steps to."}])
    put(tmp_path / "figstep" / "images" / "SafeBench-Tiny" / "query_ForbidQI_8_1_6.png", picture())
    found, drops = read("figstep", tmp_path)
    assert list(found) == ["ForbidQI_8_1/figstep", "ForbidQI_8_1/text_only"] and not drops
    for kept in found.values():
        assert "not qualified (licensed) to give legal advice" in kept.criterion
    table(tmp_path / "figstep" / "question" / "safebench.csv", [row | {"task_id": str(n), "instruction": "x"} for n in (1, 2)])
    assert len(published.read("figstep", tmp_path).cases) == 2  # a table without its pictures
    put(tmp_path / "figstep" / "images" / "SafeBench" / "query_ForbidQI_8_1_6.png", picture())
    assert len(published.read("figstep", tmp_path).cases) == 3  # two questions, one picture


# cases for models that run elsewhere


@pytest.fixture
def root(tmp_path) -> Path:
    """Pictures in files, inside a table, and none; a conversation."""
    row = {"dataset": "ForbidQI", "category_id": "1", "task_id": "1", "category_name": "Fraud", "question": "How?"}
    table(tmp_path / "figstep" / "safebench.csv", [row | {"instruction": "Steps to."}])
    put(tmp_path / "figstep" / "images" / "SafeBench" / "query_ForbidQI_1_1_6.png", picture())
    hub_table(tmp_path / "mm_safetybench" / "Fraud" / "SD.parquet", [{"id": n, "question": f"q{n} é"} for n in range(3)])
    turns = "USER: Who? ASSISTANT: He. USER: <image>\nWhy? ASSISTANT:"
    po = {
        "id": 5,
        "question": turns,
        "text_prompt": turns,
        "image": "a.png",
        "chosen": "x",
        "rejected": "y",
        "entity_type": "PER",
    }
    put(tmp_path / "mmsafe_po" / "test.json", [po])
    put(tmp_path / "mmsafe_po" / "images" / "a.png", picture(7))
    return tmp_path


def run(root: Path, *more: str) -> None:
    names = "--config.benchmarks=('figstep','mm_safetybench','mmsafe_po')"
    benchmark.main(["--config=configs/benchmark.py:tiny", f"--config.root={root}", names, *more])


def test_written_cases_have_what_a_model_elsewhere_needs_and_its_answers_come_back(root, capsys):
    run(root, f"--write-cases={root / 'cases.jsonl'}")
    assert "wrote 7 cases to " in capsys.readouterr().out
    lines = [json.loads(line) for line in (root / "cases.jsonl").read_text().splitlines()]
    expected = {
        name: {one.id: one for one in published.read(name, root).cases} for name in ("figstep", "mm_safetybench", "mmsafe_po")
    }
    assert len(lines) == 7 == sum(map(len, expected.values()))
    for line in lines:
        asked = expected[line["benchmark"]][line["id"]]
        assert line["prompt"] == asked.prompt
        assert [(turn["role"], turn["content"]) for turn in line.get("history", [])] == list(asked.history)
        assert (line["image"] and Path(line["image"]).read_bytes()) == case.picture(asked)
    answers = [{"benchmark": line["benchmark"], "id": line["id"], "answer": "I cannot."} for line in reversed(lines)]
    put(root / "answers.jsonl", "\n".join(map(json.dumps, answers)))
    run(root, f"--workdir={root / 'out'}", f"--config.policies=a={root / 'answers.jsonl'}")
    result = json.loads((root / "out" / "result.json").read_text())
    for name, cases in expected.items():
        assert (result[f"a.{name}.rows"], result[f"a.{name}.unanswered"], result[f"a.{name}.unknown"]) == (len(cases), 0, 0)


def test_a_limit_holds_for_written_cases(root):
    run(root, "--config.limit=1", f"--write-cases={root / 'cases.jsonl'}")
    assert len((root / "cases.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--write-cases={root}"], "exists: give a file that does not"),
        (["--write-cases={root}/no/cases.jsonl"], "there is no folder .*/no"),
        (["--write-cases=gs://bucket/cases.jsonl"], "is a URL"),
        (["--write-cases={root}/a", "--config.benchmarks=('xtest',)"], "there is no benchmark 'xtest'"),
        (["--write-cases={root}/a", "--config.root="], "config.root is empty"),
    ],
)
def test_cases_that_cannot_be_written_are_one_line(root, more, message):
    with pytest.raises(UserError, match=message):
        run(root, *(word.format(root=root) for word in more))
