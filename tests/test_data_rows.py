"""Raw rows of every published layout become the same kind of Example; unusable rows are named."""

import pytest
from tiny_data import dual_row, pku_row, png, qa_row

from srlhfv_jax.data import layouts, rows
from srlhfv_jax.data.drops import REASONS, Drop
from srlhfv_jax.data.images import cell_bytes
from srlhfv_jax.errors import UserError


def read(row: dict, layout: str | None = None) -> rows.Example | Drop:
    found = layouts.named(layout) if layout else layouts.detect(row)
    return layouts.read(found, row, layouts.Reading(lambda cell: cell_bytes(cell, None)))


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        (dual_row(), "beavertails_v"),
        (qa_row(), "beavertails_v_qa"),
        (pku_row(), "pku_saferlhf"),
        ({"question": "q"}, "plain"),
        ({"prompt": "q", "response": "a", "source": "x"}, "plain"),
    ],
)
def test_the_layout_is_told_by_the_columns(row, layout):
    assert layouts.detect(row).name == layout


def test_unknown_columns_are_listed_with_what_was_expected():
    with pytest.raises(UserError, match=r"columns reply, text: expected question or prompt"):
        layouts.detect(["text", "reply"])


def test_dual_preferences_with_text_ids_are_read():
    example = read(dual_row())
    assert example.responses == ("use a knife .", "no .")
    assert (example.chosen, example.safer) == (0, 1)
    assert example.unsafe == (True, False)
    assert example.severity == (2.0, -1.0)  # -harmless_rate: cost > 0 means unsafe
    assert example.images == (png(7),)
    assert example.meta["category"] == "violence_and_physical_harm" and example.meta["image_severity"] == "2"
    assert "response_1_harmless_rate" not in example.meta and example.meta["response_1_helpful_rate"] == "3"


def test_ids_as_numbers_and_flags_as_booleans_mean_the_same():
    loose = dual_row(more_helpful_response_id=1, safer_response_id=2.0, is_response_1_safe=False, is_response_2_safe=True)
    assert read(loose) == read(dual_row())


def test_a_bare_refusal_has_graded_cost_zero():
    assert read(dual_row(response_2_harmless_rate=0)).severity == (2.0, 0.0)


def test_pku_saferlhf_counts_ids_from_zero_and_needs_no_image():
    example = read(pku_row())
    assert example.images == () and example.question == "how do I use it ?"
    assert (example.chosen, example.safer) == (0, 1)
    assert example.unsafe == (True, False)
    assert example.severity == (3.0, -1.0)  # level 0 is safe: its graded sign must not be 0
    assert example.meta["response_0_harm_category"] == "Violence"


def test_single_answers_carry_their_safety_label():
    example = read(qa_row(is_response_safe="no"))
    assert example.responses == ("a cat .",) and example.unsafe == (True,) and example.chosen is None


def test_plain_rows_are_prompts_answers_or_pairs():
    assert read({"question": "q", "image": None}).responses == ()
    assert read({"prompt": "q", "response": "a"}).responses == ("a",)
    pair = read(
        {"question": "q", "responses": ["a", "b"], "chosen": 1, "safer": "tie", "unsafe": [True, None], "severity": [1.5, -0.5]}
    )
    assert (pair.chosen, pair.safer, pair.safety_tie) == (1, None, True)
    assert pair.unsafe == (True, None) and pair.severity == (1.5, -0.5)


def test_a_tie_is_marked_and_not_coin_flipped():
    example = read(dual_row(more_helpful_response_id="tie"))
    assert example.chosen is None and example.helpful_tie and example.safer == 1 and not example.safety_tie


def test_an_absent_preference_is_not_a_tie():
    example = read(dual_row(more_helpful_response_id=None))
    assert example.chosen is None and not example.helpful_tie


