"""Clients that may ask: the name that a client calls the server by, the page that a browser sends it from, and a token.

A web page anywhere can make a browser send requests to a server on its user's machine. Such requests carry the page's Origin, or,
where a domain was pointed at this machine (DNS rebinding), a foreign Host. Programs send no Origin.
"""

import hmac
import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from srlhfv_jax.guard.service.requests import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::")  # every address of a machine, whose names are unknown


class Access(NamedTuple):
    """Facts that requests must show."""

    hosts: tuple[str, ...] = ()  # names without port; (): any
    origins: tuple[str, ...] = ()  # of pages that may ask, such as "https://example.org"; "*": any
    token: str = ""  # of `Authorization: Bearer TOKEN`; "": none is wanted


def names(host: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """`Access.hosts` of a server that listens at `host`, and is also called by the names `more`."""
    if host in ANY:
        return more
    return (host, *(LOOPBACK if host in LOOPBACK else ()), *more)


def check(headers: Mapping[str, str], access: Access) -> None:
    """
    Raises:
        Refused: 401 for a wrong token, 403 for a foreign name of the server or a foreign page.
    """
    host = _name(f"//{headers.get('host', '')}")
    if access.hosts and host not in access.hosts:
        raise Refused(403, f"this server is not called {host!r}: start it with --hosts to allow that")
    origin = headers.get("origin")
    foreign = origin is not None and not _own_page(origin, headers.get("host", ""), access)
    if foreign and origin not in access.origins and "*" not in access.origins:
        raise Refused(403, f"pages of {origin[:100]!r} may not ask this server: start it with --origins to allow that")
    given = headers.get("authorization", "").encode()
    if access.token and not hmac.compare_digest(given, f"Bearer {access.token}".encode()):
        raise Refused(401, "the header Authorization: Bearer TOKEN is missing or has another token")


def _own_page(origin: str, host: str, access: Access) -> bool:
    """Whether the page is this server's own: the same name and port, and a name that no other domain can be pointed from."""
    if origin.partition("://")[2].lower() != host.lower():
        return False
    return bool(access.hosts) or _is_address(_name(f"//{host}"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets that do not close
        return ""
