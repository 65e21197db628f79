"""Rows as other projects write them are read as they mean them, or dropped for a named reason; half a layout is refused."""

import base64
import itertools

import pytest
from tiny_data import png

from srlhfv_jax.data import guard_rows, layouts, taxonomies
from srlhfv_jax.data.drops import Drop
from srlhfv_jax.data.images import cell_bytes
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError

A, B = png(1), png(2)
CELL_A, CELL_B = {"bytes": A, "path": None}, {"bytes": B, "path": None}


def url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def said(*turns: str, role: str = "role", text: str = "content", user: str = "user", assistant: str = "assistant") -> list[dict]:
    """Messages of user and assistant by turns."""
    return [{role: who, text: what} for who, what in zip(itertools.cycle([user, assistant]), turns)]


def sharegpt(*turns: str) -> list[dict]:
    return said(*turns, role="from", text="value", user="human", assistant="gpt")


def image(cell):
    return cell_bytes(cell, None)


def read(row: dict, **means: str) -> Example | Drop:
    return layouts.read(layouts.detect(row), row, layouts.Reading(image, **means))


SYSTEM = {"role": "system", "content": "be brief"}
TALK = said("what is it ?", "a cat .", "and that ?", "a dog .")
# One conversation in all spellings: a system turn, an earlier question, its answer, the question, its answer.
SAME = {
    "messages": {"messages": [SYSTEM, *TALK]},
    "messages with parts": {
        "messages": [one | {"content": [{"type": "text", "text": one["content"]}]} for one in [SYSTEM, *TALK]]
    },
    "messages with values": {
        "messages": [one | {"content": [{"type": "text", "value": one["content"]}]} for one in [SYSTEM, *TALK]]
    },
    "conversations": {"conversations": [{"from": "system", "value": "be brief"}, *sharegpt(*(one["content"] for one in TALK))]},
    "conversations with roles": {"conversations": TALK, "system": "be brief"},
    "conversation": {
        "system": "be brief",
        "conversation": [
            {"human": "what is it ?", "assistant": "a cat ."},
            {"human": "and that ?", "assistant": "a dog ."},
        ],
    },
    "swift": {
        "query": "and that ?",
        "response": "a dog .",
        "history": [["what is it ?", "a cat ."]],
        "system": "be brief",
    },
    "alpaca": {
        "instruction": "and that ?",
        "input": "",
        "output": "a dog .",
        "history": [["what is it ?", "a cat ."]],
        "system": "be brief",
    },
    "prompt_completion": {"prompt": [SYSTEM, *TALK[:3]], "completion": TALK[3:]},
    "prompt_completion, text": {"prompt": [SYSTEM, *TALK[:3]], "completion": " a dog ."},
    "plain": {"question": "and that ?", "history": [SYSTEM, *TALK[:2]], "response": "a dog ."},
    "plain, messages": {"prompt": [SYSTEM, *TALK[:3]], "response": "a dog ."},
}


@pytest.mark.parametrize("name", SAME)
def test_one_conversation_is_the_same_in_every_spelling(name):
    example = read(SAME[name])
    assert isinstance(example, Example), example
    assert layouts.detect(SAME[name]).name in name
    assert example.history == (Turn("system", "be brief"), Turn("user", "what is it ?"), Turn("assistant", "a cat ."))
    assert (example.question, example.responses, example.images) == ("and that ?", ("a dog .",), ())
    assert example.unsafe == (None,) and example.severity == (None,) and example.meta == {}


