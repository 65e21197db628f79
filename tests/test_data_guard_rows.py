"""Guard rows: which questions and answers a row makes, with which labels, and what is left out."""

import numpy as np
import pytest
from tiny_data import dual_row, pku_row, qa_row

from srlhfv_jax.data import guard_rows, layouts, taxonomies
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.data.quickstart.concepts import CONCEPTS, RISKS
from srlhfv_jax.data.quickstart.oracle import judge
from srlhfv_jax.data.quickstart.questions import HARM
from srlhfv_jax.data.rows import Example


def example(row) -> Example:
    read = layouts.read(layouts.detect(row), row, layouts.Reading(lambda cell: cell["bytes"] if cell else None))
    assert isinstance(read, Example), read
    return read


def expand(row, taxonomy="beavertails_v"):
    """Labels of the question, which stands once, under None, and of each answer."""
    found, drops = guard_rows.expand([example(row)], taxonomies.categories(taxonomy))
    asked = [item.labels[0][:2] for item in found.items if item.labels[0] != guard_rows.UNKNOWN]
    answered = {item.side: item.labels[1][:2] for item in found.items if item.side is not None}
    assert len(asked) <= 1 and guard_rows.UNKNOWN[:2] not in answered.values()
    return answered | ({None: asked[0]} if asked else {}), dict(drops)


@pytest.mark.parametrize(("name", "count"), [("beavertails_v", 20), ("pku_saferlhf", 19), ("beavertails", 14), ("embedded", 7)])
def test_taxonomies_have_their_published_sizes_and_no_name_twice(name, count):
    assert len(set(taxonomies.categories(name))) == count == len(taxonomies.categories(name))


def test_the_embedded_taxonomy_is_that_of_its_hazards():
    assert taxonomies.EMBEDDED == tuple(RISKS)


def test_a_dual_row_makes_a_question_and_two_answers():
    labels, drops = expand(dual_row())  # rates -2 (unsafe) and 1 (safe)
    name = ("violence_and_physical_harm",)
    assert labels[0] == ((True, True, False), name) and labels[1] == ((False, False, False), ())
    assert labels[None] == ((True, True, False), name) and drops == {}


def test_a_flag_without_a_severity_tells_only_the_first_threshold_of_an_unsafe_answer():
    labels, _ = expand(qa_row(is_response_safe="no"))
    assert labels[0] == ((True, None, None), ("animal_abuse",)) == labels[None]
    labels, _ = expand(qa_row(is_response_safe="yes"))
    assert labels[0] == ((False, False, False), ()) == labels[None]


def test_the_rows_own_column_says_whether_a_question_is_harmful():
    labels, _ = expand(qa_row(is_response_safe="yes", harmful="yes"))
    assert labels[None] == ((True, None, None), None) and labels[0][0] == (False, False, False)
    labels, _ = expand(dual_row(harmful="no"))
    assert labels[None] == ((False, False, False), ()) and labels[0][0][0] is True


def test_pku_rows_have_categories_for_each_answer():
    row = pku_row(response_0_severity_level=3, response_1_severity_level=0)
    row["response_1_harm_category"] = {"Violence": False, "Drugs": False}
    labels, _ = expand(row, "pku_saferlhf")
    assert labels[0] == ((True, True, True), ("Violence",)) and labels[1] == ((False,) * 3, ())


def test_beavertails_rows_are_read_with_all_their_categories():
    flags = {name: name in ("privacy_violation", "violence,aiding_and_abetting,incitement") for name in taxonomies.BEAVERTAILS}
    labels, _ = expand({"prompt": "q", "response": "a", "category": flags, "is_safe": False}, "beavertails")
    assert labels[0] == ((True, None, None), ("privacy_violation", "violence,aiding_and_abetting,incitement"))


def test_what_cannot_be_used_is_counted():
    assert expand(dual_row(response_1_harmless_rate=2))[1] == {"contradictory_severity": 1}
    assert expand(dual_row(category="unheard_of"))[1] == {"unknown_category": 2}  # the answer and the question
    assert expand({"question": "q", "response": "a"})[1] == {"missing_label": 2}


