"""Answers given without the picture: recorded under the pictures of their rows, and losers of further pairs."""

import json

import pytest
from tiny_data import png
from tiny_stages import picture_task, rows, settings, sft, write_rows

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import PreferenceConfig, SFTConfig
from srlhfv_jax.data import blind
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.preference import run as preference

SAFER = Choice("safer", "none", False)


def pair(number: int = 0, question: str = "is it ripe?", **changes) -> Example:
    labels = dict(chosen=0, safer=1, unsafe=(True, False)) | changes
    return Example((png(number),), question, ("yes, eat it", "not yet"), **labels)


def line(example: Example, answer: str) -> str:
    return json.dumps({"question": example.question, "answer": answer, blind.PICTURES: blind.digests(example)}) + "\n"


def test_the_winner_is_preferred_to_the_recorded_answer_to_the_same_prompt(tmp_path):
    examples = [pair(0), pair(1), pair(2, "and this?"), pair(3, safer=None, safety_tie=True)]
    (tmp_path / "blind.jsonl").write_text(line(examples[0], "it is green") + line(examples[2], "what?") + line(examples[3], "hm"))
    joined = blind.WithBlind(examples, blind.read(tmp_path / "blind.jsonl"), SAFER)
    assert [place.row for place in joined.places] == [0, 0, 1, 2, 2, 3]  # a tie has no winner to prefer
    assert joined[0] == examples[0] and joined[-1] == examples[3]
    further = joined[1]
    assert further.responses == ("not yet", "it is green") and (further.chosen, further.safer) == (0, 0)
    assert further.unsafe == (False, None) and further.images == examples[0].images
    assert [one.responses[1] for one in joined[4:5]] == ["what?"]


def test_a_prompt_is_its_pictures_its_turns_and_its_question():
    one = pair(0)
    others = [pair(1), pair(0, "and now?"), one._replace(history=(Turn("system", "be kind"),))]
    assert blind.key(one) == blind.key(one._replace(responses=("a", "b"))) and blind.key(one) not in map(blind.key, others)


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "is no file"),
        ("", "has no answer"),
        ('{"question": "a", "answer": "b"}\n', "has no pictures"),
        ('{"question": "a", "answer": 3, "pictures": []}\n', "answer must be a text"),
        ("no json\n", "is not JSON"),
        ('{"question": "a", "dropped": "prompt_too_long"}\n', "has no answer"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "blind.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        blind.read(path)


@pytest.mark.slow
def test_what_generate_records_without_the_picture_preference_joins(tmp_path):
    folder = picture_task(tmp_path)
    start = settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder))
    sft.run(start, folder / "sft")
    write_rows(folder / "pairs.parquet", task_rows.topic_rows(3, task_rows.split_cells(0), "train", 8, task_rows.Noise()))
    data, out = f"--data={folder / 'pairs.parquet'}", f"--out={tmp_path / 'blind.jsonl'}"
    assert main(["generate", f"--policy={folder / 'sft'}", data, out, "--picture=blank", "--response_length=8"]) == 0
    lines = [json.loads(text) for text in (tmp_path / "blind.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(len(one[blind.PICTURES]) == 1 for one in lines)
    given = rows(folder) | {"data.path": str(folder / "pairs.parquet"), "init": str(folder / "sft"), "steps": 1}
    plain = preference.run(settings(PreferenceConfig, "preference", **given), tmp_path / "plain")
    bpo = preference.run(settings(PreferenceConfig, "preference", blind=str(tmp_path / "blind.jsonl"), **given), tmp_path / "bpo")
    answered = sum(bool(one["answer"].strip()) for one in lines)
    assert plain["rows"] == 8 and 8 < bpo["rows"] <= 8 + answered
