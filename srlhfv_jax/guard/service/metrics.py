"""Numbers of a server, for /health and for Prometheus (/metrics)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srlhfv_jax.guard.service.batching import Batcher

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # borders of the histogram
UNCOUNTED = ("/", "/health", "/metrics")
OTHER = "other"  # the label of paths that do not exist: clients must not make labels


class Metrics:
    """Counts of one server. Touched by its event loop alone."""

    def __init__(self, batchers: Mapping[str, Batcher], held: Callable[[], int]):
        self.answered: Counter[int] = Counter()  # status -> requests
        self._batchers, self._held = batchers, held
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(self)
        registry = dict(registry=self.registry)
        self._requests = prometheus_client.Counter(
            "srlhfv_requests", "requests by path and status", ("path", "status"), **registry
        )
        self._seconds = prometheus_client.Histogram(
            "srlhfv_request_seconds", "from the head of a request to its response", ("path",), buckets=SECONDS, **registry
        )
        self._tokens = prometheus_client.Counter(
            "srlhfv_tokens", "tokens of prompts, and of answers that are shown", ("kind",), **registry
        )
        self._guard = prometheus_client.Counter("srlhfv_guard", "answers by what the guard did", ("action",), **registry)

    def collect(self) -> Iterator[Metric]:
        """Numbers that are kept elsewhere."""
        waiting = GaugeMetricFamily("srlhfv_waiting", "items in a queue", labels=("queue",))
        batches = CounterMetricFamily("srlhfv_batches", "calls of a model", labels=("queue",))
        for name, batcher in self._batchers.items():
            waiting.add_metric((name,), batcher.waiting)
            batches.add_metric((name,), batcher.batches)
        yield from (waiting, batches, GaugeMetricFamily("srlhfv_held_bytes", "bytes of bodies at hand", value=self._held()))

    def count_answers(self, usage: Mapping[str, int], actions: list[str]) -> None:
        """Count the tokens and the guard's actions of one request that was answered."""
        self._tokens.labels("prompt").inc(usage["prompt_tokens"])
        self._tokens.labels("completion").inc(usage["completion_tokens"])
        for action in actions:
            self._guard.labels(action).inc()

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        return {
            "status": "ok",
            "waiting": {name: batcher.waiting for name, batcher in self._batchers.items()},
            "batches": {name: batcher.batches for name, batcher in self._batchers.items()},
            "held_bytes": self._held(),
            "answered": {str(status): count for status, count in sorted(self.answered.items())},
        }

    def text(self) -> bytes:
        """The body of /metrics."""
        return prometheus_client.generate_latest(self.registry)

    def counted(self, path: str, status: int, seconds: float) -> None:
        self.answered[status] += 1
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)


class Counting:
    """An ASGI application whose responses are counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self._app(scope, receive, send)
            return
        began, path = time.monotonic(), scope["path"] if scope["path"] in self._paths else OTHER

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.counted(path, message["status"], time.monotonic() - began)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:  # the layer around this one answers it
            self._metrics.counted(path, 500, time.monotonic() - began)
            raise
