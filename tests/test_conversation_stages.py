"""Conversations of three user turns with two pictures and a system turn, from rows to answers: sft, scores, guard, ppo_lag, evaluate."""

import json

import numpy as np
import pytest
import tiny_hf
import tiny_stages
from tiny_data import png

from srlhfv_jax.cli import evaluate, report
from srlhfv_jax.config import GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data import chat, rows as data_rows, taxonomies, tokens
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import Guard, train as guard
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.supervised import scores, sft

pytestmark = pytest.mark.slow  # every stage, once

TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'w40 ', 'user': 'w41 ', 'assistant': 'w42 '}[m.role] }}{% for p in m.content %}"
    "{{ '<image> ' if p.type == 'image' else p.text + ' ' }}{% endfor %}{{ '</s> ' if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}w42 {% endif %}"
)
ROWS = 16


def turns(number: int) -> list[dict]:
    said = ("w6 w7", "<image> w8 w9", f"w{10 + number}", "w11 <image> w12", f"w13 w{14 + number}")
    return [{"role": role, "content": text} for role, text in zip(("system", *("user", "assistant") * 2), said)]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with the base, the template, rows, and the workdirs of sft, scores, guard and ppo_lag."""
    folder = tmp_path_factory.mktemp("conversations")
    tiny_hf.save(folder / "base", tiny_hf.llava_config())
    (folder / "own.jinja").write_text(TEMPLATE)
    rows = [
        {
            "images": [png(i), png(i + 50)],
            "question": f"w15 w{16 + i}",
            "history": turns(i),
            "responses": [f"w{20 + i} w21", f"w{22 + i}"],
            "chosen": i % 2,
            "safer": (i + 1) % 2,
            "unsafe": [i % 2 == 0, i % 2 == 1],
            "category": taxonomies.BEAVERTAILS_V[i],
        }
        for i in range(ROWS)
    ]
    write_rows(folder / "rows.parquet", rows)

    def settings(kind, command: str, **changes):
        data = {"data.path": str(folder / "rows.parquet"), "data.split": "", "data.prompt_length": 64, "data.response_length": 6}
        data |= {"data.batch_size": 8, "data.chat_template": str(folder / "own.jinja"), "data.system_prompt": "w5"}
        return tiny_stages.settings(kind, command, **(data | changes))

    everything = settings(SFTConfig, "sft", init=str(folder / "base"), steps=2, **{"data.train_on": "all"})
    results = {"sft": sft.run(everything, folder / "sft")}
    results["scores"] = scores.run(settings(ScoresConfig, "scores", init=str(folder / "sft"), steps=2), folder / "scores")
    results["guard"] = guard.run(settings(GuardConfig, "guard", init=str(folder / "sft"), steps=2), folder / "guard")
    start = {"policy": str(folder / "sft"), "scorer": str(folder / "scores")}
    results["ppo_lag"] = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", iterations=1, **start), folder / "ppo_lag")
    return folder, results, everything


def test_every_stage_reads_whole_conversations(stages):
    _, results, _ = stages
    assert results["sft"]["rows"] == 3 * ROWS  # every answer
    assert results["scores"]["rows"] == ROWS
    for name in ("sft", "scores", "guard", "ppo_lag"):
        assert results[name]["grad_norm"] > 0, name
    assert np.isfinite(results["ppo_lag"]["kl"])


def test_exports_have_the_template_that_they_were_trained_with(stages):
    folder, _, _ = stages
    history = tuple(data_rows.Turn(turn["role"], turn["content"]) for turn in turns(0))
    for name in ("sft", "scores", "guard", "ppo_lag"):
        codec = chat.codec(load_pretrained(folder / name).processor)
        text = codec.prompt_text("w15 w16", 2, history)
        assert text == ("w40 w6 w7 w41 <image> w8 w9 w42 w10 </s> w41 w11  <image>  w12 w42 w13 w14 </s> w41 w15 w16 w42 "), name
        assert codec.tokenizer.convert_ids_to_tokens(tokens.prompt_suffix(codec)[-1:]) == ["w42"]


def test_a_guard_reads_the_turns_before_a_question_and_asks_as_it_was_trained(stages):
    folder, _, _ = stages
    loaded = Guard.load(folder / "guard")
    assert loaded.system_prompt == "w5"
    history = (data_rows.Turn("user", "w8"), data_rows.Turn("assistant", "w10 w11"))
    (with_turns,) = loaded.check_output([()], ["w15"], ["w20"], [history])
    (without,) = loaded.check_output([()], ["w15"], ["w20"])
    (own,) = loaded.check_output([()], ["w15"], ["w20"], [(data_rows.Turn("system", "w5"),)])
    assert with_turns.scores["unsafe"] != without.scores["unsafe"] == own.scores["unsafe"]


def test_a_guard_whose_template_was_changed_is_refused(stages, tmp_path):
    folder, _, _ = stages
    export = tmp_path / "guard"
    export.mkdir()
    for path in (folder / "guard" / "export").iterdir():
        (export / path.name).write_bytes(path.read_bytes())
    for changed in (
        TEMPLATE.replace("w41", "w43"),
        TEMPLATE.replace("</s> ' if m.role", "</s> w44 ' if m.role"),
    ):  # of any question, of later ones
        (export / "chat_template.jinja").write_text(changed)
        with pytest.raises(UserError, match="its chat template is not the one the guard was trained with"):
            Guard.load(export)


def test_policies_are_compared_on_conversations_and_the_report_shows_them(stages):
    folder, _, _ = stages
    out = folder / "evaluate"
    policies = f"--policies=sft={folder / 'sft'},ppo={folder / 'ppo_lag'}"
    flags = [policies, f"--data={folder / 'rows.parquet'}", f"--scorer={folder / 'scores'}", f"--workdir={out}"]
    evaluate.main([*flags, "--response_length=4", "--batch_size=8", "--system_prompt=w5", "--samples=2"])
    for name in ("answers.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        assert all([turn["role"] for turn in row["history"]] == [turn["role"] for turn in turns(0)] for row in rows)
    report.main([f"--workdir={out}"])
    html = (out / "report.html").read_text()
    assert "<b>assistant</b> w13 w" in html


def test_a_run_does_not_go_on_with_another_template(stages):
    folder, _, everything = stages
    (folder / "own.jinja").write_text(TEMPLATE + " ")
    try:
        with pytest.raises(UserError, match="cannot resume: config.data.chat_template"):
            sft.run(everything, folder / "sft")
    finally:
        (folder / "own.jinja").write_text(TEMPLATE)
