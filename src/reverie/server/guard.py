"""The guard: what stands before every route. Host, Origin, key, size and pace of a request, and a line in the log."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reverie.server.metrics import Metrics
from reverie.server.settings import Settings

COOKIE = "reverie"
CLIENT_HEADER = "x-reverie-client"
OPEN = ("/healthz",)  # needs no key
MOST_HEADERS = 32 << 10  # bytes
BODY_SECONDS = 120.0  # within which a request's body must have come
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for anew, so that after an upgrade the page's modules fit each other
}

log = logging.getLogger("reverie.server")


class Refusal(HTTPException):
    """A request that is refused: its status, why in one line, and the field that it is about."""

    def __init__(self, status: int, message: str, *, param: str | None = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, " ".join(message.split()), named)
        self.param = param


class ErrorDetail(BaseModel):
    """What went wrong, in one line, and the field that it is about."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The JSON of an error: OpenAI's, and `detail`, which other programs read."""

    error: ErrorDetail
    detail: str


def error_body(message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return the JSON of an error."""
    return ErrorBody(error=ErrorDetail(message=message, param=param, code=code), detail=message).model_dump()


class Guard:
    """ASGI middleware that refuses what may not come in, and logs and counts what does."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._names = {"localhost", socket.gethostname().lower(), *(host.lower() for host in settings.hosts)}
        self._origins = {origin.rstrip("/").lower() for origin in settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request or a WebSocket through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.perf_counter(), 500
        answered = False

        async def answer(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered, status = True, message["status"]
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
                shown = scope["path"] == "/" and scope["method"] == "GET" and status < 400
                if shown and self._settings.tokens:  # whoever gets the page has shown a key
                    own.append("set-cookie", f"{COOKIE}={self._sign(self._settings.tokens[0])}; Path=/; {_FLAGS}")
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            self._check(scope, headers)
            scope["state"] = {**scope.get("state", {}), "client": self._client(scope, headers)}
            await self._app(scope, self._bound_body(scope, headers, receive), answer)
        except Refusal as refusal:
            if answered:
                raise
            status = refusal.status_code
            await _refuse(scope, refusal, answer)
        finally:
            self._report(scope, status, time.perf_counter() - start)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            raise Refusal(431, f"the headers are too large; send at most {MOST_HEADERS} bytes")
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Refusal(421, f"this server is not '{host[:80]}'; if it is, start it with that name as `host` allowed")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin.lower(), host.lower()):
            raise Refusal(403, f"pages of '{origin[:80]}' may not ask here; `allow_origin` lets them")
        is_open = scope["path"] in OPEN or scope.get("method") == "OPTIONS"
        if self._settings.tokens and not is_open and not self._has_key(headers):
            raise Refusal(401, "a key is needed: send it as Bearer token or as the password of Basic", **_ASK)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.limits.body:
            raise self._too_large()

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host is an address, or a name of this machine: others are DNS rebinding."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_ask(self, origin: str, host: str) -> bool:
        return urlsplit(origin).netloc == host or origin in self._origins

    def _has_key(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        shown = _key(headers.get("authorization", "")), cookie.value if cookie is not None else ""
        return any(
            hmac.compare_digest(one.encode(), right.encode())
            for token in self._settings.tokens
            for one, right in zip(shown, (token, self._sign(token)), strict=True)
        )

    @staticmethod
    def _sign(token: str) -> str:
        """Return what the page's cookie holds in place of a key."""
        return hmac.new(token.encode(), b"reverie page", hashlib.sha256).hexdigest()

    @staticmethod
    def _client(scope: Scope, headers: Headers) -> str:
        """Name who asks: what it calls itself, at its address."""
        address = (scope.get("client") or ("unknown",))[0]
        query = dict(part.partition("=")[::2] for part in scope["query_string"].decode("latin-1").split("&"))
        name = headers.get(CLIENT_HEADER) or query.get("client", "")
        return f"{address} {name[:64]}".strip()

    def _bound_body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Return a `receive` that refuses bodies that are too large or too slow."""
        if scope["type"] != "http":
            return receive
        size, done, deadline = 0, False, time.monotonic() + BODY_SECONDS

        async def receive_within() -> Message:
            nonlocal size, done
            if done:
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} s") from None
            size += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if size > self._settings.limits.body:
                raise self._too_large()
            return message

        return receive_within

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is too large; send at most {self._settings.limits.body} bytes")

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope.get("method", "WS")
        route = getattr(scope.get("route"), "path", None) or ("/" if scope.get("endpoint") else "other")
        self._metrics.count_request(method, route, status, seconds)
        client = scope.get("state", {}).get("client", "?")
        log.info("%s %s %s %s %.1f ms", _safe(client), method, _safe(scope["path"]), status, seconds * 1000)


_FLAGS = "HttpOnly; SameSite=Strict; Max-Age=31536000"
_ASK: Mapping[str, str] = {"www_authenticate": 'Basic realm="reverie", charset="UTF-8"'}


def _key(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return value.strip() if scheme.lower() == "bearer" else ""


def _safe(text: str) -> str:
    """Return a text for a line of the log: nothing in it ends the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


async def _refuse(scope: Scope, refusal: Refusal, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail[:120]})
        return
    body = json.dumps(error_body(refusal.detail, refusal.param)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, **(refusal.headers or {})}.items()]
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
