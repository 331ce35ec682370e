"""What every request meets first, also one that no route answers."""

from typing import Any, Final

from litestar import Litestar, Request
from litestar.enums import ScopeType
from litestar.types import HTTPScope, Message, Receive, Scope, Send

from api.http.hosts import AllowedHosts, ForbiddenError
from api.http.problems import problem_response

GET_ALONE: Final = b"range"  # RFC 9110 gives ranges no meaning for HEAD


class Entrance:
    """The application as a server calls it: HEAD is answered as GET without the body, and foreign hosts not at all."""

    def __init__(self, app: Litestar, hosts: AllowedHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = _as_get(scope), _without_body(send)
        try:
            self._hosts.check(scope["method"], scope["headers"])
        except ForbiddenError as error:
            request: Request[Any, Any, Any] = Request(scope)
            refusal = problem_response(request, error).to_asgi_response(app=None, request=request)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


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
