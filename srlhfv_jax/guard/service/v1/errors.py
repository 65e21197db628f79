"""A refusal in the form that the API's clients read: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from srlhfv_jax.guard.service.requests import BUSY, Refused

CODES = {  # where a refusal has none of its own
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "request_too_large",
    503: "shutting_down",
    504: "timeout",
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(refused: Refused) -> int:
    """The API has 400 where a field is wrong, and 429 where a client shall come back."""
    if refused.code == BUSY:
        return 429
    return 400 if refused.status == 422 else refused.status


def error_json(status: int, message: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    usual = "server_error" if status >= 500 else "invalid_request_error"
    named = "rate_limit_exceeded" if code == BUSY else code or CODES.get(status)
    return {"error": {"message": message, "type": TYPES.get(status, usual), "param": field, "code": named}}


def refusal_json(refused: Refused) -> dict[str, Any]:
    return error_json(status_of(refused), refused.message, refused.field, refused.code)
