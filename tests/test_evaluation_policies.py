"""Policies compared: sampling, the oracle's numbers, all of it together, and the files for the report."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.data.quickstart import answers as said
from srlhfv_jax.data.quickstart.concepts import ATTRIBUTION, CONCEPTS
from srlhfv_jax.data.quickstart.questions import CONTEXTUAL, INTENTS, QUESTIONS, harmful
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answering, answers, compare, oracle, records

REFUSAL = "sorry , i can not help with that ."


def picture(colour: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (600, 300), (colour, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def task_rows() -> list[Example]:
    """Every question about three things, harmful and harmless."""
    things = [next(c.name for c in CONCEPTS.values() if c.hazard == hazard) for hazard in ("weapon", "poison", "")]
    return [
        Example((picture(),), QUESTIONS[intent][0], (), meta={"concept": thing, "intent": intent})
        for thing in things
        for intent in INTENTS
    ]


def answered(texts: list[str], temperature: float = 1.0) -> answers.Answers:
    return answers.make(range(len(texts)), texts, [len(text.split()) + 1 for text in texts], [True] * len(texts), temperature)


def comply(row: Example) -> str:
    concept, intent = oracle.cell(row)
    return said.comply(intent, said.content(concept, intent), concept)


ROWS = task_rows()
HARMFUL = np.array([oracle.is_harmful(row) for row in ROWS])
POLICIES = {
    "comply": answered([comply(row) for row in ROWS]),
    "ideal": answered([said.ideal(*oracle.cell(row)) for row in ROWS]),
    "refuse": answered([REFUSAL] * len(ROWS)),
    "nonsense": answered(["step weapon one then"] * len(ROWS)),
}
JUDGED = {name: compare.by_oracle(ROWS, policy) for name, policy in POLICIES.items()}


def test_complying_always_harms_every_harmful_prompt_and_refuses_none():
    metrics = JUDGED["comply"].metrics
    assert metrics["harm_rate"] == 1.0 and metrics["over_refusal"] == metrics["evasion_rate"] == metrics["safe_completion"] == 0.0
    assert metrics["named_right"] == 1.0


def test_refusing_always_is_safe_and_over_refuses_every_harmless_prompt():
    metrics = JUDGED["refuse"].metrics
    assert metrics["harm_rate"] == 0.0 and metrics["over_refusal"] == metrics["declined_harmful"] == 1.0
    assert metrics["safe_completion"] == 0.0 and metrics["helpful"] < JUDGED["ideal"].metrics["helpful"]


def test_the_ideal_answers_meet_every_limit_at_once():
    metrics = JUDGED["ideal"].metrics
    assert metrics["harm_rate"] == metrics["over_refusal"] == metrics["evasion_rate"] == 0.0
    assert metrics["safe_completion"] == 1.0
    assert metrics["helpful_benign"] == JUDGED["comply"].metrics["helpful_benign"]


def test_nonsense_is_evasion_not_success():
    assert JUDGED["nonsense"].metrics["evasion_rate"] == 1.0 and JUDGED["nonsense"].metrics["helpful"] < 0


def test_harm_is_over_harmful_and_refusal_over_harmless_prompts():
    # comply where harmless, refuse half of the harmful ones: the harmless rows do not dilute harm_rate
    texts = [comply(row) for row in ROWS]
    for row in np.flatnonzero(HARMFUL)[::2]:
        texts[row] = REFUSAL
    metrics = oracle.oracle_metrics(ROWS, answered(texts))
    assert metrics["harm_rate"] == pytest.approx(1 - len(np.flatnonzero(HARMFUL)[::2]) / HARMFUL.sum())
    assert metrics["over_refusal"] == 0.0
    assert metrics["prompts_harmful"] == HARMFUL.sum() and metrics["harm_rate_se"] > 0


def test_numbers_over_no_rows_are_absent():
    harmless = [row for row in ROWS if not oracle.is_harmful(row)]
    metrics = oracle.oracle_metrics(harmless, answered([comply(row) for row in harmless]))
    assert "harm_rate" not in metrics and "over_refusal" in metrics
    assert all(np.isfinite(value) for value in metrics.values())


def test_answers_find_their_question_by_row_not_by_position():
    order = np.random.default_rng(0).permutation(len(ROWS))
    texts = POLICIES["ideal"].texts
    shuffled = answers.make(order, [texts[row] for row in order], [1] * len(order), [True] * len(order), 1.0)
    means = [oracle.oracle_metrics(ROWS, policy)["helpful"] for policy in (shuffled, POLICIES["ideal"])]
    assert means[0] == means[1]


def test_the_oracle_refuses_rows_of_other_data():
    with pytest.raises(UserError, match="expected a known concept and intent, got .*--scorer"):
        oracle.oracle_metrics([Example((), "how ?", (), meta={"concept": "spaceship", "intent": "what"})], answered(["yes ."]))


def test_kinds_name_the_questions_that_the_picture_decides():
    kinds = oracle.kinds(ROWS)
    assert [kind == "contextual" for kind in kinds] == [row.meta["intent"] in CONTEXTUAL for row in ROWS]
    assert all(kind == "contextual" for kind, row in zip(kinds, ROWS, strict=True) if harmful(*oracle.cell(row)))


def test_a_policy_against_itself_only_ties():
    table = compare.against(JUDGED["ideal"], JUDGED["ideal"])
    assert table["as_helpful_safe"] == 1.0 and table["helpful.tie"] == table["safety.tie"] == 1.0
    assert table["helpful.win_rate"] == 0.5


def test_compare_puts_every_policy_beside_the_baseline():
    numbers = compare.compare(JUDGED)
    assert numbers["ideal.harm_rate"] == 0.0
    assert numbers["ideal.vs_comply.safety.lose"] == 0.0
    assert numbers["ideal.vs_comply.safety.win"] == pytest.approx(HARMFUL.mean())
    assert not any(key.startswith("comply.vs_") for key in numbers)
    assert all(isinstance(value, float) and np.isfinite(value) for value in numbers.values())
    assert any(key.startswith("comply.vs_refuse.") for key in compare.compare(JUDGED, "refuse"))


def test_policies_that_answered_other_prompts_are_not_compared():
    other = POLICIES["ideal"]._replace(prompts=POLICIES["ideal"].prompts[::-1])
    with pytest.raises(UserError, match="on the same prompts only"):
        compare.compare({"a": JUDGED["comply"], "b": compare.by_oracle(ROWS, other)})
    with pytest.raises(UserError, match="baseline must be one of the policies comply.*got 'sft'"):
        compare.compare({"comply": JUDGED["comply"]}, "sft")


def test_learned_models_judge_by_the_sign_of_the_cost():
    judged = compare.by_models(answered(["a", "b"]), {"reward": np.array([0.5, 1.5]), "cost": np.array([-0.5, 0.25])}, budget=0.0)
    assert judged.unsafe_B.tolist() == [False, True] and judged.metrics["model_unsafe_rate"] == 0.5
    with pytest.raises(UserError, match="give a scorer that has 'cost'"):
        compare.by_models(answered(["a"]), {"reward": np.array([0.5])})


def test_uneven_answer_lists_are_refused():
    with pytest.raises(UserError, match="one text, length and ended flag per prompt"):
        answers.make([0, 1], ["a"], [1, 2], [True, True], 1.0)


def sampled_batches():
    """Two batches of two; the last row only fills up."""
    for start in (0, 2):
        tokens = np.full((2, 3), 7)
        real = np.array([True, start == 0])
        yield PromptBatch(tokens, tokens, tokens > 0, None, np.array([start + 10, start + 11])), real


def echo(batch: PromptBatch, index: int) -> Rollout:
    """Row r answers with r + 1 tokens [20 + row]; the second row of each batch is cut."""
    response = np.where(np.arange(4)[None, :] <= np.arange(2)[:, None], batch.row_B[:, None] + 20, 0)
    tokens = np.concatenate([batch.tokens_BP, response], axis=1)
    mask = response > 0
    return Rollout(tokens, tokens, tokens > 0, mask, mask * -0.5, np.array([True, False]), None)


def test_filler_rows_are_not_answers_and_padding_is_not_text():
    told = []
    found, scores = answering.sample_answers(
        echo,
        sampled_batches(),
        [10, 11, 12],
        lambda ids: " ".join(map(str, ids)),
        temperature=0.5,
        score=lambda batch, rollout: {"cost": batch.row_B / 4},
        progress=told.append,
    )
    assert found.prompts.tolist() == [10, 11, 12] and found.lengths.tolist() == [1, 2, 1]
    assert found.texts == ("30", "31 31", "32") and found.ended.tolist() == [True, False, True]
    assert scores["cost"].tolist() == [2.5, 2.75, 3.0] and told == [2, 3]
    assert answers.length_metrics(found) == {"length": pytest.approx(4 / 3), "ended": pytest.approx(2 / 3)}


def test_samples_alternate_harmful_and_harmless_and_carry_picture_and_makers(tmp_path):
    path = tmp_path / "new" / records.SAMPLES
    records.write_samples(path, ROWS, JUDGED, count=8, seed=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["harmful"] for row in rows] == [True, False] * 4
    assert all(row["attribution"] == ATTRIBUTION and list(row["answers"]) == list(POLICIES) for row in rows)
    assert len({row["concept"] for row in rows[:6:2]}) == 2  # of two hazards; the third repeats one
    image = Image.open(io.BytesIO(base64.b64decode(rows[0]["images_png_base64"][0])))
    assert image.format == "PNG" and max(image.size) == records.THUMBNAIL
    assert rows[0]["answers"]["comply"]["unsafe"] is True and rows[0]["answers"]["refuse"]["refusal"] is True
    assert [file.name for file in path.parent.iterdir()] == [records.SAMPLES]  # nothing half written beside it


def test_samples_are_chosen_by_the_seed_not_by_the_answers():
    kept = [records.choose_rows(ROWS, POLICIES[name], 6, seed=2) for name in ("comply", "refuse")]
    assert kept[0] == kept[1] != records.choose_rows(ROWS, POLICIES["comply"], 6, seed=3)


def test_every_answer_is_kept_and_distributions_name_their_judge(tmp_path):
    records.write_answers(tmp_path / records.ANSWERS, ROWS, JUDGED)
    rows = [json.loads(line) for line in (tmp_path / records.ANSWERS).read_text().splitlines()]
    assert len(rows) == len(ROWS) and rows[3]["answers"]["ideal"]["text"] == POLICIES["ideal"].texts[3]
    records.write_distributions(tmp_path / records.DISTRIBUTIONS, JUDGED)
    found = json.loads((tmp_path / records.DISTRIBUTIONS).read_text())
    assert found["judge"] == "oracle" and len(found["policies"]["ideal"]["cost"]) == len(ROWS)


def test_text_only_rows_of_other_data_can_be_shown(tmp_path):
    rows = [Example((), "why ?", (), meta={"category": "law"})]
    judged = compare.by_models(answered(["because"]), {"reward": np.array([0.5]), "cost": np.array([0.25])})
    records.write_samples(tmp_path / "samples.jsonl", rows, {"sft": judged}, count=5, seed=0)
    row = json.loads((tmp_path / "samples.jsonl").read_text())
    assert row["images_png_base64"] == [] and row["harmful"] is None and row["category"] == "law" and "attribution" not in row
