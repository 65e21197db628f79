"""The guard's HTTP service under good, bad and slow clients: a real server on loopback around models that do as they are told."""

import asyncio
import base64
import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx2
import pytest
from PIL import Image

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.service import app as application, models, server as servers
from srlhfv_jax.guard.service.access import Access, names
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Generation, Moderation, Refused
from srlhfv_jax.guard.verdict import GuardVerdict

PATIENCE_S = 20.0  # of a test, for something that must happen


class Served(NamedTuple):
    port: int
    http: httpx2.Client
    stop: Callable[[], None]  # what SIGTERM does; does not wait

    def moderate(self, **fields: Any) -> httpx2.Response:
        return self.http.post("/moderate", json=fields)

    def health(self) -> dict[str, Any]:
        return self.http.get("/health").json()


class Model:
    """A batched model that remembers its batches and, once `shut`, works only when it is `open` again."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        self.batches.append(list(items))
        assert self.gate.wait(PATIENCE_S)
        return [{"prompt": item.prompt, "severity": len(item.prompt) / 7} for item in items]

    @property
    def seen(self) -> list[Any]:
        return [item for batch in self.batches for item in batch]


@contextlib.contextmanager
def serving(
    moderate: application.Moderate, generate: application.Generate | None = None, access: Access = Access(), **limits: Any
) -> Iterator[Served]:
    bounds = Limits(**{"wait_s": 0.0} | limits)
    listening = servers.listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = servers.make_server(application.make_app(moderate, generate, bounds, access), bounds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True

    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
            until(lambda: server.started)
            yield Served(port, http, stop)
    finally:
        if isinstance(moderate, Model):
            moderate.gate.set()
        stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Return once it is true."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def at_once(served: Served, bodies: Sequence[dict[str, Any]], path: str = "/moderate") -> "list[httpx2.Response]":
    """All of them, each on a connection of its own, at the same time."""

    async def main() -> list[httpx2.Response]:
        many = httpx2.Limits(max_connections=len(bodies))
        async with httpx2.AsyncClient(base_url=str(served.http.base_url), timeout=PATIENCE_S, limits=many) as http:
            return await asyncio.gather(*(http.post(path, json=body) for body in bodies))

    return asyncio.run(main())


def head(length: int | None, path: str = "/moderate") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()


def reply(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of one response."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, json.loads(file.read(int(headers["content-length"])))


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S)


def picture(width: int = 5, height: int = 3, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


def base64_of(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


# answers


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
    assert judged.seen == [Moderation("Wie groß?", "1,5 m", encoded), Moderation("Why?", None, None)]
    assert drawn.seen == [Generation("How?", encoded, 2), Generation("Where?", None, 5)]


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
        Moderation("bad one", None, None),
        Moderation("a", "b", b"png"),
        Moderation("a", "bcd", None),
        Moderation("fine", None, None),
    ]
    bad, unreadable, answer, fine = moderate(asked)
    assert bad == {"safe": False, "severity": "severe", "categories": ["drugs"], "scores": {"unsafe": 0.875}}
    assert (unreadable.status, unreadable.message) == (422, "no_vision: a picture")
    assert answer == {"safe": True, "severity": "safe", "categories": [], "scores": {"unsafe": 0.25}}
    assert fine["scores"] == {"unsafe": 0.5}


def test_a_guard_of_one_part_refuses_the_other():
    def check_input(images, questions):
        return [verdict(0.25)] * len(questions)

    judged, refused = models.moderate_with(check_input, None, readable)([Moderation("a", None, None), Moderation("a", "b", None)])
    assert judged["safe"] and "judges questions only" in refused.message
    (refused,) = models.moderate_with(None, check_input, readable)([Moderation("a", None, None)])
    assert "judges answers only" in refused.message


def test_each_request_gets_the_rounds_it_asked_for_and_every_batch_draws_anew():
    drawn = []

    def generate(prompts, number):
        drawn.append(number)
        return [f"{prompt.question}{'!' * (number % models.DRAWS)}" for prompt in prompts]

    def check(images, questions, answers):
        return [verdict(1 / (1 + answer.count("!"))) for answer in answers]

    with serving(Model(), models.generate_with(generate, None, check, readable, policy="regenerate"), rounds=5) as served:
        replies = [served.http.post("/generate", json={"prompt": "Hm", "rounds": rounds}).json() for rounds in (0, 3)]
        refused = served.http.post("/generate", json={"prompt": "a", "image": base64_of(picture())})
    assert [(reply["answer"], reply["blocked"], reply["verdict"]["scores"]["unsafe"]) for reply in replies] == [
        ("Hm", False, 1.0),
        ("Hm!", False, 0.5),
    ]
    assert [one["number"] for one in replies[1]["rounds"]] == [0, 1]
    assert (refused.status_code, refused.json()) == (422, {"error": "no_vision: a picture"})
    assert drawn == [0, models.DRAWS, models.DRAWS + 1]


# bad requests


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b'{"prompt": "a"', 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8"),
        (b'["prompt"]', 422, "must be a JSON object with a prompt, got an array"),
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


def test_a_body_that_declares_too_much_is_refused_before_it_is_sent():
    with serving(Model(), body_bytes=1000) as served, connect(served) as connection:
        connection.sendall(head(10**15))
        status, _, body = reply(connection)
        assert (status, body) == (413, {"error": "the body is larger than 1000 bytes"})


def test_a_body_that_never_ends_is_refused_at_its_limit_and_what_was_read_is_let_go():
    with serving(Model(), body_bytes=100_000) as served, connect(served) as connection:
        connection.sendall(head(None))
        for _ in range(11):
            connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert reply(connection)[0] == 413
        assert served.health()["held_bytes"] == 0


def test_all_bodies_together_stay_under_their_bound():
    body = json.dumps({"prompt": "a" * 600}).encode()
    with serving(Model(), held_bytes=1000) as served:
        with connect(served) as first:
            first.sendall(head(len(body)) + body[:600])
            until(lambda: served.health()["held_bytes"] == 600)
            refused = served.http.post("/moderate", content=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            first.sendall(body[600:])
            assert reply(first)[0] == 200
        assert served.http.post("/moderate", content=body).status_code == 200
        assert served.health()["held_bytes"] == 0


# time


def test_a_body_that_comes_too_slowly_is_given_up():
    with serving(Model(), body_s=0.2) as served, connect(served) as connection:
        connection.sendall(head(50) + b'{"pro')
        status, headers, body = reply(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert "did not come in time (0.2 s)" in body["error"]
        assert connection.recv(1) == b""
        assert served.health()["held_bytes"] == 0


def test_a_request_line_that_never_ends_is_hung_up_on():
    with serving(Model(), head_s=0.2) as served, connect(served) as silent, connect(served) as slow, connect(served) as second:
        slow.sendall(b"POST /moder")
        body = b'{"prompt": "a"}'
        second.sendall(head(len(body)) + body)
        assert reply(second)[0] == 200
        second.sendall(b"POST /moder")
        assert [connection.recv(1) for connection in (silent, slow, second)] == [b"", b"", b""]
        assert served.moderate(prompt="a").status_code == 200


def test_slow_clients_do_not_keep_others_from_their_answers():
    with serving(Model()) as served, contextlib.ExitStack() as open_ones:
        for _ in range(60):
            open_ones.enter_context(connect(served)).sendall(head(100) + b"{")
        assert [response.status_code for response in at_once(served, [{"prompt": "a"}] * 20)] == [200] * 20


def test_an_answer_that_comes_too_late_is_a_504_and_leaves_the_queue():
    model = Model()
    model.gate.clear()
    with serving(model, batch=1, answer_s=0.2) as served:
        responses = at_once(served, [{"prompt": "a"}] * 3)
        assert [response.status_code for response in responses] == [504] * 3
        until(lambda: served.health()["waiting"] == {"moderate": 0})
        model.gate.set()
        assert served.moderate(prompt="b").status_code == 200
    assert [item.prompt for item in model.seen] == ["a", "b"]


def test_a_client_that_hangs_up_gives_its_place_away():
    model = Model()
    model.gate.clear()
    body = b'{"prompt": "gone"}'
    with serving(model, batch=1, queue=1) as served, ThreadPoolExecutor(1) as clients:
        first = clients.submit(served.moderate, prompt="first")
        until(lambda: len(model.batches) == 1)
        with connect(served) as connection:
            connection.sendall(head(len(body)) + body)
            until(lambda: served.health()["waiting"] == {"moderate": 1})
        until(lambda: served.health()["waiting"] == {"moderate": 0})
        model.gate.set()
        assert first.result().status_code == 200
    assert [item.prompt for item in model.seen] == ["first"]


# queue


def test_a_full_queue_refuses_with_a_time_to_come_back_and_answers_all_it_took():
    model = Model()
    model.gate.clear()
    with serving(model, batch=4, queue=10) as served, ThreadPoolExecutor(1) as clients:
        first = clients.submit(served.moderate, prompt="first")
        until(lambda: len(model.batches) == 1)
        many = ThreadPoolExecutor(1).submit(at_once, served, [{"prompt": f"{number}"} for number in range(200)])
        until(lambda: served.health()["answered"].get("503") == 190)
        assert served.health()["waiting"] == {"moderate": 10}
        model.gate.set()
        responses = many.result()
        assert first.result().status_code == 200
    refused = [response for response in responses if response.status_code == 503]
    assert len(refused) == 190
    assert sum(response.status_code == 200 for response in responses) == 10
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert len(model.seen) == 11


def test_a_cancelled_item_makes_room_in_the_queue():
    model = Model()
    model.gate.clear()
    with Batcher(model, size=1, wait_s=0.0, room=2) as batcher:
        first = batcher.submit(Generation("0", None, 0))
        until(lambda: len(model.batches) == 1)
        second, third = (batcher.submit(Generation(name, None, 0)) for name in "12")
        with pytest.raises(Refused) as refused:
            batcher.submit(Generation("3", None, 0))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        assert second.cancel()
        fourth = batcher.submit(Generation("4", None, 0))
        model.gate.set()
        assert [future.result()["prompt"] for future in (first, third, fourth)] == ["0", "2", "4"]
    with pytest.raises(Refused, match="shutting down"):
        batcher.submit(Generation("5", None, 0))


# the end


def test_a_server_that_stops_answers_what_it_took_and_takes_nothing_more():
    model = Model()
    model.gate.clear()
    with serving(model, batch=1) as served, ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(served.moderate, prompt=f"{number}") for number in range(3)]
        until(lambda: model.batches and served.health()["waiting"] == {"moderate": 2})
        served.stop()
        until(lambda: not accepts(served))
        model.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3


def accepts(served: Served) -> bool:
    try:
        connect(served).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sigterm_ends_the_process_after_its_last_answer():
    code = """
import sys, time
from srlhfv_jax.guard.service import app, server
from srlhfv_jax.guard.service.limits import Limits

def moderate(items):
    print("called", flush=True)
    time.sleep(0.5)
    return [{"safe": True} for _ in items]

listening = server.listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
server.make_server(app.make_app(moderate, None, Limits()), Limits()).run(sockets=[listening])
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(httpx2.post, f"http://127.0.0.1:{port}/moderate", json={"prompt": "a"}, timeout=PATIENCE_S)
            assert process.stdout.readline() == "called\n"
            process.send_signal(signal.SIGTERM)
            assert answer.result().json() == {"safe": True}
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_taken_port_and_a_senseless_limit_are_the_users_mistakes():
    with servers.listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen at 127.0.0.1"):
        servers.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="the limit batch must be at least 1, got 0"):
        Limits(batch=0)
