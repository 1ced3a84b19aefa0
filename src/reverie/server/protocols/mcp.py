"""The Model Context Protocol at /mcp, over HTTP; what it needs is loaded by the first request."""

from __future__ import annotations

import asyncio
from importlib import import_module

from starlette.types import ASGIApp, Receive, Scope, Send

from reverie.server.dispatcher import Dispatcher
from reverie.server.guard import Refusal


class Endpoint:
    """The application at /mcp of one server."""

    def __init__(self) -> None:
        self._app: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(scope["app"].state.dispatcher, self._app))
        app = await asyncio.shield(self._app)
        await app(scope, receive, send)

    async def _serve(self, served: Dispatcher, app: asyncio.Future[ASGIApp]) -> None:
        """Run the protocol's sessions until the loop ends."""
        try:
            tools = await asyncio.to_thread(import_module, "reverie.server.tools")
        except ModuleNotFoundError as error:
            app.set_exception(Refusal(501, f"this needs {error.name}: pip install 'reverie[mcp]'"))
            return
        server = tools.create_server(tools.run_served)
        server.streamable_http_app(stateless_http=True, max_request_body_size=served.settings.limits.body, host="")
        async with server.session_manager.run():
            app.set_result(server.session_manager.handle_request)
            await asyncio.get_running_loop().create_future()
