"""The read store in one SQLite file: a table per view, made anew whenever the views' definitions change."""

# ruff: noqa: S608 -- every name in a statement is a view's or a filter's, and both are named in code

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, Self

import apsw
import msgspec

from domain.errors import UnavailableError
from domain.ports import D, Document, Query, Scalar, TopicPartition, View
from infra.sqlite import Readers, connect, explain, is_new, transaction

# To be raised when a view's `fields` or a fold changes: every store is then folded again.
SCHEMA: Final = 1
APPLICATION_ID: Final = 0x74327373
READERS: Final = 4
SCAN: Final = 500
WATERMARKS: Final = """
CREATE TABLE watermarks (
    topic TEXT, partition INTEGER, offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID
"""

log: Final = logging.getLogger(__name__)


class SqliteStore:
    def __init__(self, path: Path, views: Sequence[View[Any]]) -> None:
        self._path = path
        self._tables = {view.name: _Table(view) for view in views}
        self._readers = Readers(path, READERS)
        self._writer = ThreadPoolExecutor(1, f"{path.name} writer")
        self._connection: apsw.Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: str | Path, views: Sequence[View[Any]]) -> Self:
        """A file of other views, or a damaged one, is emptied, watermarks too: it is there to be folded again."""
        self = cls(Path(path), views)
        try:
            await self._write(self._prepare)
        except BaseException:
            await self.close()
            raise
        return self

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        table = self._table(view)
        rows = await self._fetch(table.get, (msgspec.json.encode(ids).decode(),))
        return {id_: table.decode(body) for id_, body in rows}

    async def find(self, view: View[D], query: Query) -> list[D]:
        table = self._table(view)
        return [table.decode(body) for (body,) in await self._fetch(*table.listing(query))]

    async def count(self, view: View[D], query: Query) -> int:
        table = self._table(view)
        where, values = table.where(query)
        [(count,)] = await self._fetch(f"SELECT count(*) FROM {table.name} WHERE {where}", values)
        return int(count)

    async def save(
        self, documents: Sequence[tuple[View[Any], Document]], watermarks: Mapping[TopicPartition, int]
    ) -> None:
        tables = [(self._table(view), document) for view, document in documents]

        def write() -> None:
            connection = self._connection = self._connection or self._connect()
            with transaction(connection):
                for table, document in tables:
                    connection.execute(table.save, table.row(document))
                connection.executemany(
                    "INSERT INTO watermarks VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                    "SET offset = excluded.offset WHERE excluded.offset > offset",
                    [(topic, partition, offset) for (topic, partition), offset in watermarks.items()],
                )

        await self._write(write)

    async def watermarks(self) -> dict[TopicPartition, int]:
        rows = await self._fetch("SELECT topic, partition, offset FROM watermarks", ())
        return {(topic, partition): offset for topic, partition, offset in rows}

    async def scan(self, view: View[D]) -> AsyncIterator[D]:
        table = self._table(view)
        last = ""
        while rows := await self._fetch(table.scan, (last, SCAN)):
            for _, body in rows:
                yield table.decode(body)
            last = rows[-1][0]

    def pinned(self) -> Self:
        return self

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._writer.shutdown)
        await self._readers.close()
        if self._connection is not None:
            await asyncio.to_thread(self._connection.close)
            self._connection = None

    def _table(self, view: View[D]) -> "_Table[D]":
        try:
            return self._tables[view.name]
        except KeyError:
            raise ValueError(f"The read store was opened without a view {view.name!r}.") from None

    async def _fetch(self, sql: str, values: Sequence[Scalar]) -> list[tuple[Any, ...]]:
        return await self._readers.run(lambda connection: connection.execute(sql, values).fetchall())

    async def _write(self, job: Callable[[], None]) -> None:
        def write() -> None:
            try:
                job()
            except (apsw.Error, OSError) as error:
                if self._connection is not None and not isinstance(error, (apsw.FullError, apsw.BusyError)):
                    self._connection.close(force=True)
                    self._connection = None
                raise UnavailableError(
                    f"The read store could not be written, and nothing was: {explain(self._path, error)}"
                ) from error

        if self._closed:
            raise UnavailableError(f"The read store {self._path} is closed.")
        await asyncio.get_running_loop().run_in_executor(self._writer, write)

    def _prepare(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._create()
        except (apsw.NotADBError, apsw.CorruptError):
            log.warning("The read store %s is damaged: it starts empty and is folded again from the log", self._path)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._connection = self._create()

    def _create(self) -> apsw.Connection:
        connection = self._connect(apsw.SQLITE_OPEN_CREATE)
        try:
            connection.pragma("journal_mode", "WAL")
            with transaction(connection):
                new = is_new(connection, APPLICATION_ID)
                check(connection)
                if new or connection.pragma("user_version") != self._definition():
                    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                        connection.execute(f'DROP TABLE "{name}"')
                    for statement in (WATERMARKS, *(table.create for table in self._tables.values())):
                        connection.execute(statement)
                    connection.pragma("user_version", self._definition())
        except BaseException:
            connection.close(force=True)
            raise
        return connection

    def _connect(self, create: int = 0) -> apsw.Connection:
        connection = connect(self._path, apsw.SQLITE_OPEN_READWRITE | create)
        connection.pragma("synchronous", "NORMAL")
        return connection

    def _definition(self) -> int:
        views = [table.definition for _, table in sorted(self._tables.items())]
        return zlib.crc32(msgspec.json.encode((SCHEMA, views))) & 0x7FFFFFFF


class _Table(Generic[D]):
    def __init__(self, view: View[D]) -> None:
        self.definition = (view.name, view.filters, msgspec.json.schema(view.document))
        self.name = f'"view_{view.name}"'
        self.decode = msgspec.json.Decoder(view.document).decode
        self._fields = view.fields
        self._filters = view.filters
        columns = [f'"filter_{name}"' for name in view.filters]
        self.create = (
            f"CREATE TABLE {self.name} (id TEXT PRIMARY KEY, position INTEGER NOT NULL, created_at TEXT NOT NULL, "
            f"hidden INTEGER NOT NULL, body BLOB NOT NULL{''.join(f', {column}' for column in columns)});"
        )
        for index, prefix in enumerate(["", *(f"{column}, " for column in columns)]):
            self.create += (
                f'CREATE INDEX "list_{view.name}_{index}" ON {self.name} (hidden, {prefix}created_at DESC, id DESC);'
            )
        names = ["position", "created_at", "hidden", "body", *columns]
        self.save = (
            f"INSERT INTO {self.name} (id, {', '.join(names)}) VALUES (?{', ?' * len(names)}) "
            f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)} "
            "WHERE excluded.position > position"
        )
        self.get = f"SELECT id, body FROM {self.name} WHERE id IN (SELECT value FROM json_each(?))"
        self.scan = f"SELECT id, body FROM {self.name} WHERE id > ? ORDER BY id LIMIT ?"

    def row(self, document: D) -> tuple[Scalar | bytes, ...]:
        fields = self._fields(document)
        return (
            document.id,
            document.position,
            document.created_at,
            bool(fields.get("hidden", False)),
            msgspec.json.encode(document),
            *(fields[name] for name in self._filters),
        )

    def listing(self, query: Query) -> tuple[str, tuple[Scalar, ...]]:
        where, values = self.where(query)
        if query.after is not None:
            # The first bound follows from the second, and lets the index start there when there is an `end` too.
            where += " AND created_at <= ? AND (created_at, id) < (?, ?)"
            values += (query.after[0], *query.after)
        sql = f"SELECT body FROM {self.name} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"
        return sql, (*values, query.limit, query.offset)

    def where(self, query: Query) -> tuple[str, tuple[Scalar, ...]]:
        if unknown := query.equal.keys() - set(self._filters):
            raise ValueError(f"{self.name} cannot be filtered by {sorted(unknown)}, only by {sorted(self._filters)}.")
        terms = [f"hidden = {query.hidden:d}", *(f'"filter_{name}" IS ?' for name in query.equal)]
        values = list(query.equal.values())
        if query.start is not None:
            terms.append("created_at >= ?")
            values.append(query.start)
        if query.end is not None:
            terms.append("created_at <= ?")
            values.append(query.end)
        return " AND ".join(terms), tuple(values)


def check(connection: apsw.Connection) -> None:
    """Raises apsw.CorruptError for damage anywhere in the file."""
    if (found := connection.execute("PRAGMA quick_check(1)").get) != "ok":
        raise apsw.CorruptError(found)
