"""The real `openai` client against a server on loopback, around models that do as they are told."""

import asyncio
import base64
from collections.abc import Iterator, Sequence

import httpx2
import openai
import pytest
from tiny_server import NAMES, PATIENCE_S, Model, Served, picture, serving, until

from srlhfv_jax.data.rows import Turn
from srlhfv_jax.guard.regenerate import REFUSAL
from srlhfv_jax.guard.service.access import Access
from srlhfv_jax.guard.service.requests import Generation, Moderation, Options, Refused, Scored

CATEGORIES = ("drugs", "weapons")


def verdict(unsafe: float) -> dict:
    scores = {"unsafe": unsafe, "severity": 2 * unsafe, "drugs": unsafe / 2, "weapons": unsafe}
    safe = unsafe <= 0.5
    return {
        "safe": safe,
        "severity": "safe" if safe else "moderate",
        "categories": [] if safe else ["weapons"],
        "scores": scores,
    }


def moderate(items: Sequence[Moderation]) -> list[dict]:
    return [verdict(0.875 if "gun" in item.prompt else 0.125) for item in items]


def generate(items: Sequence[Generation]) -> list[dict]:
    """Answers that say what was asked; "gun" is blocked, "again" is drawn anew, "long" is cut."""
    replies = []
    for item in items:
        said = f"choice {item.options.choice}: {item.prompt}  done"
        blocked, again = "gun" in item.prompt, "again" in item.prompt
        rounds = [
            {
                "number": 0,
                "answer": "unsafe words" if again or blocked else said,
                "verdict": verdict(0.75 if again or blocked else 0.25),
            }
        ]
        rounds += [{"number": 1, "answer": said, "verdict": verdict(0.25)}] if again else []
        replies.append(
            {
                "answer": REFUSAL if blocked else said,
                "blocked": blocked,
                "verdict": rounds[-1]["verdict"],
                "input": None,
                "rounds": rounds,
                "shown": None if blocked else len(rounds) - 1,
                "finish_reason": "content_filter" if blocked else "length" if "long" in item.prompt else "stop",
                "usage": {"prompt_tokens": 11, "completion_tokens": 5},
            }
        )
    return replies


def score(items: Sequence[Scored]) -> list[dict]:
    return [{"reward": len(item.response) / 8, "cost": -len(item.images) / 4} for item in items]


def client(served: Served, **more) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{served.port}/v1", max_retries=0, timeout=PATIENCE_S, **{"api_key": "x"} | more
    )


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(moderate, generate, score=score, rounds=3) as one:
        yield one


def data_url(encoded: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"


def pictured(text: str, encoded: bytes) -> list[dict]:
    return [{"type": "image_url", "image_url": {"url": data_url(encoded), "detail": "low"}}, {"type": "text", "text": text}]


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_a_chat_of_several_turns_with_a_picture_reaches_the_model_and_comes_back_as_a_completion():
    model, encoded = Model(), picture()
    model.replies = generate
    with serving(Model(), lambda items: (model(items), generate(items))[1], rounds=3) as one:
        done = client(one).chat.completions.create(
            model=NAMES.policy,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": pictured(" What is this?", encoded)},
            ],
            n=2,
            temperature=0.25,
            top_p=0.5,
            max_completion_tokens=9,
            stop=["\n", "END"],
            seed=-3,
        )
    history = (Turn("system", "Be brief."), Turn("user", "Hello"), Turn("assistant", "Hi."))
    wanted = [
        Generation("<image> What is this?", (encoded,), 3, Options(0.25, 0.5, 9, ("\n", "END"), -3, choice), history)
        for choice in (0, 1)
    ]
    assert model.seen == wanted
    assert (done.object, done.model) == ("chat.completion", NAMES.policy)
    assert [choice.message.content for choice in done.choices] == [f"choice {k}: <image> What is this?  done" for k in (0, 1)]
    assert [(choice.index, choice.finish_reason) for choice in done.choices] == [(0, "stop"), (1, "stop")]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (11, 10, 21)


@pytest.mark.parametrize(
    ("text", "reason", "action", "rounds"),
    [
        ("hm", "stop", "passed", 1),
        ("a long one", "length", "passed", 1),
        ("once again", "stop", "regenerated", 2),
        ("a gun", "content_filter", "blocked", 1),
    ],
)
def test_an_answer_says_how_it_ended_and_what_the_guard_did_but_not_what_it_held_back(served, text, reason, action, rounds):
    raw = client(served).chat.completions.with_raw_response.create(model=NAMES.policy, messages=ask(text))
    (choice,) = raw.parse().choices
    assert choice.finish_reason == reason
    assert choice.guard["action"] == action and len(choice.guard["rounds"]) == rounds
    assert [one["shown"] for one in choice.guard["rounds"]] == [False] * (rounds - 1) + [action != "blocked"]
    severity = "moderate" if action == "blocked" else "safe"
    assert raw.headers["x-guard"] == f"action={action}; rounds={rounds}; severity={severity}"
    assert "unsafe words" not in raw.text