PAIRS = {
    "preference": {"prompt": "what ?", "chosen": " a cat .", "rejected": " a dog ."},
    "preference, messages": {"prompt": said("what ?"), "chosen": said("", "a cat .")[1:], "rejected": said("", "a dog .")[1:]},
    "preference, messages and texts": {"prompt": said("what ?"), "chosen": "a cat .", "rejected": "a dog ."},
    "preference, implicit": {"chosen": said("what ?", "a cat ."), "rejected": said("what ?", "a dog .")},
    "preference, implicit beside a prompt": {
        "prompt": "what ?",
        "chosen": said("what ?", "a cat ."),
        "rejected": said("what ?", "a dog ."),
        "messages": said("what ?", "a cat ."),
        "score_chosen": 7.5,
    },
    "preference, transcripts": {
        "chosen": "\n\nHuman: what ?\n\nAssistant: a cat .",
        "rejected": "\n\nHuman: what ?\n\nAssistant: a dog .",
    },
    "spa_vl": {"question": "what ?", "chosen": "a cat .", "rejected": "a dog ."},
    "aligner": {"question": "what ?", "answer": "a dog .", "correction": "a cat ."},
    "alpaca_pairs": {"instruction": "what ?", "input": "", "chosen": "a cat .", "rejected": "a dog ."},
    "sharegpt_pairs": {
        "conversations": sharegpt("what ?"),
        "chosen": sharegpt("", "a cat .")[1],
        "rejected": sharegpt("", "a dog .")[1],
    },
    "message_pairs": {"chosen_messages": said("what ?", "a cat ."), "rejected_messages": said("what ?", "a dog .")},
    "swift": {"query": "what ?", "response": "a cat .", "rejected_response": "a dog ."},
    "messages": {"messages": said("what ?", "a cat ."), "rejected_response": "a dog ."},
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_pair_is_the_same_in_every_spelling_and_its_label_means_what_is_said(name):
    row = PAIRS[name]
    assert layouts.detect(row).name == name.partition(",")[0]
    for means, (chosen, safer) in {"helpful": (0, None), "safer": (None, 0), "both": (0, 0)}.items():
        example = read(row, chosen_means=means)
        assert isinstance(example, Example), example
        assert (example.question, example.responses) == ("what ?", ("a cat .", "a dog ."))
        assert (example.chosen, example.safer) == (chosen, safer)
        assert example.unsafe == (None, None) and example.history == () and example.desirable is None


def test_texts_without_a_prompt_share_their_beginning():
    example = read({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (example.question, example.responses) == ("The sky is", ("blue.", "green."))
    turned = [f"\n\nHuman: a ?\n\nAssistant: so .\n\nHuman: what ?\n\nAssistant: {end}" for end in ("The cat .", "The dog .")]
    example = read({"chosen": turned[0], "rejected": turned[1]})
    assert example.history == (Turn("user", "a ?"), Turn("assistant", "so ."))
    assert (example.question, example.responses) == ("what ?", ("The cat .", "The dog ."))


def test_a_preference_of_mmsafe_po_is_of_its_own_type():
    row = {
        "question": "USER: <image>\nWho ? ASSISTANT: A man . USER: What is his name ? ASSISTANT:",
        "image": CELL_A,
        "chosen": "ASSISTANT: I cannot say . ",
        "rejected": "ASSISTANT: Rand . ",
        "type": "harmless",
        "text_prompt": "USER: x ASSISTANT:",
    }
    example = read(row)
    assert example.history == (Turn("user", "<image>\nWho ?"), Turn("assistant", "A man ."))
    assert (example.question, example.responses, example.images) == ("What is his name ?", ("I cannot say .", "Rand ."), (A,))
    assert (example.chosen, example.safer) == (None, 0)
    helpful = read(row | {"type": "helpful"})
    assert (helpful.chosen, helpful.safer) == (0, None)


MARKED = [{"role": "user", "content": "<image>one or <image> two ?"}, {"role": "assistant", "content": "two ."}]
PARTS = [{"type": "image"}, {"type": "text", "text": "one or "}, {"type": "image"}, {"type": "text", "text": " two ?"}]
URLS = [{"type": "image_url", "image_url": {"url": url(A)}}, PARTS[1], {"type": "image_url", "image_url": url(B)}, PARTS[3]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MARKED, "images": [CELL_A, CELL_B]},
        {"messages": [{"role": "user", "content": PARTS}, MARKED[1]], "images": [CELL_A, CELL_B]},
        {"messages": [{"role": "user", "content": URLS}, MARKED[1]]},
        {"messages": [{"role": "user", "content": [URLS[0], *PARTS[1:]]}, MARKED[1]], "images": [CELL_B]},
        {"prompt": [{"role": "user", "content": PARTS}], "completion": "two .", "images": [CELL_A, CELL_B]},
        {"conversations": sharegpt("<image>one or <image> two ?", "two ."), "image": [CELL_A, CELL_B]},
        {"query": f"<img>{url(A)}</img>one or <img>{url(B)}</img> two ?", "response": "two ."},
        {"query": "<image>one or <image> two ?", "response": "two .", "images": [url(A), url(B)]},
    ],
)
def test_pictures_are_in_the_order_of_their_places(row):
    example = read(row)
    assert isinstance(example, Example), example
    assert (example.question, example.images, example.responses) == ("<image>one or <image> two ?", (A, B), ("two .",))


def test_pictures_without_a_place_are_left_to_the_first_question():
    example = read({"messages": said("what ?", "a .", "and ?", "b ."), "images": [CELL_A]})
    assert example.images == (A,) and "<image>" not in example.question + example.history[0].text


@pytest.mark.parametrize("label", [True, "yes", 1, "true"])
def test_a_label_means_what_the_setting_says(label):
    row = {"prompt": "what ?", "completion": "a cat .", "label": label}
    assert layouts.detect(row).name == "unpaired"
    desirable = read(row)
    assert (desirable.desirable, desirable.unsafe) == (True, (None,))
    assert (read(row | {"label": False}).desirable, read(row | {"label": None}).reason) == (False, "missing_label")
    assert read(row, label_means="unsafe").unsafe == (True,) and read(row, label_means="safe").unsafe == (False,)
    assert read(row | {"label": 0}, label_means="unsafe").unsafe == (False,)


@pytest.mark.parametrize("row", [{"messages": said("what ?", "a .")}, {"query": "what ?", "response": "a ."}])
def test_conversations_may_carry_the_same_label(row):
    assert read(row).desirable is None and read(row | {"label": 0}).desirable is False
    assert read(row | {"kto_tag": True}, label_means="unsafe").unsafe == (True,)


def test_verl_rows_are_prompts_with_what_a_rule_needs():
    row = {
        "data_source": "gsm8k",
        "prompt": [SYSTEM, *said("<image>how many ?")],
        "images": [CELL_A],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 7},
    }
    example = read(row)
    assert (example.question, example.images, example.responses) == ("<image>how many ?", (A,), ())
    expected = {"data_source": "gsm8k", "ability": "math", "reward_model.ground_truth": "4", "extra_info.index": "7"}
    assert expected.items() <= example.meta.items() and example.history == (Turn("system", "be brief"),)


