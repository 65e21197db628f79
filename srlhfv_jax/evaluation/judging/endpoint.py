"""A language model behind an OpenAI-compatible endpoint as a judge."""

import os
import threading
from collections import Counter

from srlhfv_jax.config import EndpointConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging import rubric
from srlhfv_jax.evaluation.judging.client import Client, Unanswered
from srlhfv_jax.evaluation.judging.store import Store
from srlhfv_jax.evaluation.judging.verdict import JudgeRequest, JudgeVerdict, content_key


class EndpointJudge:
    """A `Judge`: what was judged before comes from the store, the rest from the server. Counts what it could not judge."""

    def __init__(self, client: Client, store: Store, model: str):
        self.unjudged: Counter[str] = Counter()  # reason (client.REASONS) -> questions
        self.client = client
        self._store, self._model = store, model
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Lock] = {}

    def __call__(self, request: JudgeRequest) -> JudgeVerdict | None:
        key = content_key(request, self._model, rubric.VERSION)
        with self._lock:
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:  # a second thread with the same question waits, and finds the verdict in the store
            return self._judge(key, request)

    def _judge(self, key: str, request: JudgeRequest) -> JudgeVerdict | None:
        stored = self._store.get(key)
        if stored is not None:
            return stored
        try:
            verdict, reply = self.client.ask(
                rubric.messages(request),
                lambda reply: rubric.read_reply(reply.text, len(request.answers), len(request.classes)),
            )
        except Unanswered as unanswered:
            with self._lock:
                self.unjudged[unanswered.reason] += 1
            return None
        self._store.put(key, request, verdict, reply)
        return verdict


def api_key(settings: EndpointConfig) -> str:
    """The key from the environment variable that the settings name; "" where they name none.

    Raises:
        UserError: the variable is not set.
    """
    if not settings.key_variable:
        return ""
    if not os.environ.get(settings.key_variable):
        raise UserError(
            f"the environment variable {settings.key_variable} is not set: put the server's key there, or set "
            "config.endpoint.key_variable='' for a server that wants none"
        )
    return os.environ[settings.key_variable]
