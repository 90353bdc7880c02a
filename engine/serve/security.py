"""Who may ask for anything at all: hosts, origins, the key.

A page elsewhere can make a browser call a server on localhost, and a name can be made to point
there (DNS rebinding); so Host and Origin are checked even on loopback. Addresses cannot be rebound.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

COOKIE = "livereel_key"
_FREE = ("/login",)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The server's rules. `host` is what it listens on, `hosts` other names it may be called by,
    `origins` pages elsewhere that may use it, such as "https://example.org"."""

    host: str
    key: str | None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    _own: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        own = {"localhost"} if is_loopback(self.host) else {socket.gethostname(), self.host}
        object.__setattr__(self, "_own", frozenset(name.lower() for name in own | self.hosts))

    def refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        """The status and the reason to refuse an ASGI request with; None to let it pass."""
        headers = _headers(scope)
        host = headers.get("host", "")
        if not self._knows(host):
            return 403, "this server is not known by that Host; see --allow-host"
        origin = headers.get("origin")
        if origin is not None and not self._trusts(origin, host):
            return 403, "pages of that Origin may not use this server; see --allow-origin"
        if self.key is None or scope["path"] in _FREE:
            return None
        if any(self.opens(key) for key in _keys(headers)):
            return None
        return 401, "the API key is missing or wrong"

    def opens(self, key: str) -> bool:
        """Whether `key` is the key, in time that tells nothing about it."""
        return self.key is not None and hmac.compare_digest(key.encode(), self.key.encode())

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._own:
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or not is_loopback(self.host))

    def _trusts(self, origin: str, host: str) -> bool:
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _keys(headers: dict[str, str]) -> Iterable[str]:
    """What a request offers as a key: a bearer token, or the page's cookie."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield value.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return
    if cookie is not None:
        try:
            yield base64.urlsafe_b64decode(cookie.value.encode()).decode()
        except (binascii.Error, UnicodeError, ValueError):
            return


def cookie_of(key: str) -> str:
    """A key as a cookie's value."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def _headers(scope: dict[str, Any]) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