def test_a_stream_brings_the_same_answer_in_pieces_and_the_usage_where_it_is_wanted(served):
    asked = dict(model=NAMES.policy, messages=ask("once again\n long"), n=2)
    whole = client(served).chat.completions.create(**asked)
    chunks = list(client(served).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts, reasons = ["", ""], {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = (choice.finish_reason, choice.guard["action"])
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {0: ("length", "regenerated"), 1: ("length", "regenerated")}
    assert len(chunks) > 8 and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage and all(chunk.usage is None for chunk in chunks[:-1])
    without = list(client(served).chat.completions.create(**asked, stream=True))
    assert len(without) == len(chunks) - 1 and without[-1].usage is None


def test_moderations_of_a_text_of_several_and_of_a_picture_have_our_categories(served):
    moderations = client(served).moderations
    several = moderations.create(input=["a gun", "a spoon"], model=NAMES.guard)
    assert [one.flagged for one in several.results] == [True, False]
    first = several.results[0].to_dict()
    assert first["categories"] == {"drugs": False, "weapons": True}
    assert first["category_scores"] == {"drugs": 0.4375, "weapons": 0.875}
    assert (first["severity"], first["unsafe"]) == ("moderate", 0.875)
    (one,) = moderations.create(input="a gun").results
    assert one.to_dict() == first
    (seen,) = moderations.create(input=pictured("a gun", picture())).results
    assert seen.to_dict()["category_applied_input_types"] == {"drugs": ["text", "image"], "weapons": ["text", "image"]}


def test_a_score_is_of_the_last_message(served):
    messages = [{"role": "user", "content": pictured("why", picture())}, {"role": "assistant", "content": "so"}]
    reply = served.http.post("/v1/score", json={"model": NAMES.scorer, "messages": messages}).json()
    assert reply["object"] == "score" and reply["scores"] == {"reward": 0.25, "cost": -0.25}


def test_models_are_listed_and_found(served):
    models = client(served).models
    assert [one.id for one in models.list()] == [NAMES.policy, NAMES.guard, NAMES.scorer]
    assert models.retrieve(NAMES.guard).owned_by == "srlhfv"
    with pytest.raises(openai.NotFoundError) as error:
        models.retrieve("gpt-5")
    assert error.value.code == "model_not_found"


def test_thirty_two_clients_at_once_each_get_their_own_answer(served):
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="x", max_retries=0) as many:
            calls = [many.chat.completions.create(model=NAMES.policy, messages=ask(f"number {k}")) for k in range(32)]
            return [done.choices[0].message.content for done in await asyncio.gather(*calls)]

    assert asyncio.run(main()) == [f"choice 0: number {k}  done" for k in range(32)]


# errors, as the client raises them


def refused(served: Served, **asked) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        client(served).chat.completions.create(**{"model": NAMES.policy, "messages": ask("hm")} | asked)
    assert set(error.value.body) == {"message", "type", "param", "code"}
    return error.value


def test_a_wrong_model_is_a_404_and_an_empty_question_a_400(served):
    error = refused(served, model="gpt-5")
    assert isinstance(error, openai.NotFoundError) and (error.code, error.param) == ("model_not_found", "model")
    error = refused(served, messages=ask(" "))
    assert isinstance(error, openai.BadRequestError) and (error.code, error.param) == ("empty_content", "messages.0.content")


def test_a_wrong_token_is_a_401_on_every_path():
    with serving(moderate, generate, Access(token="s3-cr"), score=score) as one:
        for call in (
            lambda api: api.chat.completions.create(model=NAMES.policy, messages=ask("hm")),
            lambda api: api.moderations.create(input="hm"),
            lambda api: api.models.list(),
            lambda api: api.models.retrieve(NAMES.guard),
        ):
            with pytest.raises(openai.AuthenticationError) as error:
                call(client(one))
            assert (error.value.code, error.value.type) == ("invalid_api_key", "authentication_error")
            assert call(client(one, api_key="s3-cr"))


def test_what_is_not_there_is_a_404_in_the_apis_form():
    with serving(moderate) as one:
        assert isinstance(refused(one), openai.NotFoundError)
        for path, status in (("/v1/score", 404), ("/v1/embeddings", 404)):
            reply = one.http.post(path, json={})
            assert reply.status_code == status and reply.json()["error"]["type"] == "invalid_request_error"
        assert one.http.get("/v1/moderations").status_code == 405
        assert one.http.get("/v1/moderations").json()["error"]["code"] == "method_not_allowed"
        assert [model.id for model in client(one).models.list()] == [NAMES.guard]


def test_a_large_body_is_a_413_and_a_late_answer_a_504():
    model = Model()
    model.gate.clear()
    with serving(model, model, body_bytes=2000, answer_s=0.2) as one:
        assert (refused(one, messages=ask("a" * 3000)).status_code, refused(one).status_code) == (413, 504)
        assert isinstance(refused(one), openai.InternalServerError)


def test_a_full_queue_is_a_429_with_a_time_to_come_back_and_takes_no_part_of_a_request():
    model = Model()
    model.gate.clear()
    with serving(Model(), model, batch=1, queue=2, answer_s=PATIENCE_S) as one:
        pending = [httpx2.Client(base_url=one.http.base_url) for _ in range(1)]
        error = refused(one, n=4)
        assert isinstance(error, openai.RateLimitError) and error.code == "rate_limit_exceeded"
        assert int(error.response.headers["retry-after"]) >= 1
        until(lambda: one.health()["waiting"]["generate"] == 0)
        for http in pending:
            http.close()


def test_what_the_model_cannot_read_is_a_400_and_what_it_fails_on_a_500():
    def failing(items):
        if items[0].prompt == "fail":
            raise ValueError("broken")
        return [Refused(422, "prompt_too_long: 900 tokens", code="prompt_too_long") for _ in items]

    with serving(Model(), failing) as one:
        error = refused(one)
        assert (error.status_code, error.code) == (400, "prompt_too_long")
        assert isinstance(refused(one, messages=ask("fail")), openai.InternalServerError)
