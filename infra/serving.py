"""The HTTP server, its socket, and connections that end before a slow or large one costs anybody else anything."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import uvicorn
from msgspec import Struct
from uuid_utils import uuid7
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from domain.errors import UnavailableError

MAX_HEAD: Final = 65_536  # bytes of a request's line and headers
LINGER_SECONDS: Final = 1.0


class Patience(Struct, frozen=True):
    """Seconds for a request's headers, between two looks at how much of a body has come, and for a reader that takes
    nothing; and the bytes of a body that must come in a second.
    """

    head: float = 10.0
    body: float = 20.0
    reader: float = 60.0
    body_rate: int = 512


def protocol(patience: Patience, abort: str) -> type[HttpToolsProtocol]:
    """What uvicorn makes of each connection. `abort` names the ASGI extension that closes it at once."""
    return type("Connection", (_Connection,), {"patience": patience, "extension": abort})


class _Connection(HttpToolsProtocol):
    patience: Patience
    extension: str

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reads: str = "head"  # or body, or nothing
        self._timer: asyncio.TimerHandle | None = None  # for what it reads
        self._reader: asyncio.TimerHandle | None = None
        self._count = 0  # bytes of the head, or of the body since the last look
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._reads == "nothing":
            self._reads, self._count = "head", 0
        is_head = self._reads == "head"
        super().data_received(data)
        if is_head and self._reads == "head":
            self._count += len(data)
            if self._count > MAX_HEAD:
                self._refuse_head()
        if self._timer is None and not self._is_refused and self._reads != "nothing":
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope["extensions"] = {self.extension: self._abort}

    def on_headers_complete(self) -> None:
        self._rest()
        self._reads, self._count = "body", 0
        if sum(len(name) + len(content) + 4 for name, content in self.headers) + len(self.url) > MAX_HEAD:
            self._refuse_head()
        if not self._is_refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._count += len(body)
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._rest()
        self._reads = "nothing"
        if not self._is_refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self._reader or self.loop.call_later(self.patience.reader, self._abort)

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        super().resume_writing()

    def _watch(self) -> None:
        if self._reads == "head":
            self._timer = self.loop.call_later(self.patience.head, self._refuse_slow_head)
        else:
            self._timer = self.loop.call_later(self.patience.body, self._look_at_body)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_body(self) -> None:
        # What the application has not taken yet holds back what comes after it.
        if self._count < self.patience.body * self.patience.body_rate and not self.flow.read_paused:
            rate = f"{self.patience.body_rate:,} bytes a second"
            self._refuse(408, "request_timeout", f"The body came at less than {rate}; send it again, faster.")
            return
        self._count = 0
        self._watch()

    def _refuse_slow_head(self) -> None:
        cycle: Any = self.cycle
        if self._count == 0 and cycle is None:
            # Nothing was asked, so that there is nothing to answer.
            self._abort()
            return
        detail = f"The headers did not come within {self.patience.head:g} s; send the request again."
        self._refuse(408, "request_timeout", detail)

    def _refuse_head(self) -> None:
        detail = f"The request's address and headers have over {MAX_HEAD:,} bytes; send less."
        self._refuse(431, "request_header_fields_too_large", detail)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._is_refused = True
        self._rest()
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self._reads == "head":
                self._abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        line = STATUS_LINE[status]
        title = line.split(b" ", 2)[2].strip().decode()
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
        body = msgspec.json.encode({**problem, "request_id": str(uuid7())})
        head = b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(line + head + body)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closed at once, what still comes would make the other side lose the answer.
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self._abort)

    def _abort(self) -> None:
        self.transport.abort()


class Server(uvicorn.Server):
    """Leaves the signals alone: there is more to stop than the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Raises UnavailableError for an address that cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnavailableError(
            f"Cannot listen on {host} port {port}: {reason}. Choose another with --host or --port."
        ) from None
    # asyncio does so only for sockets made with an explicit protocol, and without it every answer waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
