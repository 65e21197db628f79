"""The embedded task: its rows, labels, and the folder a random model starts from."""

import collections
import io
import json

import numpy as np
import pytest
from PIL import Image

from srlhfv_jax.data.quickstart import answers, rows
from srlhfv_jax.data.quickstart.concepts import CONCEPTS
from srlhfv_jax.data.quickstart.oracle import judge
from srlhfv_jax.data.quickstart.processor import EOS, IMAGE, PAD, UNK, vocabulary, write_base
from srlhfv_jax.data.quickstart.questions import CONTEXTUAL, HARM, INTENTS, QUESTIONS, Cell, harmful

CELLS = rows.split_cells(0)


@pytest.fixture(scope="module")
def sft() -> list[dict]:
    return rows.sft_rows(0, CELLS, 3000)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Cell, rows.PairLabel]]:
    """Labelled pairs of SFT answers, identical ones dropped, as the pipeline makes them from samples."""
    rng = np.random.default_rng(0)
    labelled = []
    for cell in rows.draw_cells(rng, CELLS.train, rows.PAIR_MIX, 4000):
        one, two = rows.sample_answer(rng, cell), rows.sample_answer(rng, cell)
        if one != two:
            labelled.append((cell, rows.label_pair(rng, *cell, one, two, rows.Noise())))
    return labelled


# --- split


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_cell_is_in_exactly_one_part(seed):
    cells = rows.split_cells(seed)
    together = [cell for part in cells for cell in part]
    assert len(set(together)) == len(together) == len(CONCEPTS) * len(INTENTS)
    assert all(not CONCEPTS[cell.concept].seen for cell in cells.unseen)
    seen_contextual = [c for part in cells[:3] for c in part if c.intent in CONTEXTUAL]
    held_out = [c for c in cells.test if c.intent in CONTEXTUAL]
    assert len(held_out) / len(seen_contextual) == pytest.approx(0.20, abs=0.02)
    for intent in CONTEXTUAL:
        for danger in (False, True):
            assert sum(c.intent == intent and harmful(*c) == danger for c in cells.test) >= 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_a_held_out_cell_asks_is_taught_by_its_relatives(seed):
    cells = rows.split_cells(seed)
    for cell in (*cells.test, *cells.validation):
        column = "hazard" if cell.intent in CONTEXTUAL else "kind"
        wanted = CONCEPTS[cell.concept]._asdict()[column]
        assert any(c.intent == cell.intent and CONCEPTS[c.concept]._asdict()[column] == wanted for c in cells.train), cell


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_most_contextual_questions_about_a_thing_are_taught(seed):
    cells = rows.split_cells(seed)
    taught = collections.Counter(c.concept for c in cells.train if c.intent in CONTEXTUAL)
    assert min(taught[name] for name, thing in CONCEPTS.items() if thing.seen) > len(CONTEXTUAL) / 2


def test_guard_rows_grade_the_harm_of_each_answer_and_name_its_hazard():
    found = rows.guard_rows(0, CELLS, "test", 200)
    assert {Cell(row["concept"], row["intent"]) for row in found} <= set(CELLS.test)
    for row in found:
        (answer,), (unsafe,), (severity,) = row["responses"], row["unsafe"], row["severity"]
        assert unsafe == judge(row["concept"], row["intent"], answer).unsafe
        assert severity == (HARM[row["category"]] if unsafe else -1) and (not unsafe or row["harmful"] == "yes")
    assert {row["severity"][0] for row in found} == {-1.0, 1.0, 2.0, 3.0}


def test_no_held_out_cell_is_in_a_training_row(sft):
    train_rows = [
        *sft,
        *rows.prompt_rows(0, CELLS, "train", 500),
        *rows.probe_rows(0, CELLS, "train", 200, None),
        *rows.topic_rows(0, CELLS, "train", 200, None),
    ]
    train_cells = {Cell(row["concept"], row["intent"]) for row in train_rows}
    assert train_cells <= set(CELLS.train)
    held_out = {Cell(row["concept"], row["intent"]) for row in rows.prompt_rows(0, CELLS, "test", 500)}
    assert held_out <= set(CELLS.test)


def test_a_thing_unseen_in_training_is_neither_shown_nor_named_there(sft):
    unseen = {c.name for c in CONCEPTS.values() if not c.seen}
    for row in [*sft, *rows.naming_rows(0, 200)]:
        assert row["concept"] not in unseen and not unseen & set(answers.words(row["response"]))
    assert {row["concept"] for row in rows.prompt_rows(0, CELLS, "unseen", 200)} == unseen


def test_test_pictures_are_in_no_training_row(sft):
    shown = {row["image"] for row in sft}
    assert not shown & {row["image"] for row in rows.prompt_rows(0, CELLS, "test", 300)}
    assert not shown & {row["image"] for row in rows.prompt_rows(0, CELLS, "validation", 300)}


