"""What may not come in is refused in one line, and nothing of this machine is told."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.websockets import WebSocketDisconnect
from websockets.sync.client import connect as websocket

from reverie.server import app, guard
from reverie.server.guard import Guard
from reverie.server.metrics import Metrics
from reverie.server.settings import Settings

BEAR = {"prompt": "a bear", "seed": 7, "steps": 2}


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.state.client}: {len(await request.body())}")


@pytest.fixture
def keyed(settings: Settings) -> TestClient:
    """Give a client of an application behind a guard that wants a key and lets one other site ask."""
    guarded = replace(settings, tokens=("secret", "other"), origins=("https://friend.example",))
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/x", "/healthz")]
    return TestClient(Guard(Starlette(routes=routes), guarded, Metrics()), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer other"}, 200),
        ({"authorization": "Basic " + base64.b64encode(b"me:secret").decode()}, 200),
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer secre"}, 401),
        ({"authorization": "Bearer sécret".encode("latin-1")}, 401),
        ({"authorization": "Basic ???"}, 401),
        ({"cookie": "reverie=secret"}, 401),
        ({"cookie": 'reverie="; secret'}, 401),
    ],
)
def test_a_key_is_needed(keyed: TestClient, headers: dict[str, Any], status: int) -> None:
    answer = keyed.get("/x", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert keyed.get("/healthz").status_code == 200


def test_nobody_gets_the_cookie_without_the_key(keyed: TestClient) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        answer = keyed.request(method, "/")
        assert "set-cookie" not in answer.headers, method
    assert keyed.get("/").status_code == 401


def test_the_page_gets_a_cookie_that_stands_for_the_key(keyed: TestClient) -> None:
    first = keyed.get("/", auth=("me", "secret"))
    assert "secret" not in first.headers["set-cookie"]
    assert keyed.get("/x").status_code == 200  # by the cookie
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in first.headers["set-cookie"].split(";")}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("[::1]:7860", 200),
        ("192.168.1.9:80", 200),
        (socket.gethostname(), 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(keyed: TestClient, host: str, status: int) -> None:
    assert keyed.get("/x", headers={"host": host}, auth=("", "secret")).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://testserver", 200),
        ("https://friend.example", 200),
        ("https://evil.example", 403),
        ("http://testserver.evil.example", 403),
        ("null", 403),
        ("http://testserver:81", 403),
    ],
)
def test_only_pages_of_this_server_may_ask(keyed: TestClient, origin: str, status: int) -> None:
    assert keyed.post("/x", headers={"origin": origin}, auth=("", "secret")).status_code == status


def test_bodies_and_headers_are_bounded(keyed: TestClient, settings: Settings) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(settings.limits.body // 65536 + 1):
            yield bytes(65536)

    assert keyed.post("/x", content=bytes(settings.limits.body + 1), auth=("", "secret")).status_code == 413
    assert keyed.post("/x", content=chunks(), auth=("", "secret")).status_code == 413
    assert keyed.get("/x", headers={"x": "y" * 40_000}, auth=("", "secret")).status_code == 431


def test_clients_are_told_apart_by_address_and_name(keyed: TestClient) -> None:
    told = [keyed.get("/x", headers={"x-reverie-client": name}, auth=("", "secret")).text for name in ("a", "b")]
    assert told[0] != told[1]


def bomb(side: int = 60_000) -> bytes:
    """Write the header of a PNG of very many pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def nested(depth: int) -> str:
    return '{"kind": "text_to_image", "request": {"prompt": ' + "[" * depth + "]" * depth + "}}"


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PATHS = [
    "../jobs.sqlite3",
    "/etc/passwd",
    "..\\jobs.sqlite3",
    "\\\\host\\share\\x.png",
    "file:///etc/passwd",
    "~/x.png",
]
PATHS += [
    "http://169.254.169.254/x.png",
    "outputs/../../x",
    "C:\\x.png",
    "a\0b.png",
    "x" * 5000,
    ".",
    "",
    "/proc/self/environ",
]
FIELDS: list[dict[str, Any]] = [{"init": path} for path in PATHS]
FIELDS += [{"loras": [path]} for path in PATHS]
FIELDS += [{"embeddings": [path]} for path in PATHS[:4]]
FIELDS += [
    {"folders": ["/etc"]},
    {"refiner": {"model": "/etc"}},
    {"controls": [{"model": "/etc", "image": url(bomb())}]},
]
FIELDS += [{"init": url(bomb())}, {"init": url(b"GIF89a")}, {"init": url(b"\x89PNG\r\n\x1a\n")}, {"init": "data:,x"}]
FIELDS += [
    {"init": {"path": "/etc/passwd", "name": "x", "sha256": "0"}},
    {"init": {"path": "/etc/passwd", "sha256": "0"}},
]
FIELDS += [{"init": {"name": "/etc/passwd", "sha256": "0" * 64}}, {"seed": 2**40}, {"steps": "1e9"}, {"prompt": ["x"]}]
FIELDS += [
    {"width": 8192, "height": 8192},
    {"count": 10_000},
    {"guidance": "nan"},
    {"strength": -1},
    {"hires": {"scale": 8}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:40])