def test_flags_of_a_moderated_prompt_are_known_or_not_one_by_one():
    names = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
    raw = [
        {"prompt": "a"} | dict.fromkeys(names, 0) | {"SH": 1},
        {"prompt": "b"} | dict.fromkeys(names, 0),
        {"prompt": "c", "S": 0, "V": 0},
    ]
    layout = layouts.detect({name for row in raw for name in row})
    examples = [layouts.read(layout, row, layouts.Reading(image)) for row in raw]
    assert layout.name == "openai_moderation" and [one.harmful for one in examples] == [True, False, None]
    taxonomy = taxonomies.categories("openai_moderation")
    items, drops = guard_rows.expand(examples, taxonomy)
    assert [item.side for item in items.items] == [None] * 3 and not drops
    exceeds, known, category, category_known = guard_rows.arrays([item.labels for item in items.items], taxonomy)
    assert exceeds[:, 0, 0].tolist() == [True, False, False] and known[:, 0, 0].tolist() == [True, True, False]
    assert category[:, 0].sum(1).tolist() == [1, 0, 0] and taxonomy[category[0, 0].argmax()] == "self-harm"
    assert category_known[:, 0].sum(1).tolist() == [8, 8, 2] and not known[:, 1].any() and not category_known[:, 1].any()


def test_what_a_moderation_set_says_is_not_known_of_another_taxonomy():
    flags = dict.fromkeys(("S", "H", "V", "HR", "SH", "S3", "H2", "V2"), 0)
    items, _ = guard_rows.expand([read({"prompt": "a"} | flags)], taxonomies.BEAVERTAILS)
    *_, known = guard_rows.arrays([item.labels for item in items.items], taxonomies.BEAVERTAILS)
    assert not known.any()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": said("a ?", "b .")[1:]}, "bad_turns"),
        ({"messages": []}, "bad_turns"),
        ({"messages": [SYSTEM]}, "bad_turns"),
        ({"messages": "what ?"}, "bad_turns"),
        ({"messages": [1]}, "bad_turns"),
        ({"messages": [TALK[0], TALK[0]]}, "bad_turns"),
        ({"messages": [TALK[0], SYSTEM, TALK[1]]}, "bad_turns"),
        ({"messages": [TALK[0], TALK[1], TALK[1]]}, "bad_turns"),
        ({"messages": [{"role": "tool", "content": "x"}, *TALK]}, "bad_turns"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}, TALK[1]]}, "bad_turns"),
        ({"messages": said("a ?", "", "b ?", "c .")}, "empty_turn"),
        ({"messages": said(" ", "b .")}, "empty_question"),
        ({"messages": said("a ?", " ")}, "empty_response"),
        ({"messages": said("a ?", 5)}, "bad_label"),
        ({"messages": said("a ?", "b \udfff")}, "broken_text"),
        ({"messages": said("<image><image> a ?", "b ."), "images": [CELL_A]}, "special_token_in_text"),
        ({"messages": said("<image> a ?", "b ."), "images": [CELL_A, CELL_B]}, "special_token_in_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TALK[1]]}, "missing_image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a"}}]}, TALK[1]]},
            "image_not_here",
        ),
        ({"prompt": said("a ?", "b ."), "chosen": "c .", "rejected": "d ."}, "bad_turns"),
        ({"prompt": "a ?", "chosen": "c .", "rejected": " c ."}, "identical_responses"),
        ({"prompt": "a ?", "chosen": "c .", "rejected": None}, "empty_response"),
        ({"prompt": "a ?", "chosen": 0, "rejected": 1}, "bad_label"),
        ({"chosen": said("a ?", "c ."), "rejected": said("b ?", "c .")}, "bad_turns"),
        ({"chosen": said("a ?", "c ."), "rejected": said("a ?")}, "bad_turns"),
        ({"chosen": [], "rejected": []}, "bad_turns"),
        ({"chosen": "cat", "rejected": "dog"}, "empty_question"),
        ({"prompt": "a ?", "completion": ""}, "empty_response"),
        ({"prompt": "a ?", "completion": said("b ?")}, "bad_turns"),
        ({"prompt": "a ?", "completion": "b .", "label": "perhaps"}, "bad_label"),
        ({"query": "a ?", "response": "b .", "history": [["c ?"]]}, "bad_turns"),
        ({"query": "a ?", "response": "", "rejected_response": "b ."}, "missing_response"),
        ({"instruction": "a ?", "output": None}, "empty_response"),
        ({"prompt": [TALK[0]], "data_source": "x", "reward_model": "y"}, "bad_label"),
    ],
)
def test_a_bad_row_is_dropped_for_its_reason(row, reason):
    drop = read(row)
    assert isinstance(drop, Drop) and drop.reason == reason and drop.detail, drop