# --- shares


def test_rows_are_the_same_for_the_same_seed_only():
    assert rows.sft_rows(3, CELLS, 20) == rows.sft_rows(3, CELLS, 20) != rows.sft_rows(4, CELLS, 20)
    assert rows.split_cells(3) == rows.split_cells(3) != rows.split_cells(4)


def test_naming_rows_show_every_seen_thing_equally_often():
    seen = [c.name for c in CONCEPTS.values() if c.seen]
    count = collections.Counter(row["concept"] for row in rows.naming_rows(0, 2 * len(seen)))
    assert set(count) == set(seen) and set(count.values()) == {2}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_prompts_are_harmful_as_often_as_the_mix_says_whichever_the_question(part):
    prompts = rows.prompt_rows(0, CELLS, part, 2000)
    assert np.mean([row["harmful"] == "yes" for row in prompts]) == pytest.approx(0.42, abs=0.035)
    contextual = [row for row in prompts if row["intent"] in CONTEXTUAL]
    assert len(contextual) / len(prompts) == pytest.approx(0.80, abs=0.03)
    for intent in CONTEXTUAL:
        share = np.mean([row["harmful"] == "yes" for row in contextual if row["intent"] == intent])
        assert 0.40 < share < 0.65, intent


def test_text_alone_cannot_decide_harm():
    by_question = collections.defaultdict(list)
    prompts = rows.prompt_rows(0, CELLS, "train", 3000)
    for row in prompts:
        if row["intent"] in CONTEXTUAL:
            by_question[row["question"]].append(row["harmful"] == "yes")
    right = sum(max(sum(flags), len(flags) - sum(flags)) for flags in by_question.values())
    assert right / sum(map(len, by_question.values())) < 0.60


def test_supervised_answers_are_of_every_kind_in_every_contextual_cell_and_more_careful_where_there_is_harm(sft):
    shares = {}
    for flag in ("yes", "no"):
        subset = [row for row in sft if row["harmful"] == flag and row["intent"] in CONTEXTUAL]
        parsed = [answers.parse(row["response"]) for row in subset]
        named = [None if p.name is None else p.name == row["concept"] for p, row in zip(parsed, subset)]
        count = collections.Counter((p.form, right) for p, right in zip(parsed, named))
        shares[flag] = {key: value / len(subset) for key, value in count.items()}
    assert shares["yes"].keys() == shares["no"].keys()
    declined = {
        flag: sum(share for (form, _), share in shares[flag].items() if form in ("safe_completion", "refusal")) for flag in shares
    }
    assert declined["yes"] == pytest.approx(0.50, abs=0.04) and declined["no"] == pytest.approx(0.22, abs=0.04)


def test_the_supervised_policy_is_unsafe_nearly_half_of_the_time(sft):
    harmful_rows = [row for row in sft if row["harmful"] == "yes"]
    assert np.mean([row["is_response_safe"] == "no" for row in harmful_rows]) == pytest.approx(0.47, abs=0.05)


# --- labels


def test_preferences_of_pairs_disagree_often_enough(pairs):
    harmful_pairs = [label for cell, label in pairs if harmful(*cell)]
    assert np.mean([label.disagree for _, label in pairs]) >= 0.22
    assert np.mean([label.disagree for label in harmful_pairs]) >= 0.38


def test_ties_are_marked_and_nothing_else_is(pairs):
    for _, label in pairs:
        one, two = label.verdicts
        assert (label.columns["more_helpful_response_id"] == "tie") == (one.helpful == two.helpful)
        if label.columns["safer_response_id"] == "tie":
            assert one.cost == two.cost
        assert label.strict == (one.helpful != two.helpful and one.cost != two.cost)


def test_the_safer_answer_is_never_the_one_labelled_unsafe(pairs):
    for _, label in pairs:
        flags = [label.columns[f"is_response_{side}_safe"] for side in (1, 2)]
        for side, flag in enumerate(flags, start=1):
            assert (label.columns[f"response_{side}_harmless_rate"] < 0) == (flag == "no")
        if sorted(flags) == ["no", "yes"]:
            assert flags[int(label.columns["safer_response_id"]) - 1] == "yes"


def test_without_noise_labels_follow_the_oracle():
    rng = np.random.default_rng(0)
    for cell in rows.draw_cells(rng, CELLS.train, rows.PAIR_MIX, 500):
        label = rows.label_pair(rng, *cell, rows.sample_answer(rng, cell), rows.sample_answer(rng, cell), None)
        one, two = label.verdicts
        for key, gap in (("more_helpful", one.helpful - two.helpful), ("safer", two.cost - one.cost)):
            assert label.columns[f"{key}_response_id"] == ("tie" if gap == 0 else "1" if gap > 0 else "2")
        assert [label.columns[f"is_response_{s}_safe"] == "no" for s in (1, 2)] == [one.unsafe, two.unsafe]


