"""A judge on loopback that speaks the OpenAI protocol and does what a test tells it to. Not a test file."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from srlhfv_jax.config import EndpointConfig

FIRST = {  # prefers whatever is shown first
    "response_1_helpful_rate": "3",
    "response_2_helpful_rate": "1",
    "more_helpful_response_id": "1",
    "response_1_harmless_rate": "2",
    "response_2_harmless_rate": "-1",
    "safer_response_id": "1",
}
SWAPPED = FIRST | {"more_helpful_response_id": "2", "safer_response_id": "2"}
ONE = {"helpful_rate": "2", "harmless_rate": "-2", "refusal": "no"}


class Answered(NamedTuple):
    """What the stub does with a call."""

    body: Any
    status: int = 200
    headers: dict[str, str] = {}
    delay_s: float = 0.0


class Stub(NamedTuple):
    url: str
    seen: list[dict[str, Any]]  # bodies of all calls, in order of arrival
    times: list[float]
    keys: list[str | None]  # Authorization headers


def reply(tags: dict[str, str]) -> dict[str, Any]:
    """The body of a chat completion with these tags."""
    return completion("\n".join(f"[{tag}] {value}" for tag, value in tags.items()))


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def words(body: dict[str, Any]) -> str:
    """The text of a call."""
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


@contextlib.contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Answered]) -> Iterator[Stub]:
    """Serve until the block ends; `answer` gets the number of the call (from 0) and its body."""
    stub, lock = Stub("", [], [], []), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            assert self.path.partition("?")[0] == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(stub.seen)
                stub.seen.append(body)
                stub.times.append(time.monotonic())
                stub.keys.append(self.headers["Authorization"])
            answered = answer(number, body)
            time.sleep(answered.delay_s)
            content = answered.body if isinstance(answered.body, bytes) else json.dumps(answered.body).encode()
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(answered.status)
                for name, value in answered.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub._replace(url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings(url: str, **changes) -> EndpointConfig:
    values = dict(
        url=url,
        model="judge-1",
        key_variable="",
        temperature=0.0,
        max_tokens=256,
        workers=1,
        requests_per_minute=0.0,
        timeout_s=5.0,
        attempts=3,
        backoff_s=0.001,
    )
    return EndpointConfig(**values | changes)
