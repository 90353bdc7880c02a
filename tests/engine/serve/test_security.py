"""Who is let in: keys, hosts, origins, and how much anyone may send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from livereel.engine.serve import protocol
from livereel.engine.serve.security import Guard, is_loopback

from .conftest import MakeLive

ROUTES = [
    ("GET", "/"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/page/app.js"),
    ("GET", "/v1/model"),
    ("POST", "/v1/images"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/video_000000000000000000000000"),
    ("GET", "/v1/videos/video_000000000000000000000000/content"),
    ("DELETE", "/v1/videos/video_000000000000000000000000"),
    ("GET", "/nowhere"),
]


def refused(guard: Guard, **headers: str) -> int | None:
    scope = {
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    refusal = guard.refusal(scope)
    return None if refusal is None else refusal[0]


@pytest.mark.parametrize(
    ("listens", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", None),
        ("127.0.0.1", "localhost:8000", None),
        ("127.0.0.1", "[::1]:8000", None),
        ("127.0.0.1", "LOCALHOST", None),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "192.168.0.7", 403),
        ("127.0.0.1", "", 403),
        ("127.0.0.1", "[::1", 403),
        ("0.0.0.0", "192.168.0.7:8000", None),
        ("0.0.0.0", "evil.example", 403),
        ("0.0.0.0", "known.example", None),
    ],
)
def test_hosts(listens: str, host: str, status: int | None) -> None:
    guard = Guard(host=listens, key=None, hosts=frozenset({"known.example"}))
    assert refused(guard, host=host) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", None),
        ("https://localhost:8000", None),
        ("https://studio.example", None),
        ("http://localhost:9000", 403),
        ("http://evil.example", 403),
        ("http://127.0.0.1:8000", 403),
        ("null", 403),
        ("file://", 403),
        ("http://[::1", 403),
    ],
)
def test_origins(origin: str, status: int | None) -> None:
    guard = Guard(host="127.0.0.1", key=None, origins=frozenset({"https://studio.example"}))
    assert refused(guard, host="localhost:8000", origin=origin) == status


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("authorization", "Bearer sesame", None),
        ("authorization", "bearer sesame", None),
        ("authorization", "Bearer other", 401),
        ("authorization", "Bearer ", 401),
        ("authorization", "Basic sesame", 401),
        ("authorization", "Bearer s\xe9same", 401),
        ("cookie", "livereel_key=c2VzYW1l", None),
        ("cookie", "livereel_key=sesame", 401),
        ("cookie", "livereel_key=!", 401),
        ("cookie", "a\x01=b; livereel_key", 401),
        ("x-key", "sesame", 401),
    ],
)
def test_keys(header: str, value: str, status: int | None) -> None:
    guard = Guard(host="127.0.0.1", key="sesame")
    assert refused(guard, host="localhost", **{header: value}) == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("x", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_route_and_the_socket_want_the_key(make_live: MakeLive) -> None:
    live = make_live(key="sesame")
    for method, path in ROUTES:
        answer = live.http.request(method, path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "unauthorized"
        allowed = live.http.request(method, path, headers={"Authorization": "Bearer sesame"})
        assert allowed.status_code != 401, path

    async def work() -> None:
        url = live.url.replace("http", "ws") + protocol.PATH
        with pytest.raises(InvalidStatus) as failed:
            async with connect(url):
                pass
        assert failed.value.response.status_code == 401
        async with connect(url, additional_headers={"Authorization": "Bearer sesame"}):
            pass

    asyncio.run(work())


def test_people_log_in_and_get_a_cookie(make_live: MakeLive) -> None:
    live = make_live(key="sesame")
    with httpx.Client(base_url=live.url, headers={"Accept": "text/html"}) as person:
        asked = person.get("/", follow_redirects=True)
        assert asked.status_code == 200
        assert "<form" in asked.text
        assert person.post("/login", data={"key": "wrong"}).status_code == 401
        entered = person.post("/login", data={"key": "sesame"})
        assert entered.status_code == 303
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert "SameSite=strict" in entered.headers["set-cookie"]
        assert person.get("/v1/model").status_code == 200


def test_pages_elsewhere_reach_neither_routes_nor_the_socket(make_live: MakeLive) -> None:
    live = make_live()
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        for method, path in ROUTES:
            assert live.http.request(method, path, headers=headers).status_code == 403

    async def work() -> None:
        url = live.url.replace("http", "ws") + protocol.PATH
        with pytest.raises(InvalidStatus) as failed:
            async with connect(url, origin="http://evil.example"):  # type: ignore[arg-type]
                pass
        assert failed.value.response.status_code == 403

    asyncio.run(work())


def test_bodies_are_bounded(make_live: MakeLive) -> None:
    live = make_live()

    def untold_length() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(65_536)

    for path, size in (("/login", 70_000), ("/v1/images", 9 << 20), ("/v1/videos", 9 << 20)):
        told = live.http.post(path, content=bytes(size))
        assert told.status_code == 413, path
        assert told.json()["error"]["code"] == "too_large"
        untold = live.http.post(path, content=untold_length()).status_code
        assert untold in (413, 422), path  # 422 where it was not even read


def test_nothing_outside_the_page_is_served(make_live: MakeLive) -> None:
    live = make_live()
    for path in ("/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/login.html", "/page/"):
        assert live.http.get(path).status_code == 404, path