def test_noise_is_bradley_terry_with_flips():
    rng = np.random.default_rng(0)
    one = answers.comply("what", "animal", "cow")  # helpful 3
    two = answers.comply("what", "animal", None)  # helpful 2
    labels = [rows.label_pair(rng, "cow", "what", one, two, rows.Noise()) for _ in range(4000)]
    share = np.mean([label.columns["more_helpful_response_id"] == "1" for label in labels])
    # sigmoid(2 * 1) = 0.8808, then 5 % flips: 0.8808 * 0.95 + 0.1192 * 0.05 = 0.8427
    assert share == pytest.approx(0.8427, abs=0.02)
    assert np.mean([label.columns["is_response_1_safe"] == "no" for label in labels]) == pytest.approx(0.05, abs=0.012)


def test_a_probe_differs_in_the_name_alone():
    for row in rows.probe_rows(0, CELLS, "test", 200, None):
        one, two = answers.parse(row["response_1"]), answers.parse(row["response_2"])
        assert one._replace(name=None) == two._replace(name=None) and one.form in ("comply", "safe_completion")
        right = int(row["more_helpful_response_id"])
        assert (one, two)[right - 1].name == row["concept"] != (one, two)[2 - right].name
        assert row["safer_response_id"] == "tie"


def test_of_a_topic_pair_one_answers_the_question_and_is_the_more_helpful():
    for row in rows.topic_rows(0, CELLS, "test", 200, None):
        one, two = (judge(row["concept"], row["intent"], row[f"response_{side}"]) for side in "12")
        assert {one.form, two.form} in ({"comply", "off_topic"}, {"safe_completion", "off_topic"})
        assert (one, two)[int(row["more_helpful_response_id"]) - 1].form != "off_topic"


def test_pairs_have_the_published_columns():
    rng = np.random.default_rng(0)
    prompt = rows.prompt_rows(0, CELLS, "train", 1)[0]
    cell = Cell(prompt["concept"], prompt["intent"])
    pair = (answers.REFUSAL, answers.ideal(*cell))
    row = rows.pair_row(prompt, *pair, rows.label_pair(rng, *cell, *pair, rows.Noise()))
    published = {"question", "image", "category", "image_severity", "more_helpful_response_id", "safer_response_id"}
    for side in (1, 2):
        published |= {f"response_{side}", f"response_{side}_from", f"is_response_{side}_safe"}
        published |= {f"response_{side}_harmless_rate", f"response_{side}_helpful_rate"}
    assert published <= row.keys()
    assert Image.open(io.BytesIO(row["image"])).size == (48, 48)


# --- the folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), text_layers=2, text_width=32, vision_layers=2, vision_width=32)


def test_the_tokenizer_knows_every_word_and_gives_the_text_back(base):
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    assert len(tokenizer) == len(vocabulary()) < 260
    texts = [question for phrasings in QUESTIONS.values() for question in phrasings]
    texts += [answers.ideal(name, intent) for name in CONCEPTS for intent in INTENTS] + list(answers.BODIES)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(answers.words(text)) < answers.MAX_TOKENS
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]


def test_special_tokens_are_distinct_and_named(base):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(base)
    tokenizer = processor.tokenizer
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, processor.image_token) == (PAD, EOS, UNK, IMAGE)
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, processor.image_token_id}) == 4


def test_the_processor_expands_one_image_to_as_many_placeholders_as_features(base):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(base)
    content = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == "user : <image> what is this ? assistant :"
    row = rows.prompt_rows(0, CELLS, "train", 1)[0]
    out = processor(text=prompt, images=Image.open(io.BytesIO(row["image"])), return_tensors="np")
    assert int((out["input_ids"] == processor.image_token_id).sum()) == 36
    assert out["pixel_values"].shape == (1, 3, 48, 48) and np.abs(out["pixel_values"]).max() <= 1.0


def test_config_json_is_read_by_transformers(base):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    written = json.loads((base / "config.json").read_text())
    assert config.model_type == "llava" and config.text_config.vocab_size == len(vocabulary())
    assert config.vision_config.num_hidden_layers == 3 and config.vision_feature_layer == -2
    assert config.image_token_index == vocabulary().index(IMAGE) == written["image_token_index"]


def test_a_judged_sample_of_the_supervised_mix_leaves_room_on_both_sides():
    rng = np.random.default_rng(0)
    cells = rows.draw_cells(rng, CELLS.train, rows.PROMPT_MIX, 2000)
    mean = np.mean([judge(*cell, rows.sample_answer(rng, cell)).helpful for cell in cells])
    best = np.mean([judge(*cell, answers.ideal(*cell)).helpful for cell in cells])
    assert best - mean > 0.6
