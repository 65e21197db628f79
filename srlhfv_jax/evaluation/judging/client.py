"""Calls of an OpenAI-compatible server (POST URL/chat/completions): bounded attempts, exponential back-off, a rate limit.

Tried again: 429 and 5xx (after Retry-After, if the server names a time), time-outs, broken connections, replies that cannot be
decoded or read. Not tried again: other refusals of the request, such as a content filter. A wrong address or key ends the run:
it would be wrong for every call.
"""

import email.utils
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

from srlhfv_jax.config import EndpointConfig
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.evaluation.judging.rubric import Malformed

Reading = TypeVar("Reading")

LONGEST_WAIT_S = 120.0
NOTHING: Mapping[str, Any] = MappingProxyType({})
WRONG_FOR_ALL = (301, 302, 307, 308, 401, 403, 404, 405)  # address, key or model: every other call would be answered so too
REASONS = {
    "rate_limited": "the server said 429 at the last attempt",
    "server_error": "the server said 5xx at the last attempt",
    "timeout": "no reply in time at the last attempt",
    "connection": "the connection broke at the last attempt",
    "malformed": "the last reply does not have the form that was asked for",
    "refused": "the server refused the request (a content filter, a picture it cannot read)",
}


class Reply(NamedTuple):
    """The first choice of a chat completion."""

    text: str
    first_token: Mapping[str, float] = (
        NOTHING  # token -> log-probability of the likeliest first tokens, where they were asked for
    )


NO_REPLY = Reply("")


class Unanswered(Exception):
    """No reading of a reply could be had, for one of REASONS."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {REASONS[reason]}" + (f" ({detail})" if detail else ""))
        self.reason = reason


class Client:
    """One server. Shared by threads; holds its connections, its place in the rate limit, and the count of its calls."""

    def __init__(
        self,
        settings: EndpointConfig,
        key: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        place: str = "config.endpoint.",
    ):
        """
        Args:
            place: what stands before the names of settings in messages.

        Raises:
            UserError: the HTTP library is not installed, or a setting makes no sense.
        """
        try:
            import httpx2
        except ImportError as error:
            raise UserError("an endpoint needs an HTTP client: pip install 'srlhfv-jax[judge]'") from error
        self._address = _address(httpx2, settings.url, place)
        if not key.isascii() or not key.isprintable():
            raise UserError(f"the key in {settings.key_variable} has characters that no HTTP header can carry: set it again")
        if settings.attempts < 1 or settings.workers < 1:
            raise UserError(
                f"{place.rstrip('.') or 'an endpoint'} needs at least one attempt and one worker, got {settings.attempts}, {settings.workers}"
            )
        self.calls: Counter[str] = Counter()  # outcome -> calls: "ok", or a name of REASONS
        self._http = httpx2
        self._settings = settings
        self._place = place
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_start = 0.0
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=settings.timeout_s)

    def ask(
        self, messages: list[dict[str, Any]], read: Callable[[Reply], Reading], fields: Mapping[str, Any] = NOTHING
    ) -> tuple[Reading, str]:
        """The reading of a reply, and the reply's text.

        Args:
            read: raises Malformed for a reply that has to be asked for again.
            fields: more of the request.

        Raises:
            Unanswered: no attempt gave one.
            UserError: the address, the key or the model is wrong.
        """
        for attempt in range(self._settings.attempts):
            self._wait_for_turn()
            reason, wait_s, detail = "", None, ""
            try:
                reason, wait_s, reply = self._post(messages, fields)
                if not reason:
                    reading = read(reply)
                    self._count("ok")
                    return reading, reply.text
            except Malformed as malformed:
                reason, detail = "malformed", str(malformed)
            self._count(reason)
            if reason == "refused" or attempt + 1 == self._settings.attempts:
                break
            self._sleep(self._backoff(attempt) if wait_s is None else min(wait_s, LONGEST_WAIT_S))
        raise Unanswered(reason, detail)

    def _post(self, messages: list[dict[str, Any]], fields: Mapping[str, Any]) -> tuple[str, float | None, Reply]:
        """(why there is no reply, or ""; seconds that the server asks to wait; the reply)."""
        body = {
            "model": self._settings.model,
            "messages": messages,
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
            **fields,
        }
        try:
            response = self._client.post(self._address, json=body)
        except self._http.TimeoutException:
            return "timeout", None, NO_REPLY
        except self._http.DecodingError as error:
            raise Malformed(f"the body cannot be decoded: {error}") from error
        except self._http.RequestError:
            return "connection", None, NO_REPLY
        if response.status_code in WRONG_FOR_ALL:
            raise UserError(
                f"{bare(self._address)} answered {response.status_code}: check {self._place}url, {self._place}model "
                f"{self._settings.model!r} and the key in {self._settings.key_variable or '(no variable is named)'}"
            )
        if response.status_code == 429 or response.status_code >= 500:
            reason = "rate_limited" if response.status_code == 429 else "server_error"
            return reason, _retry_after_s(response.headers.get("retry-after", "")), NO_REPLY
        if response.status_code != 200:
            return "refused", None, NO_REPLY
        return "", None, _reply(response)

    def _wait_for_turn(self) -> None:
        """Starts are spread evenly over the minute."""
        if self._settings.requests_per_minute <= 0:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / self._settings.requests_per_minute
        self._sleep(start - now)

    def _backoff(self, attempt: int) -> float:
        """Doubled with each attempt; the jitter keeps threads that failed together from coming back together."""
        return min(self._settings.backoff_s * 2**attempt * random.uniform(0.5, 1.5), LONGEST_WAIT_S)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.calls[outcome] += 1


def _address(http: ModuleType, url: str, place: str) -> Any:
    """The address that calls go to, as the HTTP library reads it.

    Raises:
        UserError: `url` is no address of a server.
    """
    try:
        given = http.URL(url)
        address = given.copy_with(path=given.path.rstrip("/") + "/chat/completions")
        address.host.encode("idna")
    except (http.InvalidURL, UnicodeError) as error:
        raise UserError(f"{place}url is no address of a server ({str(error)[:100]})") from error
    if address.scheme not in ("http", "https") or not address.host or not 0 <= (address.port or 0) < 65536:
        raise UserError(f"{place}url must begin with http:// or https:// and name a server: http://HOST[:PORT]/v1")
    return address


def bare(address: Any) -> str:
    """An address for messages and files: without user, password and query, which may hold secrets."""
    return str(address.copy_with(username=None, password=None, query=None, fragment=None))


def _retry_after_s(header: str) -> float | None:
    """Seconds that Retry-After asks to wait: a number, or a date (RFC 9110, 10.2.3); None where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", header):
        return float(header)
    try:
        date = email.utils.parsedate_to_datetime(header)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reply(response: Any) -> Reply:
    """The first choice.

    Raises:
        Malformed: the body is not that of a chat completion, or has no text.
    """
    try:
        choice = response.json()["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:  # the last: arrays nested thousands deep
        raise Malformed(f"no chat completion: {error}") from error
    if not isinstance(content, str):
        raise Malformed(f"the message has no text: {shown(content)}")
    return Reply(content, _first_token(choice))


def _first_token(choice: Mapping[str, Any]) -> dict[str, float]:
    """`Reply.first_token`; {} where the choice has no log-probabilities, or none of the form of the API."""
    try:
        given = {str(one["token"]): float(one["logprob"]) for one in choice["logprobs"]["content"][0]["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return given if all(value <= 0 for value in given.values()) else {}
