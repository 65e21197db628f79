"""Chat templates: rendered as transformers does, the same every day, and one line where they fail or do not end."""

import copy
import datetime

import pytest
import tiny_hf

from srlhfv_jax.data import chat
from srlhfv_jax.errors import UserError

LOOP = "{% for m in messages %}"
PLAIN = LOOP + "<{{ m.role }}> {{ m.content }} {{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
PARTS = LOOP + "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %} say: "
DATED = LOOP + "{{ strftime_now('%d %b %Y %H:%M:%S') }} {{ m.content }}{% endfor %}"
FAILING = {
    "raises": "{{ raise_exception('no') }}",
    "divides by zero": "{{ 1 // 0 }}",
    "is no template": "{% if %}",
    "is undefined": "{{ nothing.at.all }}",
    "reaches for the system": "{{ ''.__class__.__mro__ }}",
    "calls by chance": LOOP + "{{ m.content }}{{ [1, 2] | random }}{% endfor %}",
    "loses the question": "Hello! ",
    "loses it with a picture": LOOP
    + "{% for p in m.content %}{{ p.text if m.content | length == 1 else 'a picture' }}{% endfor %}{% endfor %}",
    "loops with a picture": LOOP + "{% for p in m.content %}{{ p.text }}{% endfor %}{% if m.content | length > 1 %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}",
    "loops with an earlier turn": LOOP + "{{ m.content }}{% if messages | length > 2 %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}",
    "loops with a system turn": "{% if messages[0].role == 'system' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
    "is a number": 3,
    "has no default": {"tool_use": PLAIN},
    "loops for ever": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "computes for ever": "{{ 7 ** (9 ** 9) }}",
    "is long": "{{ 'a' * 10 ** 12 }}",
    "doubles": "{% set n = namespace(x='ab') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "writes without end": "{% for a in range(99999) %}{{ 'a' * 99 }}{% endfor %}",
    "hides its loop": "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endgeneration %}",
}


def tokenizer(template):
    made = copy.deepcopy(tiny_hf.processor("llama"))
    made.chat_template = template
    return made


@pytest.mark.parametrize("fault", FAILING)
def test_a_template_that_cannot_be_used_is_one_line(fault):
    made = copy.deepcopy(tiny_hf.processor("llava" if "picture" in fault else "llama"))
    made.chat_template = FAILING[fault]
    with pytest.raises(UserError, match="chat template") as caught:
        chat.codec(made).prompt("w7 w9", int("picture" in fault))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("template", [PLAIN, {"default": PLAIN, "tool_use": "{{ 1 }}"}])
def test_a_template_is_rendered_as_transformers_renders_it(template):
    owner = tokenizer(template)
    messages = [{"role": "user", "content": "w7 <b> w9"}]
    expected = owner.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat.codec(owner).prompt_text("w7 <b> w9", 0) == expected and "</s>" in expected


def test_a_template_of_a_processor_is_rendered_as_transformers_renders_it():
    processor = copy.deepcopy(tiny_hf.processor("llava"))
    processor.chat_template = PARTS
    content = [{"type": "image"}, {"type": "text", "text": "w7 w9"}]
    expected = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    assert chat.codec(processor).prompt_text("w7 w9", 1) == expected and expected.startswith("<image>")


def test_a_date_in_a_template_is_the_same_on_every_day():
    """One that is not today's: what was trained yesterday, and what is resumed tomorrow, sees the same prompts."""
    said = chat.codec(tokenizer(DATED)).prompt_text("w7", 0)
    assert said == "26 Jul 2024 00:00:00 w7" and datetime.datetime.now().strftime("%Y") not in said
