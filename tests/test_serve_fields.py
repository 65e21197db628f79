"""Every field of the API with a wrong type or value: one line in the API's form, and nothing reaches the model."""

import base64
import json

import pytest
from tiny_server import NAMES, Model, bomb, picture, serving

PNG = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
HELLO = [{"role": "user", "content": "hello"}]


def url(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": text}}]}]


def part(**fields) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, fields]}]


@pytest.fixture(scope="module")
def served():
    model = Model()
    with serving(model, model, score=model, rounds=3, text_chars=200, inputs=3, image_bytes=2000) as one:
        yield one
    assert model.batches == []


def check(served, path: str, body: dict, field: str, message: str, status: int = 400) -> None:
    response = served.http.post(path, content=json.dumps(body))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, field), error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert message in error["message"] and "\n" not in error["message"] and len(error["message"]) < 400


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"model": None}, "model", "must be a valid string, got null"),
        ({"model": 3}, "model", "must be a valid string, got 3"),
        ({"messages": None}, "messages", "must be a valid list, got null"),
        ({"messages": "hello"}, "messages", "must be a valid list, got 'hello'"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": ["hello"]}, "messages.0", "must be an object with role and content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
        ({"messages": [{"content": "a"}]}, "messages.0.role", "must be one of system, developer, user, assistant, got null"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "got 'tool'"),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages.0", "unknown field"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages.0.tool_calls", "not supported"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages.0.content",
            "must be a string or a list of parts, got null",
        ),
        ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content", "got an object"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content", "has no text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "has no text"),
        ({"messages": [{"role": "user", "content": "a \ud800"}]}, "messages.0.content", "not Unicode text"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0", "type text or image_url, got a string"),
        ({"messages": part(type="input_audio", input_audio={})}, "messages.0.content.1", "got 'input_audio'"),
        ({"messages": part(type="text")}, "messages.0.content.1.text", "must be a string, got null"),
        ({"messages": part(type="text", text=4)}, "messages.0.content.1.text", "must be a string, got 4"),
        ({"messages": part(type="image_url", image_url=PNG)}, "messages.0.content.1.image_url", "got a string"),
        ({"messages": part(type="image_url", image_url={"url": 5})}, "messages.0.content.1.image_url", "must be an object"),
        ({"messages": url("https://x.example/a.png")}, "messages.0.content.1.image_url.url", "nothing is downloaded"),
        ({"messages": url("file:///etc/passwd")}, "messages.0.content.1.image_url.url", "must be a data URL"),
        ({"messages": url("data:image/png,abc")}, "messages.0.content.1.image_url.url", "must be a data URL"),
        ({"messages": url("data:image/png;base64,!!")}, "messages.0.content.1.image_url.url", "not base64"),
        ({"messages": url("data:image/png;base64,YWJj")}, "messages.0.content.1.image_url.url", "not_an_image"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages.0", "expected system or user"),
        ({"messages": HELLO + HELLO}, "messages.1", "a turn of user comes after user: expected assistant"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "the last message must be of the user, got system"),
        ({"messages": HELLO + [{"role": "assistant", "content": "a"}]}, "messages", "must be of the user, got assistant"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 9}, "n", "at most 8 on this server, got 9"),
        ({"n": 1.5}, "n", "must be a valid integer, got 1.5"),
        ({"n": True}, "n", "must be a valid integer, got true or false"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "must be a valid number, got '1'"),
        ({"temperature": float("nan")}, "temperature", "must be a finite number"),
        ({"top_p": 1.25}, "top_p", "less than or equal to 1"),
        ({"top_p": []}, "top_p", "must be a valid number, got an array"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 257}, "max_tokens", "must be at most 256 on this server (--response_length), got 257"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "must be a valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"stop": 5}, "stop", "must be a string with text"),
        ({"stop": ""}, "stop", "must be a string with text"),
        ({"stop": ["a", 5]}, "stop", "a list of at most 4"),
        ({"stop": ["a", "b\ud800"]}, "stop", "stop is not Unicode text"),
        ({"stream": True, "stream_options": [1]}, "stream_options", "must be an object, got an array"),
        (
            {"messages": part(type="text", text="b", cache_control={})},
            "messages.0.content.1.cache_control",
            "expected type, text",
        ),
        ({"messages": part(type="image_url", image_url={"url": PNG}, size=3)}, "messages.0.content.1.size", "unknown field"),
        (
            {"messages": part(type="image_url", image_url={"url": PNG, "max_pixels": 9})},
            "messages.0.content.1.image_url.max_pixels",
            "expected url, detail",
        ),
        (
            {"messages": part(type="image_url", image_url={"url": PNG, "detail": "x"})},
            "messages.0.content.1.image_url.detail",
            "must be auto, low or high, got 'x'",
        ),
        (
            {"messages": part(type="image_url", image_url={"url": PNG, "detail": []})},
            "messages.0.content.1.image_url.detail",
            "got an array",
        ),
        ({"stop": list("abcde")}, "stop", "a list of at most 4"),
        ({"seed": 0.5}, "seed", "must be a valid integer"),
        ({"seed": 2**63}, "seed", "must be less than"),
        ({"stream": "yes"}, "stream", "must be a valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "for stream=true only"),
        ({"stream": True, "stream_options": []}, "stream_options", "must be"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "must be a valid boolean"),
        ({"stream": True, "stream_options": {"pace": 1}}, "stream_options.pace", "expected include_usage"),
        ({"rounds": 4}, "rounds", "at most 3 on this server"),
        ({"rounds": -1}, "rounds", "greater than or equal to 0"),
        ({"logprobs": True}, "logprobs", "not supported: leave it out, or set it to False"),
        ({"top_logprobs": 2}, "top_logprobs", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"presence_penalty": "x"}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"function_call": {"name": "f"}}, "function_call", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "not supported"),
        ({"audio": {}}, "audio", "not supported"),
        ({"prediction": {}}, "prediction", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"verbosity": "low"}, "verbosity", "not supported"),
        ({"web_search_options": {}}, "web_search_options", "not supported"),
        ({"user": 5}, "user", "must be a valid string"),
        ({"metadata": {"a": 1}}, "metadata.a", "must be a valid string"),
        ({"store": "yes"}, "store", "must be a valid boolean"),
        ({"service_tier": 1}, "service_tier", "must be a valid string"),
        ({"colour": "red"}, "colour", "unknown field colour: expected"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_wrong_field_of_a_chat_is_named(served, fields, field, message):
    check(served, "/v1/chat/completions", {"model": NAMES.policy, "messages": HELLO} | fields, field, message)


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        ("a" * 201, "messages.0.content", "has 201 characters, at most 200"),
        ([{"type": "image_url", "image_url": {"url": PNG}}] * 17, "messages.0.content", "more than 16 pictures"),
        (
            url("data:image/png;base64," + "AAAA" * 700)[0]["content"],
            "messages.0.content.1.image_url.url",
            "at most 2000 are read",
        ),
        (
            url("data:image/png;base64," + base64.b64encode(bomb(60_000, 60_000)).decode())[0]["content"],
            "messages.0.content.1.image_url.url",
            "image_too_large",
        ),
    ],
    ids=["text", "many pictures", "bytes", "bomb"],
)
def test_what_is_too_large_is_a_413(served, content, field, message):
    body = {"model": NAMES.policy, "messages": [{"role": "user", "content": content}]}
    check(served, "/v1/chat/completions", body, field, message, 413)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(served, name):
    body = {"model": NAMES.policy, "messages": HELLO}
    del body[name]
    check(served, "/v1/chat/completions", body, name, f"the field {name} is missing")


