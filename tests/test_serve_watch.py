"""What stands beside the endpoints: the page at /, numbers for Prometheus, and who may ask from a browser."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_serve_openai import ask, generate, moderate
from tiny_server import NAMES, serving

from srlhfv_jax.guard.service.access import Access, names


def numbers(text: str) -> dict[tuple[str, ...], float]:
    """Name and labels of every sample -> its value."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_metrics_count_requests_tokens_and_what_the_guard_did():
    with serving(moderate, generate) as one:
        for text in ("hm", "once again", "a gun"):
            assert one.http.post("/v1/chat/completions", json={"model": NAMES.policy, "messages": ask(text)}).status_code == 200
        one.http.post("/v1/chat/completions", json={})
        one.http.post("/v1/no/such/path", json={})
        one.moderate(prompt="hm")
        response = one.http.get("/metrics")
    found = numbers(response.text)
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert found["srlhfv_requests_total", "/v1/chat/completions", "200"] == 3
    assert found["srlhfv_requests_total", "/v1/chat/completions", "400"] == 1
    assert found["srlhfv_requests_total", "other", "404"] == 1 and found["srlhfv_requests_total", "/moderate", "200"] == 1
    assert found["srlhfv_request_seconds_count", "/v1/chat/completions"] == 4
    assert (found["srlhfv_tokens_total", "prompt"], found["srlhfv_tokens_total", "completion"]) == (33, 15)
    assert [found["srlhfv_guard_total", action] for action in ("passed", "regenerated", "blocked")] == [1, 1, 1]
    assert (found["srlhfv_batches_total", "generate"], found["srlhfv_batches_total", "moderate"]) == (3, 1)
    assert found["srlhfv_waiting", "generate"] == found["srlhfv_held_bytes",] == 0


def test_a_fault_of_the_server_is_counted_and_told_in_json():
    with serving(moderate, lambda items: [{} for _ in items]) as one:
        response = one.http.post("/v1/chat/completions", json={"model": NAMES.policy, "messages": ask("hm")})
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
        assert one.health()["answered"] == {"500": 1}


def test_the_page_loads_nothing_from_elsewhere():
    with serving(moderate) as one:
        response = one.http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"(src|href)=|https?://|@import|url\(|innerHTML", response.text)


@pytest.mark.parametrize(
    ("access", "host", "origin", "status"),
    [
        (Access(names("127.0.0.1", ())), "127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        (Access(names("127.0.0.1", ())), "localhost:8000", "http://localhost:8000", 200),
        (Access(names("127.0.0.1", ())), "localhost:8000", "http://localhost:8001", 403),
        (Access(names("127.0.0.1", ())), "evil.example", "http://evil.example", 403),
        (Access(names("0.0.0.0", ())), "evil.example", "http://evil.example", 403),  # a domain pointed at this machine
        (Access(names("0.0.0.0", ())), "10.1.2.3:8000", "http://10.1.2.3:8000", 200),
        (Access(names("0.0.0.0", ("guard.example",))), "guard.example", "https://guard.example", 200),
    ],
)
def test_the_servers_own_page_may_ask_and_no_other(access, host, origin, status):
    with serving(moderate, access=access) as one:
        response = one.http.post("/v1/moderations", json={"input": "hm"}, headers={"Host": host, "Origin": origin})
    assert response.status_code == status


def test_pages_that_are_allowed_can_read_the_answer():
    with serving(moderate, access=Access(origins=("https://page.example",))) as one:
        headers = {"Origin": "https://page.example"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
        allowed = one.http.options("/v1/moderations", headers=headers | asked)
        answered = one.http.post("/v1/moderations", json={"input": "hm"}, headers=headers)
    assert (allowed.status_code, answered.status_code) == (200, 200)
    assert answered.headers["access-control-allow-origin"] == "https://page.example"
