"""Conversations: a system turn, three user turns and two pictures have the tokens that `transformers` gives them, in every family."""

import copy

import numpy as np
import pytest
import tiny_tokenizers
import transformers
from tiny_data import png

from srlhfv_jax.data import chat, guard_rows, inspection, layouts, rows, tokens
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.data.rows import Example, Prompt, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.regenerate import guarded_generate
from srlhfv_jax.guard.verdict import GuardVerdict

PLENTY = {"prompt_length": 9999, "response_length": 9999}
SYSTEM = Turn("system", "Say yes or no.")
TALK = (Turn("user", "<image>what is this?"), Turn("assistant", "a cat"), Turn("user", "yes, and this?<image>"))
HISTORY = (SYSTEM, *TALK, Turn("assistant", "a dog, no 12"))
QUESTION = "how do I use it?"
PICTURES = (png(1, (26, 21)), png(2, (40, 17)))


@pytest.fixture(scope="module", params=tiny_tokenizers.FAMILIES)
def family(request):
    processor = tiny_tokenizers.processor(request.param)
    return request.param, processor, chat.codec(processor)


def example(codec, history=HISTORY) -> Example:
    if codec.reader is None:
        return Example((), QUESTION, (), history=tuple(turn._replace(text=turn.text.replace("<image>", "")) for turn in history))
    return Example(PICTURES, QUESTION, (), history=history)


def messages(codec, turns) -> list[dict]:
    """As transformers wants them: a picture is a part of its own, before the text of its turn."""
    made = []
    for role, text in turns:
        parts = [{"type": "image"}] * text.count("<image>") + [{"type": "text", "text": text.replace("<image>", "")}]
        made.append({"role": role, "content": parts if codec.reader is not None else text})
    return made


def theirs(processor, codec, turns) -> str:
    owner = processor if isinstance(processor, transformers.ProcessorMixin) else codec.tokenizer
    return owner.apply_chat_template(messages(codec, turns), add_generation_prompt=True, tokenize=False)


def test_a_conversation_has_the_tokens_that_transformers_gives_it(family):
    name, processor, codec = family
    row = example(codec)
    first, *rest = row.history
    turns = [*row.history, Turn("user", QUESTION)]
    if name == "gemma3":  # its template raises at a system turn
        assert codec.merges_system
        turns = [
            rest[0]._replace(text=f"{rest[0].text[:7]}{first.text}\n\n{rest[0].text[7:]}"),
            *rest[1:],
            Turn("user", QUESTION),
        ]
    text = theirs(processor, codec, turns)
    encoded = tokens.encode(codec, row, 0, **PLENTY)
    if codec.reader is not None:
        before, *after = text.split(codec.reader.written)
        shown = [layout.text or codec.reader.image_token * layout.placeholders for layout in encoded.layouts]
        text = before + "".join(picture + words for picture, words in zip(shown, after, strict=True))
    begins = codec.tokenizer.bos_token is not None and text.startswith(codec.tokenizer.bos_token)
    assert encoded.prompt.tolist() == codec.tokenizer(text, add_special_tokens=not begins)["input_ids"]
    assert len(encoded.layouts) == (2 if codec.reader is not None else 0)


def test_a_question_alone_is_a_conversation_without_a_history(family):
    _, _, codec = family
    np.testing.assert_array_equal(tokens.prompt_ids(codec, QUESTION, ()), tokens.prompt_ids(codec, QUESTION, (), ()))
    assert codec.prompt(QUESTION, 0) == codec.prompt(QUESTION, 0, ())


def test_pictures_without_marks_stand_before_the_first_user_turn(family):
    _, _, codec = family
    if codec.reader is None:
        return
    bare = tuple(turn._replace(text=turn.text.replace("<image>", "")) for turn in HISTORY)
    marked = (bare[0], bare[1]._replace(text="<image><image>" + bare[1].text), *bare[2:])
    assert codec.prompt_text(QUESTION, 2, bare) == codec.prompt_text(QUESTION, 2, marked)
    assert codec.prompt_text(QUESTION, 2, bare) != codec.prompt_text(QUESTION, 2, HISTORY)


@pytest.mark.parametrize("place", range(len(HISTORY)))
def test_a_special_token_in_any_turn_is_text(family, place):
    _, _, codec = family
    known = {index for index in codec.literal.ids.values()} - {codec.tokenizer.unk_token_id}
    base = example(codec)

    def meaning(history) -> list[int]:
        return [
            index for index in tokens.encode(codec, base._replace(history=history), 0, **PLENTY).prompt.tolist() if index in known
        ]

    for word in codec.literal.ids:
        if word != chat.MARK:
            turn = base.history[place]
            spoilt = (*base.history[:place], turn._replace(text=f"{turn.text} {word} b"), *base.history[place + 1 :])
            assert meaning(spoilt) == meaning(base.history), word


@pytest.mark.parametrize("marks", [1, 3])
def test_another_number_of_marks_than_pictures_is_named(family, marks):
    _, _, codec = family
    if codec.reader is not None:
        history = (Turn("user", "<image>" * marks + "a"), Turn("assistant", "b"))
        with pytest.raises(Unusable, match="special_token_in_text"):
            codec.prompt(QUESTION, 2, history)


