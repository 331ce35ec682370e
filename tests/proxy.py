"""A TCP connection that can be cut: between an adapter and its server, for tests of outages."""

import asyncio
import ssl
from contextlib import suppress
from typing import Self


class Proxy:
    """Hands bytes on in both directions. `down` refuses whoever comes; `limit` cuts after so many bytes sent; so many
    `lost_answers` are cut off before their first byte.
    """

    def __init__(self, host: str, port: int) -> None:
        self.down = False
        self.limit: int | None = None
        self.lost_answers = 0
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def to(cls, address: str, context: ssl.SSLContext | None = None) -> Self:
        """`address` is host:port. With a context it is spoken to in TLS, and speaks without it to whom it leads."""
        host, _, port = address.rpartition(":")
        self = cls(host, int(port))
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        return self

    @property
    def address(self) -> str:
        assert self._server is not None
        return "127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self.down = True
        self._server.close()
        self.cut()
        await asyncio.gather(*self._running)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._connect(reader, writer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = {writer}
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            pair.add(there_writer)
            self._writers.add(there_writer)
            if not self.down:
                await asyncio.gather(self._pipe(reader, there_writer, counted=True), self._pipe(there_reader, writer))
        self._writers -= pair
        for each in pair:
            each.transport.abort()
            with suppress(OSError):
                await each.wait_closed()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if counted and self.limit is not None:
                    self.limit -= len(data)
                    if self.limit < 0:
                        self.down = True
                        self.cut()
                        return
                if not counted and self.lost_answers:
                    self.lost_answers -= 1
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
