"""The guard's HTTP service under good, bad and slow clients: a real server on loopback around models that do as they are told."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_server import Model, at_once, base64_of, bomb, picture, serving, until

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.evaluation.by_row import Draw, Drawn
from srlhfv_jax.guard.service import models
from srlhfv_jax.guard.service.access import Access, names
from srlhfv_jax.guard.service.requests import Generation, Moderation, Options, Refused
from srlhfv_jax.guard.verdict import GuardVerdict


def test_two_hundred_clients_at_once_each_get_their_own_answer_from_few_batches():
    model = Model()
    model.gate.clear()
    prompts = ["?" * (1 + number % 13) + str(number) for number in range(200)]
    with serving(model, batch=8, queue=256) as served, ThreadPoolExecutor(1) as clients:
        answered = clients.submit(at_once, served, [{"prompt": prompt} for prompt in prompts])
        until(lambda: model.batches and served.health()["waiting"]["moderate"] + len(model.batches[0]) == 200)
        model.gate.set()
        responses = answered.result()
        health = served.health()
    assert [response.status_code for response in responses] == [200] * 200
    assert [response.json() for response in responses] == [{"prompt": prompt, "severity": len(prompt) / 7} for prompt in prompts]
    assert sorted(item.prompt for item in model.seen) == sorted(prompts)
    assert max(map(len, model.batches)) == 8
    assert len(model.batches) <= 1 + 25  # the first may be a batch of one, all others are full but one
    assert health.pop("batches") == {"moderate": len(model.batches)}
    assert health == {"status": "ok", "waiting": {"moderate": 0}, "held_bytes": 0, "answered": {"200": 200}}


def test_the_model_is_asked_what_the_client_sent():
    judged, drawn = Model(), Model()
    encoded = picture()
    with serving(judged, drawn, rounds=5) as served:
        assert served.moderate(prompt="Wie groß?", response="1,5 m", image=base64_of(encoded)).status_code == 200
        assert served.moderate(prompt="Why?", response=None).status_code == 200
        for body in ({"prompt": "How?", "image": base64_of(encoded), "rounds": 2}, {"prompt": "Where?"}):
            assert served.http.post("/generate", json=body).status_code == 200
    assert judged.seen == [Moderation("Wie groß?", "1,5 m", (encoded,)), Moderation("Why?", None)]
    assert drawn.seen == [Generation("How?", (encoded,), 2), Generation("Where?", (), 5)]


def test_what_the_model_cannot_read_is_refused_by_name_and_spares_the_rest_of_its_batch():
    def moderate(items):
        return [Refused(422, "prompt_too_long: 900 tokens") if item.prompt == "long" else {"safe": True} for item in items]

    with serving(moderate, batch=4, wait_s=0.2) as served:
        responses = at_once(served, [{"prompt": "short"}, {"prompt": "long"}, {"prompt": "brief"}])
    assert [response.status_code for response in responses] == [200, 422, 200]
    assert responses[1].json() == {"error": "prompt_too_long: 900 tokens"}


def test_a_request_that_the_model_fails_on_costs_its_neighbours_nothing():
    calls = []

    def moderate(items):
        calls.append([item.prompt for item in items])
        if "short" in calls[-1]:
            return []
        return [{"prompt": item.prompt, "safe": 1 / len(item.response or "")} for item in items]

    with serving(moderate, batch=4, wait_s=0.5) as served:
        asked = [{"prompt": "a", "response": "four"}, {"prompt": "none"}, {"prompt": "b", "response": "ab"}, {"prompt": "short"}]
        responses = at_once(served, asked)
        assert served.moderate(prompt="later", response="four").json() == {"prompt": "later", "safe": 0.25}
    assert [response.status_code for response in responses] == [200, 500, 200, 500]
    assert [responses[row].json() for row in (0, 2)] == [{"prompt": "a", "safe": 0.25}, {"prompt": "b", "safe": 0.5}]
    assert "failed on this request" in responses[1].json()["error"]
    assert sorted(map(len, calls)) == [1] * 5 + [4]


def verdict(unsafe: float) -> GuardVerdict:
    return GuardVerdict(
        unsafe <= 0.5, "safe" if unsafe <= 0.5 else "severe", ("drugs",) if unsafe > 0.5 else (), {"unsafe": unsafe}
    )


def readable(asked: Sequence[tuple[Prompt, str | None]]) -> list[Unusable | None]:
    return [Unusable("no_vision", "a picture") if prompt.images else None for prompt, _ in asked]


def test_questions_and_answers_of_one_batch_are_each_judged_by_their_own_check():
    def check_input(images, questions):
        return [verdict(len(question) / 8) for question in questions]

    def check_output(images, questions, answers):
        return [verdict(1 / len(question + answer)) for question, answer in zip(questions, answers, strict=True)]

    moderate = models.moderate_with(check_input, check_output, readable)
    asked = [
        Moderation("bad one", None),
        Moderation("a", "b", (b"png",)),
        Moderation("a", "bcd"),
        Moderation("fine", None),
    ]
    bad, unreadable, answer, fine = moderate(asked)
    assert bad == {"safe": False, "severity": "severe", "categories": ["drugs"], "scores": {"unsafe": 0.875}}
    assert (unreadable.status, unreadable.message) == (422, "no_vision: a picture")
    assert answer == {"safe": True, "severity": "safe", "categories": [], "scores": {"unsafe": 0.25}}
    assert fine["scores"] == {"unsafe": 0.5}


def test_a_guard_of_one_part_refuses_the_other():
    def check_input(images, questions):
        return [verdict(0.25)] * len(questions)

    judged, refused = models.moderate_with(check_input, None, readable)([Moderation("a", None), Moderation("a", "b")])
    assert judged["safe"] and "judges questions only" in refused.message
    (refused,) = models.moderate_with(None, check_input, readable)([Moderation("a", None)])
    assert "judges answers only" in refused.message


def drawn_texts(drawn: list):
    """A policy that says the question with an exclamation mark for each round; the draws that it was asked for go to `drawn`."""

    def draw(prompts, draws):
        drawn.extend(draws)
        return [
            Drawn(f"{prompt.question}{'!' * one.seed[-1]}", 3, one.length is None)
            for prompt, one in zip(prompts, draws, strict=True)
        ]

    return draw


def sizes(prompts):
    return [Unusable("no_vision", "a picture") if prompt.images else 7 for prompt in prompts]


def check_marks(images, questions, answers):
    return [verdict(1 / (1 + answer.count("!"))) for answer in answers]


def test_each_request_gets_the_rounds_it_asked_for_and_draws_numbers_of_its_own():
    drawn = []
    how = dict(policy="regenerate", temperature=0.75, seed=4)
    with serving(Model(), models.generate_with(drawn_texts(drawn), None, check_marks, sizes, **how), rounds=5) as served:
        replies = [served.http.post("/generate", json={"prompt": "Hm", "rounds": rounds}).json() for rounds in (0, 3)]
        refused = served.http.post("/generate", json={"prompt": "a", "image": base64_of(picture())})
    assert [(reply["answer"], reply["blocked"], reply["verdict"]["scores"]["unsafe"]) for reply in replies] == [
        ("Hm", False, 1.0),
        ("Hm!", False, 0.5),
    ]
    assert [one["number"] for one in replies[1]["rounds"]] == [0, 1]
    assert (refused.status_code, refused.json()) == (422, {"error": "no_vision: a picture"})
    assert [one.seed for one in drawn] == [(4, 0, 0, 0), (4, 1, 0, 0), (4, 1, 0, 1)]
    assert {one.temperature for one in drawn} == {0.75}


def test_rows_of_one_batch_are_drawn_as_each_says_and_a_clients_seed_alone_decides():
    drawn = []
    generate = models.generate_with(drawn_texts(drawn), None, check_marks, sizes, policy="regenerate", temperature=0.75, seed=4)
    asked = [
        Generation("a", (), 0, Options(temperature=0.0, length=9, choice=1)),
        Generation("b", (b"png",), 0),
        Generation("c", (), 2, Options(top_p=0.25, stop=("x",), seed=-1, choice=3)),
    ]
    first, refused, last = generate(asked)
    assert drawn == [
        Draw((4, 0, 1, 0), 0.0, 1.0, 9),
        Draw((2**64 - 1, 3, 0), 0.75, 0.25, None, ("x",)),
        Draw((2**64 - 1, 3, 1), 0.75, 0.25, None, ("x",)),
    ]
    assert (first["finish_reason"], first["usage"]) == ("length", {"prompt_tokens": 7, "completion_tokens": 3})
    assert refused.message == "no_vision: a picture"
    assert (last["answer"], last["shown"], last["finish_reason"]) == ("c!", 1, "stop")


def test_what_is_blocked_says_so_and_counts_the_tokens_that_were_drawn():
    def check_input(images, questions):
        return [verdict(0.75 if question == "bad" else 0.25) for question in questions]

    how = dict(policy="block", temperature=1.0, seed=0)
    generate = models.generate_with(drawn_texts([]), check_input, check_marks, sizes, **how)
    question, answer = generate([Generation("bad", (), 3), Generation("good", (), 3)])
    for reply, tokens, rounds in ((question, 0, 0), (answer, 3, 1)):
        assert (reply["blocked"], reply["shown"], reply["finish_reason"]) == (True, None, "content_filter")
        assert (reply["usage"]["completion_tokens"], len(reply["rounds"])) == (tokens, rounds)


# bad requests


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b'{"prompt": "a"', 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8"),
        (b'["prompt"]', 422, "must be a JSON object, got an array"),
        (b"null", 422, "got null"),
        (b"{}", 422, "the field prompt is missing"),
        (b'{"prompt": null}', 422, "the field prompt is missing"),
        (b'{"prompt": 1.5}', 422, "prompt must be a string, got 1.5"),
        (b'{"prompt": " "}', 422, "prompt has no text"),
        (b'{"prompt": "\\ud800"}', 422, "prompt is not Unicode text"),
        (b'{"prompt": "a", "response": true}', 422, "response must be a string, got true or false"),
        (b'{"prompt": "a", "respnose": "b"}', 422, "unknown field 'respnose': expected prompt, response, image"),
        (b'{"prompt": "a", "image": {}}', 422, "image must be base64 in a string, got an object"),
        (b'{"prompt": "a", "image": "not base64!"}', 400, "the image is not base64"),
        (b'{"prompt": "a", "image": "\\u00e9"}', 400, "the image is not base64"),
        (b'{"prompt": "a", "image": "YWJj"}', 400, "not_an_image"),
        (b'{"prompt": "a", "image": ""}', 400, "not_an_image"),
        (b'{"prompt": "' + b"a" * 101 + b'"}', 413, "prompt has 101 characters, at most 100 are read"),
    ],
)
def test_a_malformed_request_gets_one_line_that_says_what_is_wrong(body, status, message):
    model = Model()
    with serving(model, text_chars=100) as served:
        response = served.http.post("/moderate", content=body)
        assert served.moderate(prompt="still there").status_code == 200
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert [item.prompt for item in model.seen] == ["still there"]


@pytest.mark.parametrize(
    ("encoded", "status", "reason"),
    [
        (picture()[:50], 400, "truncated_image"),
        (picture(40, 30, "JPEG")[:200], 400, "truncated_image"),
        (b"<svg/>", 400, "not_an_image"),
        (picture(40, 30), 413, "image_too_large: 40 x 30 pixels, at most 1000"),
        (bomb(60_000, 60_000), 413, "image_too_large"),
        (bomb(9_000, 9_000), 413, "image_too_large"),
        (b"\0" * 2001, 413, "the image has 2001 bytes, at most 2000"),
        (b"\0" * 9000, 413, "the image has about 9000 bytes, at most 2000"),
    ],
    ids=["cut png", "cut jpeg", "svg", "many pixels", "bomb", "smaller bomb", "many bytes", "far too many bytes"],
)
def test_a_bad_picture_never_reaches_the_model(encoded, status, reason):
    model = Model()
    with serving(model, image_pixels=1000, image_bytes=2000) as served:
        response = served.moderate(prompt="a", image=base64_of(encoded))
        assert served.moderate(prompt="b", image=base64_of(picture(40, 25))).status_code == 200
    assert (response.status_code, reason in response.json()["error"]) == (status, True)
    assert [item.prompt for item in model.seen] == ["b"]


@pytest.mark.parametrize("rounds", [-1, 6, 2.5, True, "5"])
def test_rounds_are_a_whole_number_within_the_limit(rounds):
    with serving(Model(), Model(), rounds=5) as served:
        response = served.http.post("/generate", json={"prompt": "a", "rounds": rounds})
    assert (response.status_code, "rounds must be an integer from 0 to 5" in response.json()["error"]) == (422, True)


def test_other_paths_and_methods_are_refused_in_json():
    with serving(Model()) as served:
        assert served.http.get("/moderate").status_code == 405
        assert served.http.post("/judge", json={}).json() == {"error": "Not Found"}
        response = served.http.post("/generate", json={"prompt": "a"})
        assert (response.status_code, "--policy" in response.json()["error"]) == (404, True)
        assert served.health()["answered"] == {"404": 2, "405": 1}


# access


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:80"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "guard.example:443"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 403),  # another port, another program
        ({"Origin": "https://page.example"}, 200),
    ],
)
def test_foreign_names_and_foreign_pages_are_refused(headers, status):
    access = Access(names("127.0.0.1", ("guard.example",)), ("https://page.example",))
    with serving(Model(), access=access) as served:
        response = served.http.post("/moderate", json={"prompt": "a"}, headers=headers)
        assert served.moderate(prompt="b").status_code == 200
    assert response.status_code == status
    assert status == 200 or "\n" not in response.json()["error"]


def test_a_token_is_wanted_where_one_is_set_but_for_health():
    with serving(Model(), access=Access(token="s3-cr")) as served:
        sent = [{}, {"Authorization": "s3-cr"}, {"Authorization": "Bearer s3-c"}, {"Authorization": "Bearer s3-cr"}]
        statuses = [served.http.post("/moderate", json={"prompt": "a"}, headers=one).status_code for one in sent]
        assert statuses == [401, 401, 401, 200] and served.health()["answered"] == {"200": 1, "401": 3}


def test_a_server_at_every_address_knows_no_names_of_its_own():
    assert names("0.0.0.0", ()) == () and names("0.0.0.0", ("guard.example",)) == ("guard.example",)
    assert names("10.1.2.3", ()) == ("10.1.2.3",)


# size
