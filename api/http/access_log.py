"""The correlation that each request belongs to, and a line of the log for each answer."""

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from domain.correlation import Correlation, Spans, correlated, correlation_id, current, traceparent, untraced

# Sampled: a receiver of webhooks that traces would otherwise drop its own spans.
FLAGS: Final = "01"
WATCHED: Final = ("/health", "/metrics")

logger: Final = logging.getLogger(__name__)


class AccessLog:
    """The application as a server calls it. Query strings are never logged: they may hold what is secret."""

    def __init__(self, app: ASGIApp, span: Spans) -> None:
        self._app = app
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], _path(scope)
        attributes = {"http.request.method": str(method), "url.path": path}
        # Whoever asks for these asks every few seconds, and for nothing else.
        is_watch = path.startswith(WATCHED)
        span = untraced if is_watch else self._span
        given = _given(scope["headers"])
        with correlated(given), span(str(method), "server", attributes) as note, correlated(_whole()):
            answer = _Answer(send)
            begin = time.monotonic()
            try:
                await self._app(scope, receive, answer.send)
            finally:
                note({} if answer.status is None else {"http.response.status_code": answer.status})
                duration_ms = round((time.monotonic() - begin) * 1000, 1)
                told = {"method": method, "path": path, "status": answer.status, "duration_ms": duration_ms}
                level = logging.DEBUG if is_watch else logging.INFO
                logger.log(
                    level, "%s %s %s in %s ms", method, path, answer.status or "aborted", duration_ms, extra=told
                )


class _Answer:
    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _path(scope: HTTPScope) -> str:
    """As it was sent, escapes and all."""
    return scope["raw_path"].partition(b"?")[0].decode("ascii", "backslashreplace")


def _given(headers: Iterable[tuple[bytes, bytes]]) -> Correlation:
    """What the client says of it; an empty id where it says nothing."""
    found = {name: content.decode("latin-1") for name, content in headers if name in {b"traceparent", b"x-request-id"}}
    trace = traceparent(found.get(b"traceparent", ""))
    return Correlation(correlation_id(found.get(b"x-request-id", "")) or "", trace)


def _whole() -> Correlation:
    """The current one, with what it still lacks."""
    given = current() or Correlation("")
    trace = given.traceparent or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{FLAGS}"
    return Correlation(given.id or trace.split("-")[1], trace)