def test_hostile_requests_are_refused(client: TestClient, settings: Settings, fields: dict[str, Any]) -> None:
    plain = {"loras", "embeddings", "folders", "refiner", "seed", "steps", "prompt", "controls", "width", "count"}
    kind = "text_to_image" if fields.keys() & (plain | {"guidance", "hires"}) else "image_to_image"
    size = {"width": 256, "height": 256} if "hires" in fields else {}
    answer = client.post("/api/jobs", json={"kind": kind, "request": {**BEAR, **size, **fields}})
    assert answer.status_code == 422, answer.text
    check_line(answer.text, settings)


def test_a_record_with_a_path_is_no_way_around_the_folders(client: TestClient, settings: Settings) -> None:
    reference = {"path": "/etc/passwd", "name": "x", "sha256": "0", "held": {}, "data": "x"}
    film = {"keyframes": ["a bear", "an apple"], "frames": 4, "steps": 2}
    for name in ("audio", "init_video"):
        answer = client.post("/api/jobs", json={"kind": "animation", "request": {**film, name: reference}})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)
        check_line(answer.text, settings)
    answer = client.post("/api/jobs", json={"kind": "music", "request": {"init": reference, "steps": 2}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "init")


def check_line(text: str, settings: Settings) -> None:
    """Check that an error is one line of bounded length, and tells of no folder of this machine."""
    message = json.loads(text)["error"]["message"]
    assert "\n" not in message
    assert len(message) < 12_000
    for folder in (settings.home, *settings.models, *settings.loras, Path(__file__).parents[2]):
        assert str(folder) not in text


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"\xff\xfe",
    b"{}" * 10,
    nested(500).encode(),
    nested(100_000).encode(),
]
BODIES += [
    b'{"kind": 1}',
    b'{"kind": "text_to_image", "request": []}',
    b'{"kind": "text_to_image", "x": 1}',
    b'{"a":' * 1000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("path", ["/api/jobs", "/v1/images/generations", "/api/compare"])
def test_broken_bodies_are_refused(client: TestClient, settings: Settings, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    check_line(answer.text, settings)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"nothing", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (b"file=a", "application/x-www-form-urlencoded"),
    ],
)
@pytest.mark.parametrize("path", ["/api/files", "/v1/images/edits"])
def test_broken_forms_are_refused(client: TestClient, settings: Settings, path: str, content: bytes, kind: str) -> None:
    answer = client.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code in (400, 422), answer.text
    check_line(answer.text, settings)


@pytest.mark.parametrize(
    "path",
    ["/api/files/..%2f..%2fjobs.sqlite3", "/..%2f..%2fapp.py", "/api/nothing", "/v1/models/%00", "/%2e%2e/app.py"],
)
def test_paths_outside_lead_nowhere(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 405)


def test_websockets_of_other_pages_are_refused(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/api/ws", headers={"origin": "https://evil.example"}),
    ):
        pass
    with client.websocket_connect("/api/live") as socket:
        for text in ("{", "[]", nested(100_000), '{"number": 1}', '{"kind": "inpaint", "request": {"init": "/x"}}'):
            socket.send_text(text)
            assert socket.receive_json()["type"] == "error"


@contextmanager
def connect(url: str) -> Iterator[socket.socket]:
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=20) as raw:
        yield raw


def test_a_huge_head_is_refused(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000)
        assert raw.recv(100).split()[1] in (b"400", b"431")


def test_who_sends_slowly_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    for part in (b"", head):
        with connect(url) as raw:
            raw.sendall(part)
            assert raw.recv(100) == b""
    with connect(url) as raw:
        raw.sendall(head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(100).split()[1] == b"408"
    with connect(url) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(100).split()[1] == b"200"


def test_a_websocket_outlives_the_time_that_a_head_has(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "HEAD_SECONDS", 0.3)
    headers = {"Authorization": "Bearer secret"}
    with websocket(url.replace("http", "ws") + "/api/ws", additional_headers=headers) as follower:
        time.sleep(0.6)
        follower.send("{}")
        assert json.loads(follower.recv(timeout=10))["type"] == "error"


def test_an_upload_is_what_it_is_whatever_it_is_called(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    (file,) = client.post("/api/files", files={"file": ("evil.html", buffer.getvalue(), "text/html")}).json()["files"]
    answer = client.get(file["url"])
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/jpeg", "nosniff")
    for hostile in (b"<html><script>alert(1)</script>", b"\x7fELF" + bytes(100), b"", bomb()):
        assert client.post("/api/files", files={"file": ("x.png", hostile)}).status_code == 422
