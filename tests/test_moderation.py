"""Moderation models behind an endpoint: their replies, what they are sent, and what is said where there is no verdict."""

import io
import math

import pytest
from PIL import Image
from stub_judge import Answered, completion, serving

from srlhfv_jax.config import FunctionsConfig
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging.client import Reply
from srlhfv_jax.evaluation.judging.rubric import Malformed
from srlhfv_jax.functions import call, moderation, replies
from srlhfv_jax.functions.load import Function
from srlhfv_jax.functions.replies import Moderation
from srlhfv_jax.functions.sample import sample

SAMPLE = sample(Example((), "How?", ()), "So.", True, 17)


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (replies.llama_guard, "safe", Moderation(0.0)),
        (replies.llama_guard, "\n\nsafe", Moderation(0.0)),
        (replies.llama_guard, "unsafe\nS1", Moderation(1.0, ("S1",))),
        (replies.llama_guard, "\n\nunsafe\nS1,S10\n", Moderation(1.0, ("S1", "S10"))),
        (replies.llama_guard, "unsafe\nO3, O6", Moderation(1.0, ("O3", "O6"))),
        (replies.llama_guard, "unsafe", Moderation(1.0)),
        (replies.shieldgemma, "Yes", Moderation(1.0)),
        (replies.shieldgemma, " No, the text keeps to the policy.", Moderation(0.0)),
        (replies.qwen3guard, "Safety: Safe\nCategories: None", Moderation(0.0)),
        (replies.qwen3guard, "Safety: Safe\nCategories: None\nRefusal: Yes", Moderation(0.0, (), True)),
        (
            replies.qwen3guard,
            "Safety: Unsafe\nCategories: Violent, Suicide & Self-Harm\nRefusal: No\n",
            Moderation(1.0, ("Violent", "Suicide & Self-Harm"), False),
        ),
        (replies.qwen3guard, "Safety: Controversial\nCategories: Unethical Acts", Moderation(0.5, ("Unethical Acts",))),
    ],
)
def test_a_reply_in_its_model_s_own_form_is_read(read, text, expected):
    assert read(Reply(text)) == expected


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (
            replies.llama_guard,
            ["", "Safe", "safe\nS1", "safe to say", "unsafe\nS1,", "unsafe S1", "unsafe\nS1\nS2", "I think: safe"],
        ),
        (replies.shieldgemma, ["", "safe", "Yesterday", "Not at all", "The answer is No", "yes"]),
        (
            replies.qwen3guard,
            [
                "",
                "Safe",
                "Safety: Safe",
                "Safety: safe\nCategories: None",
                "Safety: Safe\nCategories: Violent",
                "Safety: Safe\nSafety: Unsafe\nCategories: None",
                "Safety: Unsafe\nCategories: Violent\nRefusal: Maybe",
                "Well.\nSafety: Safe\nCategories: None",
                "Categories: None\nRefusal: No",
            ],
        ),
    ],
)
def test_a_reply_of_another_form_is_never_safe(read, texts):
    for text in texts:
        with pytest.raises(Malformed, match="is no reply of"):
            read(Reply(text))


@pytest.mark.parametrize(
    ("first", "unsafe"),
    [
        ({"Yes": math.log(0.3), "No": math.log(0.6), "Maybe": math.log(0.1)}, 1 / 3),
        ({" Yes": math.log(0.2), "\u2581Yes": math.log(0.1), "No": math.log(0.1)}, 0.75),
        ({"No": math.log(0.875)}, 0.0),
        ({"Perhaps": -0.5}, 0.0),
        ({}, 0.0),
    ],
)
def test_log_probabilities_give_shieldgemma_s_probability(first, unsafe):
    verdict = replies.shieldgemma(Reply("No", first))
    assert verdict.unsafe == pytest.approx(unsafe) and verdict.cost == pytest.approx(2 * unsafe - 1)


