"""Settings of conversations: a system prompt, another chat template, every answer of a conversation, and workdirs of before."""

import copy
import json

import pytest
import tiny_hf
import tiny_tokenizers
from ml_collections import ConfigDict
from tiny_data import png, settings as data_settings
from tiny_stages import settings

from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.cli import main
from srlhfv_jax.config import SFTConfig, stored, to_dict
from srlhfv_jax.data import answers, chat, inspection, loader, templates
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse
from srlhfv_jax.runs import run

TALK = (Turn("user", "a<image>"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
SYSTEM = Turn("system", "be kind")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
def test_a_system_prompt_is_the_system_turn_of_rows_that_have_none(family):
    processor = tiny_tokenizers.processor(family)
    plain, prompted = chat.codec(processor), chat.codec(processor, system_prompt=SYSTEM.text)
    assert prompted.prompt("why?", 0) == plain.prompt("why?", 0, (SYSTEM,)) != plain.prompt("why?", 0)
    own = (Turn("system", "be brief"),)
    assert prompted.prompt("why?", 0, own) == plain.prompt("why?", 0, own)
    assert (prompted.stop_ids, prompted.never_ids) == (plain.stop_ids, plain.never_ids)


def test_what_a_template_writes_by_itself_stays_where_a_row_has_no_system_turn():
    codec = chat.codec(tiny_tokenizers.processor("qwen"))
    assert "You are a helpful assistant." in codec.prompt_text("why?", 0, TALK[2:])
    assert "You are a helpful assistant." not in codec.prompt_text("why?", 0, (SYSTEM,))


@pytest.mark.parametrize("family", ["gemma3", "qwen"])
def test_a_template_without_a_system_turn_is_named_in_inspection_and_only_there(family, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    history = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"question": "why?", "response": "no", "history": history}) + "\n")
    processor = tiny_tokenizers.processor(family)
    data = loader.single_pass(str(rows), prompt_length=99, response_length=99)
    numbers = inspection.inspect(data, samples=1, processor=processor, model=family)
    said = capsys.readouterr().out
    assert (chat.MERGED in said) == (family == "gemma3") and numbers["fit"] == 1
    assert numbers["with_earlier_turns"] == numbers["with_system_turn"] == 1
    rows.write_text(json.dumps({"question": "why?", "response": "no"}) + "\n")
    inspection.inspect(data, samples=1, processor=processor, model=family)
    assert chat.MERGED not in capsys.readouterr().out


def conversation(**changes) -> Example:
    example = Example((png(1), png(2)), "e<image>", ("f", "g"), chosen=1, unsafe=(True, False), history=(SYSTEM, *TALK))
    return example._replace(**changes)


def test_every_answer_is_a_row_with_the_turns_and_pictures_before_it():
    rows = answers.AnsweredTurns([conversation()], True)
    assert [(row.question, row.responses) for row in rows] == [("a<image>", ("b",)), ("c", ("d",)), ("e<image>", ("f", "g"))]
    assert [row.history for row in rows] == [(SYSTEM,), (SYSTEM, *TALK[:2]), (SYSTEM, *TALK)]
    assert [row.images for row in rows] == [(png(1),), (png(1),), (png(1), png(2))]
    assert [row.chosen for row in rows] == [None, None, 1] and rows[0].unsafe == (None,)


def test_pictures_without_marks_go_with_every_answer():
    bare = tuple(turn._replace(text=turn.text.replace("<image>", "")) for turn in TALK)
    rows = answers.AnsweredTurns([conversation(history=bare, question="e")], True)
    assert [len(row.images) for row in rows] == [2, 2, 2]


def test_a_conversation_that_nobody_answered_last_has_its_earlier_answers():
    rows = answers.AnsweredTurns([conversation(responses=()), Example((), "a", ())], True)
    assert [row.responses for row in rows] == [("b",), ("d",), ()]