def with_template(name: str, template: str):
    processor = copy.deepcopy(tiny_tokenizers.processor(name))
    processor.chat_template = template
    return processor


LOOP = "{% for m in messages %}"
LATE = (  # as Mistral's: the system's text stands in the last user turn
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    + LOOP
    + "{% if m.role == 'user' %}[INST] {% if loop.last %}{{ system }}{% endif %}"
    "{{ m.content }}[/INST]{% else %}{{ ' ' + m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
)
THINKING = LOOP + (  # as Qwen3's
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
)
SILENT = LOOP + "{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
LAST_ONLY = "{{ messages[-1].content }}"
SHOUTING = LOOP + "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('>')[-1] | trim | upper }}{% endfor %}"


def test_a_template_may_write_the_system_text_late():
    codec = chat.codec(with_template("llama3", LATE))
    history = example(codec).history
    assert codec.prompt_text(QUESTION, 0, history) == theirs(None, codec, [*history, Turn("user", QUESTION)])
    assert codec.prompt_text(QUESTION, 0, history).endswith(f"{SYSTEM.text}\n\n{QUESTION}[/INST]") and not codec.merges_system


def test_a_template_that_leaves_the_system_turn_out_has_it_in_the_first_user_turn():
    codec = chat.codec(with_template("llama3", SILENT))
    said = codec.prompt_text("b", 0, (Turn("system", "be kind"), Turn("user", "a"), Turn("assistant", "c")))
    assert codec.merges_system and said == "user: be kind\n\na\nassistant: c\nuser: b\n"


@pytest.mark.parametrize("thought", ["<think>\nyes\n</think>\n\na cat", "a </think>\n\n </think>b", "\n\nno thought"])
def test_thoughts_that_a_template_leaves_out_of_earlier_answers_are_left_out(thought):
    codec = chat.codec(with_template("llama3", THINKING))
    history = (Turn("user", "a </think> b"), Turn("assistant", thought))
    assert codec.prompt_text(QUESTION, 0, history) == theirs(None, codec, [*history, Turn("user", QUESTION)])


@pytest.mark.parametrize("template", [LAST_ONLY, SHOUTING])
def test_a_template_that_alters_earlier_turns_is_refused(template):
    codec = chat.codec(with_template("llama3", template))
    assert QUESTION in codec.prompt_text(QUESTION, 0)
    with pytest.raises(UserError, match="chat template"):
        codec.prompt(QUESTION, 0, TALK[:2])


def test_a_guard_and_a_policy_are_asked_with_the_turns_before_a_question():
    seen = []

    def check(images, questions, answers, histories):
        seen.append((questions, histories))
        return [GuardVerdict(True, "safe", (), {"unsafe": 0.1, "severity": 0.1})] * len(questions)

    def generate(prompts, number):
        seen.append([prompt.history for prompt in prompts])
        return ["yes"] * len(prompts)

    asked = [Prompt((), "a", TALK[:2]), Prompt((), "b")]
    guarded_generate(generate, check, asked)
    assert seen == [[TALK[:2], ()], (["a", "b"], [TALK[:2], ()])]


def test_items_of_a_guard_and_lines_of_answers_keep_the_turns_before(tmp_path):
    row = Example((), "a", ("b",), unsafe=(True,), severity=(None,), categories=(("x",),), history=TALK[:2])
    items, _ = guard_rows.expand([row], ("x",))
    assert [item.history for item in items] == [TALK[:2]]
    assert rows.history_json(row.history)["history"][1] == {"role": "assistant", "content": "a cat"}
    assert rows.history_json(()) == {} and rows.transcript((), "a") == "a"
    assert rows.transcript(TALK[1:2], "a") == "assistant: a cat\nuser: a"


def test_inspection_shows_all_turns(capsys):
    inspection._print_sample(0, Example((), "why?", (), history=(SYSTEM, *TALK[1:2])))
    said = capsys.readouterr().out
    assert said.index("Say yes or no.") < said.index("a cat") < said.index("why?")


def turns(*roles: str) -> list[dict]:
    return [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (turns("assistant"), "bad_turns"),
        (turns("user"), "bad_turns"),
        (turns("user", "user"), "bad_turns"),
        (turns("user", "assistant", "system"), "bad_turns"),
        (turns("system", "system"), "bad_turns"),
        (turns("user", "tool"), "bad_turns"),
        ([{"role": "user"}, *turns("assistant")], "empty_turn"),
        ([{"role": "system", "content": "  "}], "empty_turn"),
        (["user", "assistant"], "bad_turns"),
        ([{"role": "user", "content": 3}, *turns("assistant")], "bad_label"),
    ],
)
def test_turns_in_a_wrong_order_are_named(history, reason):
    drop = layouts.read(layouts.named("plain"), {"question": "a", "history": history}, layouts.Reading(lambda cell: None))
    assert isinstance(drop, Drop) and drop.reason == reason, drop


def test_turns_of_a_row_are_read():
    history = turns("system", "user", "assistant")
    got = layouts.read(layouts.named("plain"), {"question": "a", "history": history}, layouts.Reading(lambda cell: None))
    assert got.history == (Turn("system", "text 0"), Turn("user", "text 1"), Turn("assistant", "text 2")) and got.meta == {}
