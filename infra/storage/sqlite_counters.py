"""Numbers that the processes on one machine count together, in a SQLite file of their own that may be deleted."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import apsw

from domain.errors import UnavailableError
from infra.storage.sqlite import DAMAGED, advise, check, connect, is_new, opened_or_anew, transaction, write_ahead

APPLICATION_ID: Final = 0x74327363
TABLE: Final = """
CREATE TABLE counters (name TEXT PRIMARY KEY, total INTEGER NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX expiry ON counters (expires_at);
"""
ADD: Final = (
    "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
    "total = iif(expires_at > ?, total, 0) + excluded.total, expires_at = excluded.expires_at RETURNING total"
)
FORGET_SECONDS: Final = 60.0


class SqliteCounters:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, f"{path.name} writer")
        self._connection: apsw.Connection | None = None
        self._forgot = 0.0
        self._closed = False

    @classmethod
    async def open(cls, path: str | Path) -> Self:
        """A damaged file is replaced by an empty one. Raises UnavailableError where there can be no such file."""
        self = cls(Path(path))
        try:
            await self._run(lambda _: None)
        except BaseException:
            await self.close()
            raise
        return self

    async def add(self, name: str, amount: int, expires_at: float) -> int:
        def write(connection: apsw.Connection) -> int:
            now = time.time()
            with transaction(connection):
                if now - self._forgot > FORGET_SECONDS:
                    connection.execute("DELETE FROM counters WHERE expires_at <= ?", (now,))
                    self._forgot = now
                return int(connection.execute(ADD, (name, amount, expires_at, now)).get)

        return int(await self._run(write) or 0)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)
        self._drop()

    async def _run(self, job: Callable[[apsw.Connection], int | None]) -> int | None:
        def run() -> int | None:
            try:
                try:
                    return job(self._opened())
                except DAMAGED:
                    # Another process may have replaced the file already: it is opened again before it is given up.
                    self._drop()
                    return job(self._opened())
            except (apsw.Error, OSError) as error:
                if not isinstance(error, (apsw.FullError, apsw.BusyError)):
                    self._drop()
                raise UnavailableError(f"Requests cannot be counted: {advise(self._path, error)}") from error

        if self._closed:
            raise UnavailableError(f"The counters {self._path} are closed.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close(force=True)
            self._connection = None

    def _opened(self) -> apsw.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            warning = "The counters %s are damaged: they begin again at zero"
            self._connection = opened_or_anew(self._path, self._create, warning)
        return self._connection

    def _create(self) -> apsw.Connection:
        connection = connect(self._path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        try:
            write_ahead(connection)
            # A count that is lost with the machine's power costs nothing.
            connection.pragma("synchronous", "OFF")
            with transaction(connection):
                if is_new(connection, APPLICATION_ID):
                    connection.execute(TABLE)
            check(connection, "integrity_check")
        except BaseException:
            connection.close(force=True)
            raise
        return connection