@pytest.mark.parametrize("name", [*SAME, *PAIRS])
def test_a_cell_of_any_type_is_read_or_dropped_and_never_a_traceback(name):
    row = (SAME | PAIRS)[name]
    odd = [
        None,
        "",
        0,
        2.5,
        True,
        b"x",
        "x",
        [],
        [None],
        [[]],
        [["a", 1]],
        {},
        {"role": 3},
        [{"role": "user"}],
        [{"role": ["user"]}],
    ]
    odd += [
        [{"from": "human", "value": {"type": "image_url", "image_url": 3}}],
        [{"role": "user", "content": [3, None]}],
        said("a ?", "b ."),
    ]
    layout = layouts.detect(row)
    for column in (*row, "images", "image", "system", "history", "label"):
        for value in odd:
            found = layouts.read(layout, row | {column: value}, layouts.Reading(image))
            assert isinstance(found, (Example, Drop)), (column, value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["prompt", "chosen"], "the column chosen needs rejected, or responses"),
        (["prompt", "rejected"], "the column rejected is one of the layout preference, and lacks chosen"),
        (["completion", "label"], "the column completion is one of the layout prompt_completion, and lacks prompt or question"),
        (["instruction", "input"], "the column instruction is one of the layout alpaca, and lacks output or response"),
        (["question", "response_1"], None),
        (["question", "response_2"], "response_2 is one of the layout beavertails_v, and lacks response_1"),
        (["question", "messages"], None),
        (["messages", "conversations"], "the column conversations is one of the layout conversation, and is one of messages too"),
        (["prompt", "completion", "query"], "the column query is one of the layout swift, and is one of prompt_completion too"),
        (["prompt", "is_safe"], "the column is_safe is one of the layout beavertails, and lacks response"),
        (["prompt", "S", "V2"], "the column V2 is one of the layout openai_moderation, and lacks H, V, HR, SH, S3, H2"),
        (["response"], "no known layout has the columns response"),
        ([], r"no known layout has the columns \(none\)"),
    ],
)
def test_half_a_layout_and_two_at_once_are_refused_with_what_is_missing(columns, said):
    if said is None:
        assert layouts.detect(columns).name in ("plain", "messages")
        return
    with pytest.raises(UserError, match=said) as caught:
        layouts.detect(columns)
    assert "--config.data.columns" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_every_layout_is_found_by_its_own_columns_and_named_once():
    for layout in layouts.LAYOUTS:
        assert layouts.detect([need.partition("|")[0] for need in layout.needs]) is layout
    assert len({layout.name for layout in layouts.LAYOUTS}) == len(layouts.LAYOUTS)
