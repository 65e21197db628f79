"""Limits of the guard's server: bodies, waiting, slow and absent clients, and its end."""

import contextlib
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from tiny_server import PATIENCE_S, Model, Served, at_once, connect, head, reply, serving, until

from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.service import server as servers
from srlhfv_jax.guard.service.batching import Batcher
from srlhfv_jax.guard.service.limits import Limits
from srlhfv_jax.guard.service.requests import Generation, Refused


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
        first = batcher.submit(Generation("0", (), 0))
        until(lambda: len(model.batches) == 1)
        second, third = (batcher.submit(Generation(name, (), 0)) for name in "12")
        with pytest.raises(Refused) as refused:
            batcher.submit(Generation("3", (), 0))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        assert second.cancel()
        fourth = batcher.submit(Generation("4", (), 0))
        model.gate.set()
        assert [future.result()["prompt"] for future in (first, third, fourth)] == ["0", "2", "4"]
    with pytest.raises(Refused, match="shutting down"):
        batcher.submit(Generation("5", (), 0))


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
