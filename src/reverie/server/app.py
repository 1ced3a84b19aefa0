"""The application: routes, errors and the life of a server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from reverie.errors import ReverieError
from reverie.files import lock_folder, reason_of, unwritable
from reverie.server import api, live
from reverie.server.dispatcher import Dispatcher, Hire, QueueFull
from reverie.server.guard import ErrorBody, Guard, error_body
from reverie.server.metrics import Metrics
from reverie.server.protocols import a1111, comfy, huggingface, mcp, openai, riffusion
from reverie.server.settings import Settings
from reverie.server.shelf import INPUT_PIXELS
from reverie.server.store import JobStore
from reverie.server.worker import Worker

PAGE = Path(__file__).parent / "page"
KEEP_ALIVE = 75  # seconds; webuiapi polls every five
SHUTDOWN = 10  # seconds that open requests have
HEAD_SECONDS = 30.0  # within which the head of a request must have come
CONNECTIONS = 1024  # at once


def create_app(settings: Settings, hire: Hire = Worker) -> FastAPI:
    """Return the application of a server, to run once; `home` is for one at a time. Raises ReverieError."""
    for folder in (settings.outputs, settings.uploads):
        with unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
    metrics, store = Metrics(), JobStore(settings.home / "jobs.sqlite3")

    @asynccontextmanager
    async def run_dispatcher(app: FastAPI) -> AsyncIterator[None]:
        app.state.dispatcher = metrics.dispatcher = Dispatcher(settings, store, hire)
        try:
            yield
        finally:
            await app.state.dispatcher.close()

    app = FastAPI(
        title="reverie",
        version=version("reverie"),
        lifespan=run_dispatcher,
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorBody}},
    )
    app.state.settings = settings
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.include_router(api.router)
    app.include_router(live.router)
    for protocol in (openai, a1111, comfy, huggingface, riffusion):
        app.include_router(protocol.router)
    app.include_router(comfy.router, prefix="/api")  # what is ours there comes first
    app.router.routes.append(Route("/mcp", mcp.Endpoint()))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        """Return the metrics as Prometheus reads them."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    page = StaticFiles(directory=PAGE)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    async def find_file(scope: Scope, receive: Receive, send: Send) -> None:
        await (page if scope["type"] == "http" else not_found)(scope, receive, send)

    not_found, app.router.default = app.router.default, find_file
    return app


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    param = getattr(error, "param", None)
    return JSONResponse(error_body(str(error.detail), param), error.status_code, headers=error.headers)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what a request's fields get wrong, without folders of this machine."""
    message = request.app.state.settings.describe(str(error))
    if isinstance(error, QueueFull):
        return JSONResponse(error_body(message, code="queue_full"), 429, headers={"Retry-After": str(error.retry)})
    return JSONResponse(error_body(message, getattr(error, "field", None)), 422)


async def _answer_bad_body(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not of the route's form: the first thing that is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, ReverieError):
        return await _answer_error(request, own)
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    status = 400 if first["type"] == "json_invalid" else 422
    return JSONResponse(error_body(f"{field}: {first['msg']}"[:300], field), status)


async def _answer_failure(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("the server failed; its log says more"), 500)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    HTTPException: _answer_refusal,
    ReverieError: _answer_error,
    RequestValidationError: _answer_bad_body,
    Exception: _answer_failure,
}


class _Protocol(H11Protocol):
    """Uvicorn's HTTP, which closes connections whose next request's head does not come in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head(True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_http = self.transport.get_protocol() is self  # else it is a WebSocket's by now, and no head follows
        self._expect_head(is_http and (self.cycle is None or self.cycle.response_complete))

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_head(False)
        super().connection_lost(exc)

    def _expect_head(self, waits: bool) -> None:
        if self._timer is not None and not waits:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and waits and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """Uvicorn's server, which says when it listens, and tells the dispatcher of a signal, so that streams end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        app = self.config.app
        assert isinstance(app, FastAPI)
        if (dispatcher := getattr(app.state, "dispatcher", None)) is not None:
            dispatcher.announce_close()


def serve(settings: Settings, ready: Callable[[str], None], hire: Hire = Worker) -> None:
    """Serve until a signal ends it; `ready` gets the address. Raises ReverieError where that or `home` is taken."""
    Image.MAX_IMAGE_PIXELS = INPUT_PIXELS * settings.limits.pixels // 2  # Pillow refuses twice as many, anywhere
    with listen(settings) as listener, lock_folder(settings.home, "serving"):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        Server(uvicorn_config(settings, hire), lambda: ready(address)).run([listener])


def uvicorn_config(settings: Settings, hire: Hire = Worker) -> uvicorn.Config:
    """Return how uvicorn runs the application."""
    return uvicorn.Config(
        create_app(settings, hire),
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN,
        log_config=None,
        access_log=False,
        server_header=False,
        http=_Protocol,
        limit_concurrency=CONNECTIONS,
        ws_max_size=settings.limits.body,
        ws_per_message_deflate=False,  # pictures are compressed
    )


@contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """Yield a socket that listens where the settings say. Raises ReverieError where it cannot."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        place = f"{settings.host}:{settings.port}"
        reason = reason_of(error).rstrip(".")
        raise ReverieError(f"cannot listen on {place}: {reason}; choose another `host` or `port`") from error
    with listener:
        yield listener