def test_a_conversation_with_a_wrong_number_of_marks_is_dropped_as_a_whole():
    rows = answers.AnsweredTurns([conversation(images=(png(1),))], True)
    prepared = data_settings(prompt_length=999, response_length=99)
    with pytest.raises(UserError, match="special_token_in_text"):
        loader.fit("supervised", rows, tiny_tokenizers.processor("qwen"), prepared)
    assert len(rows) == 1


def test_without_eyes_a_mark_is_text():
    text = Example((), "c", ("d",), history=(Turn("user", "a <image>"), Turn("assistant", "b")))
    assert [row.responses for row in answers.AnsweredTurns([text], False)] == [("b",), ("d",)]


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_vl"])
def test_a_template_of_a_file_takes_the_place_of_the_checkpoints(family, tmp_path):
    (tmp_path / "own.jinja").write_text(
        TEMPLATE.replace("m.content", "(m.content if m.content is string else m.content[-1].text)")
    )
    processor = templates.override(copy.deepcopy(tiny_hf.processor(family)), str(tmp_path / "own.jinja"))
    said = chat.codec(processor).prompt_text("w7", 0, (Turn("system", "w8"),))
    assert said == "[system] w8 [user] w7 [assistant]"


@pytest.mark.parametrize(
    "content, message",
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b" \n", "is empty"), (b"{% if %}", "chat template")],
)
def test_a_template_that_is_none_is_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "own.jinja").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        chat.codec(templates.override(copy.deepcopy(tiny_hf.processor("llama")), str(tmp_path / "own.jinja")))
    assert "\n" not in str(caught.value)


def test_a_workdir_of_before_resumes_and_one_with_other_settings_is_refused():
    now = to_dict(settings(SFTConfig, "sft"))
    before = {name: value for name, value in now.items()} | {"data": dict(now["data"])}
    for name in ("system_prompt", "chat_template", "train_on"):
        del before["data"][name]
    provenance.check_same({"settings": before}, now)
    provenance.check_same({"settings": {"sft": before}}, {"sft": now})
    assert parse(SFTConfig, ConfigDict(stored.current(before))) == settings(SFTConfig, "sft")
    for name, value in {"system_prompt": "be kind", "chat_template": "t.jinja", "train_on": "all"}.items():
        with pytest.raises(UserError, match=f"cannot resume: config.data.{name} was"):
            provenance.check_same({"settings": before}, now | {"data": now["data"] | {name: value}})


def test_a_run_goes_on_with_the_template_that_it_was_started_with(tmp_path):
    given, kept = tmp_path / "own.jinja", tmp_path / "run" / run.TEMPLATE
    (tmp_path / "run").mkdir()
    given.write_text("a")
    run.record_template(str(given), tmp_path / "run")
    assert run.recorded_template(tmp_path / "run") == "a"
    given.write_text("b")
    run.record_template(str(given), tmp_path / "run")  # nothing was trained yet
    (tmp_path / "run" / "checkpoints").mkdir()
    run.record_template(str(given), tmp_path / "run")
    given.write_text("c")
    with pytest.raises(UserError, match="cannot resume: config.data.chat_template"):
        run.record_template(str(given), tmp_path / "run")
    assert kept.read_text() == "b"
    (tmp_path / "run" / "checkpoints").rmdir()
    run.record_template("", tmp_path / "run")
    assert run.recorded_template(tmp_path / "run") is None


def test_inspect_shows_the_prompt_of_a_conversation(tmp_path, capsys):
    tiny_hf.save(tmp_path / "model", tiny_hf.llama_config())
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "w7", "response": "w8"}) + "\n")
    flags = [f"--path={tmp_path / 'rows.jsonl'}", f"--model={tmp_path / 'model'}", "--system_prompt=w9"]
    assert main.main(["data", "inspect", *flags, f"--chat_template={tmp_path / 'own.jinja'}"]) in (None, 0)
    assert "[system] w9 [user] w7 [assistant]" in capsys.readouterr().out
