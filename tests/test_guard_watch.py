"""A guard's verdicts on the answers that a run samples: those of the guard itself, and no number of the run changes."""

import pytest
from commands import SRLHFV
from test_processes import finished, pair
from tiny_stages import numbers, picture_task, rows, settings

from srlhfv_jax.cli import main
from srlhfv_jax.config import GuardConfig, SFTConfig
from srlhfv_jax.data import loader, sources
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.data.rows import Prompt, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.guard import Guard, GuardVerdict, checks, train as guard, watch
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.supervised import sft

ROWS = {"sft": "sft.parquet", "ppo_lag": "prompts.parquet"}


def judge(images, questions, answers, histories=None):
    """P(unsafe) is a tenth of an answer's letters; all arguments arrive."""
    assert len(images) == len(questions) == len(answers) and (histories is None or len(histories) == len(answers))
    every = [len(answer) / 10 for answer in answers]
    return [GuardVerdict(p <= 0.45, "safe" if p <= 0.45 else "minor", ("fire",) * (p > 0.45), {"unsafe": p}) for p in every]


def unreadable(texts):
    return [Unusable("prompt_too_long", "") if prompt.question == "long" else None for prompt, _ in texts]


def test_an_answer_that_the_guard_cannot_read_has_the_reason_and_the_others_their_verdicts():
    prompts = [Prompt((), "a"), Prompt((), "long"), Prompt((b"x",), "b", (Turn("user", "q"), Turn("assistant", "r")))]
    judged = watch.verdicts(checks.Checks(None, judge, unreadable), prompts, ["abc", "abcdef", "abcdefg"])
    assert judged == [
        {"guard.unsafe": 0.3, "guard.severity": "safe", "guard.categories": ""},
        {"guard.unread": "prompt_too_long"},
        {"guard.unsafe": 0.7, "guard.severity": "minor", "guard.categories": "fire"},
    ]
    assert watch.verdicts(checks.Checks(None, judge, unreadable), prompts[1:2], ["a"]) == [{"guard.unread": "prompt_too_long"}]


def test_a_run_without_a_guard_is_what_it_was():
    assert watch.with_guard(sft.run, settings(SFTConfig, "sft", init="W")) is sft.run


def test_a_stage_that_is_not_given_a_guards_loader_refuses_the_setting(tmp_path):
    wanted = settings(SFTConfig, "sft", init="W", **{"log.samples_every": 1, "log.guard": "G"})
    with pytest.raises(UserError, match="config.log.guard=G is read by the commands and functions of single stages alone"):
        sft.run(wanted, tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Workdirs `policy` and `guard`, after a step each, and rows."""
    folder = picture_task(tmp_path_factory.mktemp("guard"))
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder)), folder / "policy")
    some = dict(init=str(folder / "policy"), taxonomy="embedded", steps=1, calibration=str(folder / "sft.parquet"))
    guard.run(settings(GuardConfig, "guard", **some, **rows(folder)), folder / "guard")
    write_rows(folder / "prompts.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "train", 8))
    (folder / "rewards.py").write_text("def length(samples):\n    return [len(sample.answer) / 7 for sample in samples]\n")
    return folder


def given(made, stage: str) -> list[str]:
    lengths = ["data.prompt_length=40", "data.response_length=24", "mesh.fsdp=1", "model.scan_unroll=1"]
    if stage == "sft":
        return [f"init={made / 'policy'}", f"data.path={made / ROWS[stage]}", *lengths]
    scored = [f"{name}_fn={made / 'rewards.py'}:length" for name in ("reward", "cost")]
    return [f"policy={made / 'policy'}", f"data.path={made / ROWS[stage]}", *lengths, *scored]


def command(made, stage: str, name: str, *more: str) -> list[str]:
    words = [f"--config.{one}" for one in (*given(made, stage), "log.samples_every=2", "log.samples=3", *more)]
    return [stage, f"--config={stage}.py:tiny", f"--workdir={made / name}", *words]


def run(made, stage: str, name: str, *more: str) -> int:
    return main.main(command(made, stage, name, *more))


def check_verdicts(made, stage: str, judged: list[dict]) -> None:
    """Those of rows of same_prompts.jsonl are what the guard alone says."""
    examples = sources.load_examples(loader.single_pass(str(made / ROWS[stage])))[: len(judged)]
    own = Guard.load(made / "guard", batch_size=2)
    for row, example in zip(judged, examples, strict=True):
        assert row["question"] == example.question and list(row["answers"]) == ["0", "2"]
        for answer in row["answers"].values():
            (verdict,) = own.check_output([example.images], [example.question], [answer["text"]])
            expected = watch.columns(verdict)
            assert answer["guard.unsafe"] == pytest.approx(expected["guard.unsafe"], abs=1e-5)
            assert [answer[name] for name in list(expected)[1:]] == list(expected.values())[1:]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo_lag"])
def test_verdicts_are_the_guards_own_and_change_no_number_of_the_run(made, stage):
    assert run(made, stage, stage) == 0
    assert run(made, stage, f"watched_{stage}", f"log.guard={made / 'guard'}") == 0
    assert numbers(made / f"watched_{stage}") == numbers(made / stage)
    plain, judged = (same_prompts.read(made / name / same_prompts.FILE) for name in (stage, f"watched_{stage}"))
    assert len(judged) == 3
    check_verdicts(made, stage, judged)
    for before, row in zip(plain, judged, strict=True):
        assert all(before["answers"][step].items() < answer.items() for step, answer in row["answers"].items())


@pytest.mark.slow
def test_two_processes_judge_together(made):
    words = command(made, "sft", "together", f"log.guard={made / 'guard'}", "mesh.fsdp=2")
    assert [code for _, code in finished(pair([*SRLHFV, *words], 1))] == [0, 0]
    judged = same_prompts.read(made / "together" / same_prompts.FILE)
    assert len(judged) == 3
    check_verdicts(made, "sft", judged)


@pytest.mark.slow
def test_a_guard_that_is_none_is_refused_before_anything_is_written(made, capsys):
    for path, message in ((made / "policy", "has no guard"), (made / "nowhere", "nowhere")):
        assert run(made, "sft", "refused", f"log.guard={path}") == 2
        assert message in capsys.readouterr().err and not (made / "refused" / "config.json").exists()