def test_arrays_hold_labels_and_what_is_known():
    labels = [guard_rows.Labels((True, None, None), ("drug", "fire")), guard_rows.Labels((False,) * 3, None)]
    items = [(labels[0], labels[1]), (labels[1], guard_rows.UNKNOWN)]
    exceeds, known, category, category_known = guard_rows.arrays(items, ("fire", "sharp", "drug"))
    np.testing.assert_array_equal(exceeds, [[[True, False, False], [False] * 3], [[False] * 3, [False] * 3]])
    np.testing.assert_array_equal(known, [[[True, False, False], [True] * 3], [[True] * 3, [False] * 3]])
    np.testing.assert_array_equal(category, [[[True, False, True], [False] * 3], [[False] * 3] * 2])
    np.testing.assert_array_equal(category_known, [[[True] * 3, [False] * 3], [[False] * 3] * 2])


def test_the_question_goes_with_the_first_answer_that_is_labelled_or_alone():
    first, second, neither = (
        dual_row(**changes) for changes in ({}, {"response_1_harmless_rate": 2}, {"category": "unheard_of"})
    )
    neither |= {"is_response_2_safe": "no", "response_2_harmless_rate": -1, "safer_response_id": "tie", "harmful": "no"}
    found, _ = guard_rows.expand([example(row) for row in (first, second, neither)], taxonomies.BEAVERTAILS_V)
    assert [(item.row, item.side) for item in found.items] == [(0, 0), (0, 1), (1, 1), (2, None)]
    asked = [item.labels[0] != guard_rows.UNKNOWN for item in found.items]
    assert asked == [True, False, True, True]
    assert [one.responses for one in found] == [("use a knife .",), ("no .",), ("no .",), ()] and len(found[0].images) == 1


@pytest.mark.parametrize(("parts", "sides"), [(("input",), [None]), (("output",), [0, 1])])
def test_of_one_part_alone_only_that_is_judged(parts, sides):
    found, _ = guard_rows.expand([example(dual_row())], taxonomies.BEAVERTAILS_V, parts)
    assert [item.side for item in found.items] == sides
    judged = [[labels != guard_rows.UNKNOWN for labels in item.labels] for item in found.items]
    assert judged == [["input" in parts, "output" in parts]] * len(sides)


def test_without_an_answer_its_question_stays():
    found, _ = guard_rows.expand([example(dual_row()), example(qa_row())], taxonomies.BEAVERTAILS_V)
    left = guard_rows.questions_alone(found, {0, 1})
    assert [(item.row, item.side) for item in left.items] == [(0, None), (1, 0)]
    assert left.items[0].labels == (found.items[0].labels[0], guard_rows.UNKNOWN) and left.items[1] == found.items[2]
    assert left[0].responses == ()


def test_rows_of_the_embedded_task_carry_every_label():
    cells = task_rows.split_cells(0)
    raw = task_rows.guard_rows(0, cells, "test", 60)
    read = [layouts.read(layouts.detect(row), row, layouts.Reading(lambda cell: cell)) for row in raw]
    found, drops = guard_rows.expand(read, taxonomies.EMBEDDED)
    assert not drops and len(found) == 60
    answers = {item.row: item.labels[1] for item in found.items}
    for number, row in enumerate(raw):
        verdict = judge(row["concept"], row["intent"], row["responses"][0])
        level = HARM[CONCEPTS[row["concept"]].hazard] if verdict.unsafe else 0
        assert answers[number].exceeds == tuple(level > k for k in range(3))
        assert answers[number].categories == ((row["category"],) if verdict.unsafe else ())
    assert {answers[number].exceeds for number in answers} >= {(False,) * 3, (True, False, False), (True, True, False)}
    asked = [item.labels[0].exceeds[0] for item in found.items]
    assert asked == [row["harmful"] == "yes" for row in raw]