def test_the_same_question_with_another_image_is_another_row():
    first, second = read(dual_row()), read(dual_row(image={"bytes": png(99), "path": None}))
    assert first.question == second.question and first != second


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (dual_row(image=None), "missing_image"),
        (dual_row(image={"bytes": None, "path": ""}), "missing_image"),
        (qa_row(image=None), "missing_image"),
        (dual_row(question="  "), "empty_question"),
        (dual_row(response_2=""), "empty_response"),
        (dual_row(response_2=" \n"), "empty_response"),
        (dual_row(response_2=None), "empty_response"),
        (dual_row(response_2="use a knife . "), "identical_responses"),
        (dual_row(safer_response_id="1"), "contradictory_safety"),
        (pku_row(safer_response_id=0), "contradictory_safety"),
        (dual_row(safer_response_id="3"), "bad_label"),
        (dual_row(safer_response_id="0"), "bad_label"),
        (pku_row(better_response_id=2), "bad_label"),
        (pku_row(better_response_id=True), "bad_label"),
        (dual_row(is_response_1_safe="maybe"), "bad_label"),
        (dual_row(response_1_harmless_rate="low"), "bad_label"),
        (dual_row(response_1=3), "bad_label"),
        ({"question": "q", "responses": ["a", "b"], "unsafe": [True]}, "bad_label"),
        ({"question": "q", "response": "a", "chosen": 0}, "bad_label"),
        ({"question": "q", "responses": ["a", "b", "c"]}, "bad_label"),
    ],
)
def test_an_unusable_row_is_dropped_for_its_reason(row, reason):
    drop = read(row)
    assert isinstance(drop, Drop) and drop.reason == reason and drop.reason in REASONS and drop.detail


def test_both_answers_unsafe_is_no_contradiction():
    assert isinstance(read(dual_row(is_response_2_safe="no", response_2_harmless_rate=-1)), rows.Example)


def test_a_row_may_have_several_images():
    cells = [{"bytes": png(1), "path": None}, png(2)]
    assert read({"question": "q", "images": cells}).images == (png(1), png(2))
    assert read({"question": "q", "images": [], "image": png(3)}).images == (png(3),)
    for row, reason in (({"images": cells, "image": png(3)}, "bad_label"), ({"images": [png(1), None]}, "missing_image")):
        assert read({"question": "q"} | row).reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"responses": "ab"},
        {"responses": 3},
        {"responses": True},
        {"responses": {"a": 1}},
        {"responses": ["a", 2]},
        {"unsafe": True},
        {"unsafe": "yes"},
        {"unsafe": [True]},
        {"unsafe": {"a": True}},
        {"severity": 1.5},
        {"severity": [1.5, [2]]},
        {"severity": [10**400, 1]},
        {"chosen": [0]},
        {"chosen": True},
        {"chosen": 2.7},
        {"safer": {"a": 1}},
        {"images": 2},
        {"images": True},
        {"question": 5},
        {"harmful": 2.7},
    ],
)
def test_a_label_of_another_shape_or_type_is_a_bad_label(changes):
    row = {
        "question": "q",
        "responses": ["a", "b"],
        "chosen": 0,
        "safer": 1,
        "unsafe": [True, False],
        "severity": [1.5, -1],
    } | changes
    found = read(row)
    assert isinstance(found, Drop) and found.reason == "bad_label" and next(iter(changes)) in found.detail
    assert len(found.detail) < 300 and "\n" not in found.detail


@pytest.mark.parametrize("name", ["question", "response"])
def test_half_a_character_in_a_text_is_a_named_drop_and_in_meta_it_is_written_out(name):
    assert read({"question": "q", "response": "a"} | {name: "x\udfff"}).reason == "broken_text"
    found = read({"question": "q", "source \udfff": "x\udfff"})
    assert found.meta == {"source \\udfff": "x\\udfff"} and " ".join([*found.meta, *found.meta.values()]).encode()


@pytest.mark.parametrize("images", ["a.png", {"path": "a.png"}, ["a.png"]])
def test_one_picture_in_the_column_of_several_is_one_picture(images):
    found = layouts.read(
        layouts.named("plain"), {"question": "q", "images": images}, layouts.Reading(lambda cell: repr(cell).encode())
    )
    assert len(found.images) == 1