def test_values_that_mean_as_usual_are_taken():
    model = Model()
    body = {
        "model": NAMES.policy,
        "messages": [{"role": "user", "content": "hello", "type": "text", "name": None}],
        "n": None,
        "temperature": 1,
        "stop": None,
        "stream": False,
        "logprobs": False,
        "top_logprobs": None,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
    }
    with serving(model, model) as one:
        assert one.http.post("/v1/chat/completions", json=body).status_code == 500  # the stand-in's reply is no answer
    assert [item.prompt for item in model.seen] == ["hello"]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "input", "the field input is missing"),
        ({"input": None}, "input", "got null"),
        ({"input": 5}, "input", "must be a string, a list of strings or a list of parts, got 5"),
        ({"input": []}, "input", "got an array"),
        ({"input": ["a", 5]}, "input", "got an array"),
        ({"input": ""}, "input", "has no text"),
        ({"input": ["a", " "]}, "input.1", "has no text"),
        ({"input": ["a"] * 4}, "input", "at most 3"),
        ({"input": [{"type": "text"}]}, "input.0.text", "must be a string, got null"),
        ({"input": [{"type": "video"}]}, "input.0", "type text or image_url, got 'video'"),
        ({"input": [{"type": "image_url", "image_url": {"url": PNG}}]}, "input", "has no text"),
        ({"input": "a", "model": 5}, "model", "must be a valid string"),
        ({"input": "a", "threshold": 0.5}, "threshold", "unknown field threshold: expected input, model"),
    ],
)
def test_a_wrong_field_of_a_moderation_is_named(served, fields, field, message):
    check(served, "/v1/moderations", fields, field, message)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "messages", "the field messages is missing"),
        ({"messages": HELLO}, "messages", "must be the assistant's answer, got one of user"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "an <image>"}]}, "messages", "the answer contains <image>"),
        ({"messages": HELLO, "n": 2}, "n", "unknown field n: expected model, messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": " "}]}, "messages", "the answer has no text"),
    ],
)
def test_a_wrong_field_of_a_score_is_named(served, fields, field, message):
    check(served, "/v1/score", fields, field, message)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/moderations", "/v1/score", "/moderate"])
def test_a_field_that_is_there_twice_is_refused_at_every_depth(served, path):
    for body, name in ((b'{"model": "a", "model": "b"}', "model"), (b'{"x": [{"y": {"role": 1, "z": 2, "role": 1}}]}', "role")):
        response = served.http.post(path, content=body)
        assert response.status_code == (422 if path == "/moderate" else 400)
        assert f"the field {name} is there twice" in response.text


def test_an_answer_without_text_may_come_back_in_a_conversation():
    model = Model()
    said = [*HELLO, {"role": "assistant", "content": "", "refusal": None}, {"role": "user", "content": "hm"}]
    with serving(model, model) as one:
        one.http.post("/v1/chat/completions", json={"model": NAMES.policy, "messages": said})
    assert [turn.text for turn in model.seen[0].history] == ["hello", ""]


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "\xff"}', b"[" * 100_000, b"[]", b"null", b"5"])
def test_a_body_that_is_no_json_object_is_a_400(served, body):
    for path in ("/v1/chat/completions", "/v1/moderations", "/v1/score"):
        response = served.http.post(path, content=body)
        assert response.status_code == 400 and "the body" in response.json()["error"]["message"]