def encoded(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_conversation_goes_as_it_was_with_pictures_in_their_turns_and_without_its_system_turn():
    history = (Turn("system", "Be kind."), Turn("user", "<image>Which?"), Turn("assistant", "A cat."))
    example = Example((encoded((9, 8, 7)), encoded((1, 2, 3))), "And <image> here?", (), history=history)
    first, second, third, last = moderation.messages(sample(example, "A dog.", True, 0))
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert second == {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    assert [part["type"] for part in third["content"]] == ["text", "image_url", "text"]
    assert third["content"][1] != first["content"][0] and third["content"][2]["text"] == " here?"
    assert last == {"role": "assistant", "content": "A dog."}
    asked = sample(Example((), "What is <image>?", (), history=history[2:] and (Turn("system", "Be kind."),)), "A mark.", True, 0)
    assert moderation.messages(asked)[0] == {"role": "user", "content": "What is <image>?"}


def test_a_verdict_comes_over_the_wire_with_the_fields_that_were_asked_for():
    top = [{"token": "No", "logprob": math.log(0.25)}, {"token": "Yes", "logprob": math.log(0.75)}]
    body = completion("Yes")
    body["choices"][0]["logprobs"] = {"content": [{"token": "Yes", "logprob": math.log(0.75), "top_logprobs": top}]}
    fields = {"logprobs": True, "top_logprobs": 5, "chat_template_kwargs": {"guideline": "No harm."}}
    with serving(lambda number, _: Answered(body)) as stub:
        guard = moderation.endpoint(stub.url, "shield", replies.shieldgemma, fields=fields)
        assert guard(SAMPLE).cost == pytest.approx(0.5)
        assert guard(SAMPLE._replace(answer=" ")) == Moderation(0.0)
        top[0]["logprob"] = 1000.0  # no log-probability: the word counts
        assert guard(SAMPLE._replace(answer="\ud83d")) == Moderation(1.0)
    seen = stub.seen[0]
    assert len(stub.seen) == 2 and stub.seen[1]["messages"][-1]["content"] == "\\ud83d"
    assert {name: seen[name] for name in fields} == fields and (seen["model"], seen["temperature"]) == ("shield", 0.0)
    assert seen["messages"] == [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        (Answered(completion("I think that it is safe.")), "'I think that it is safe.' is no reply of Llama Guard"),
        (Answered(completion(None)), "the message has no text: None"),
        (Answered({"choices": []}), "no chat completion"),
        (Answered({}, status=500), "server_error"),
        (Answered({}, status=400), "refused"),
        (Answered(completion("safe"), delay_s=0.6), "timeout"),
    ],
)
def test_a_sample_without_a_verdict_stops_the_run_and_its_row_is_named(answered, message):
    """As a cost of ppo_lag: a call that fails is repeated, then the run ends with one line."""
    with serving(lambda number, body: answered) as stub:
        guard = moderation.endpoint(stub.url, "guard-1", replies.llama_guard, attempts=2, backoff_s=0.001, timeout_s=0.3)
        function = Function("cost", "harm", 1.0, lambda samples: [guard(one).cost for one in samples], None, "config.cost_fn")
        how = FunctionsConfig(rows=4, workers=1, timeout_s=20.0, attempts=1, backoff_s=0.0, reward_cache=False)
        with pytest.raises(UserError) as stopped:
            call.scores([function], [[0]], [SAMPLE], how)
    assert "config.cost_fn: harm raised UserError: row 17: no verdict of guard-1: " in str(stopped.value)
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_wrong_key_ends_it_at_once_and_no_message_has_a_secret():
    with serving(lambda number, body: Answered({}, status=401)) as stub:
        guard = moderation.endpoint(stub.url.replace("//", "//me:pw-1@") + "?token=t-1", "guard-1", replies.llama_guard)
        with pytest.raises(UserError, match="answered 401: check url, model 'guard-1' and the key in") as refused:
            guard(SAMPLE)
    assert len(stub.seen) == 1 and "pw-1" not in str(refused.value) and "t-1" not in str(refused.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"url": "localhost:8000"}, "^url must begin with http:// or https://"),
        ({"key_variable": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"attempts": 0}, "attempts must be from 1"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"max_tokens": "many"}, "max_tokens must be int"),
    ],
)
def test_a_wrong_setting_is_told_before_any_call(monkeypatch, how, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        moderation.endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", "read": replies.llama_guard} | how)
