"""What every request meets first, also one that no route answers."""

import asyncio
from typing import Any, Final

from litestar import Litestar, Request
from litestar.enums import ScopeType
from litestar.types import HTTPScope, Message, Receive, Scope, Send

from api.http.access import Caller
from api.http.hosts import AllowedHosts
from api.http.keyring import Keyring
from api.http.problems import problem_response
from api.http.refusals import ForbiddenError
from api.http.services import SERVICES, Services

# In a request's state: who sends it, and how many more may follow.
CALLER: Final = "caller"
STANDING: Final = "standing"
ABORT: Final = "text2song.abort"  # among the server's extensions: closes the connection at once
GET_ALONE: Final = b"range"  # RFC 9110 gives ranges no meaning for HEAD


class Entrance:
    """The application as a server calls it: HEAD is answered as GET without the body, and foreign hosts not at all.

    An answer says how many requests its caller has left, and a stream ends when its caller's key does.
    """

    def __init__(self, app: Litestar, services: Services, hosts: AllowedHosts) -> None:
        self._app = app
        self._services = services
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope, send = _as_get(scope), _without_body(send)
        send = self._services.feed.meter.timed(method, scope, send)
        try:
            self._hosts.check(scope["method"], scope["headers"])
        except ForbiddenError as error:
            request: Request[Any, Any, Any] = Request(scope)
            refusal = problem_response(request, error).to_asgi_response(app=None, request=request)
            await refusal(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state[SERVICES] = self._services
        exchange = _Exchange(state, receive, send, self._services.feed.keys)
        await self._app(scope, exchange.receive, exchange.send)
        await exchange.end(scope)


class _Exchange:
    """One request and its answer, between the server and the application."""

    def __init__(self, state: dict[str, Any], receive: Receive, send: Send, keys: Keyring) -> None:
        self._state = state
        self._receive = receive
        self._send = send
        self._keys = keys
        self._is_read = False
        self._is_cut = False
        self._is_sized = False

    async def receive(self) -> Any:
        """Tells a stream that the client has left once the client's key is void."""
        caller: Caller | None = self._state.get(CALLER)
        if not self._is_read or caller is None:
            message = await self._receive()
            self._is_read = message["type"] == "http.request" and not message.get("more_body", False)
            return message
        left = asyncio.ensure_future(self._receive())
        void = asyncio.ensure_future(self._keys.until_void(caller))
        try:
            await asyncio.wait({left, void}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                return left.result()
            self._is_cut = True
            return {"type": "http.disconnect"}
        finally:
            left.cancel()
            void.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if (standing := self._state.get(STANDING)) is not None:
                message["headers"] = [*message["headers"], *standing.headers]
            self._is_sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
        await self._send(message)

    async def end(self, scope: HTTPScope) -> None:
        """Ends an answer that was cut: one of a known size by its connection, as it can end in no other way."""
        if not self._is_cut:
            return
        if not self._is_sized:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        extensions: Any = scope.get("extensions") or {}
        if (abort := extensions.get(ABORT)) is not None:
            abort()


def _as_get(scope: HTTPScope) -> HTTPScope:
    headers = [(name, content) for name, content in scope["headers"] if name != GET_ALONE]
    return {**scope, "method": "GET", "headers": headers}


def _without_body(send: Send) -> Send:
    """Ends the answer with its headers: a stream then hears that nobody listens."""

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_headers
