"""The read store in one SQLite file: a table per view, made anew whenever the views' definitions change."""

# ruff: noqa: S608 -- every name in a statement is a view's or a filter's, and both are named in code

import asyncio
import logging
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import apsw
import msgspec
from msgspec.structs import replace

from domain.errors import UnavailableError
from domain.ports import D, Document, Erasure, Query, Scalar, TopicPartition, View
from infra.storage.sqlite import (
    CHECKPOINT_PAGES,
    Readers,
    advise,
    check,
    connect,
    is_new,
    opened_or_anew,
    transaction,
    truncate_wal,
    write_ahead,
)

T = TypeVar("T")

# To be raised when a view's `fields` or a fold changes: every store is then folded again.
SCHEMA: Final = 3
APPLICATION_ID: Final = 0x74327373
READERS: Final = 4
SCAN: Final = 500
WIPE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
# Wiping rewrites the file, and nothing is folded meanwhile: a larger one is wiped when it is opened the next time.
WIPED_AT_ONCE: Final = 64 * 2**20
WATERMARKS: Final = """
CREATE TABLE watermarks (
    topic TEXT, partition INTEGER, offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID
"""
# Has a row while bytes of what was erased may lie in the file: SQLite clears what it deletes, but where it moved rows
# between pages before, it leaves copies.
RESIDUE: Final = "CREATE TABLE residue (id INTEGER PRIMARY KEY)"

logger: Final = logging.getLogger(__name__)


class SqliteStore:
    def __init__(self, path: Path, views: Sequence[View[Any]]) -> None:
        self._path = path
        self._tables = {view.name: _Table(view) for view in views}
        self._readers = Readers(path, READERS)
        self._writer = ThreadPoolExecutor(1, f"{path.name} writer")
        self._connection: apsw.Connection | None = None
        self._is_wiped = True
        self._is_told = False
        self._wiping: asyncio.Task[None] | None = None
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
        if not self._is_wiped:
            self._wiping = asyncio.create_task(self._wipe_soon())
        return self

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        table = self._table(view)
        rows = await self._fetch(table.get, (msgspec.json.encode(ids).decode(),))
        return {id_: table.decode(body) for id_, body in rows}

    async def find(self, view: View[D], query: Query) -> list[D]:
        table = self._table(view)
        return [table.decode(body) for body, *_ in await self._fetch(*table.listing(query))]

    async def count(self, view: View[D], query: Query) -> int:
        table = self._table(view)
        [(count,)] = await self._fetch(*table.select("count(*)", query))
        return int(count)

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        tables = [(self._table(view), document) for view, document in documents]
        erasures = defaultdict[_Table[Any], list[tuple[str, int]]](list)
        for erasure in erased:
            erasures[self._table(erasure.view)].append((erasure.id, erasure.position))

        def write() -> None:
            connection = self._connection = self._connection or self._connect()
            with transaction(connection):
                for table, document in tables:
                    table.save(connection, document)
                for table, ends in erasures.items():
                    table.erase(connection, ends)
                if erasures:
                    connection.execute("INSERT OR IGNORE INTO residue VALUES (1)")
                connection.executemany(
                    "INSERT INTO watermarks VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                    "SET offset = excluded.offset WHERE excluded.offset > offset",
                    [(topic, partition, offset) for (topic, partition), offset in watermarks.items()],
                )

        await self._write(write)
        if erasures:
            self._is_wiped = False
            self._wiping = self._wiping or asyncio.create_task(self._wipe_soon())

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
        if self._wiping is not None:
            self._wiping.cancel()
        await asyncio.to_thread(self._writer.shutdown)
        await self._readers.close()
        if self._connection is not None:
            await asyncio.to_thread(self._connection.close)
            self._connection = None

    async def _wipe_soon(self) -> None:
        """At once for all that is erased in the meantime, and again until nobody reads from the write-ahead log.

        Each attempt on a full disk writes much for nothing, so they become rare.
        """
        pause = WIPE_SECONDS
        while not self._is_wiped:
            await asyncio.sleep(pause)
            self._is_wiped = True
            try:
                self._is_wiped &= await self._write(self._wipe)
                pause, self._is_told = WIPE_SECONDS, False
            except UnavailableError as error:
                self._is_wiped = False
                self._tell(str(error))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._wiping = None

    def _tell(self, reason: str) -> None:
        if not self._is_told:
            logger.warning("What was erased may still be in the read store: %s", reason)
        self._is_told = True

    def _wipe(self) -> bool:
        connection = self._connection = self._connection or self._connect()
        is_small = self._path.stat().st_size <= WIPED_AT_ONCE
        return wipe(connection) if is_small else truncate_wal(connection)

    def _table(self, view: View[D]) -> "_Table[D]":
        try:
            return self._tables[view.name]
        except KeyError:
            raise ValueError(f"The read store was opened without a view {view.name!r}.") from None

    async def _fetch(self, sql: str, values: Sequence[Scalar]) -> list[tuple[Any, ...]]:
        return await self._readers.run(lambda connection: connection.execute(sql, values).fetchall())

    async def _write(self, job: Callable[[], T]) -> T:
        def write() -> T:
            try:
                return job()
            except (apsw.Error, OSError) as error:
                if self._connection is not None and not isinstance(error, (apsw.FullError, apsw.BusyError)):
                    self._connection.close(force=True)
                    self._connection = None
                raise UnavailableError(
                    f"The read store could not be written, and nothing was: {advise(self._path, error)}"
                ) from error

        if self._closed:
            raise UnavailableError(f"The read store {self._path} is closed.")
        return await asyncio.get_running_loop().run_in_executor(self._writer, write)

    def _prepare(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        warning = "The read store %s is damaged: it starts empty and is folded again from the log"
        self._connection = opened_or_anew(self._path, self._create, warning)

    def _create(self) -> apsw.Connection:
        connection = self._connect(apsw.SQLITE_OPEN_CREATE)
        try:
            write_ahead(connection)
            with transaction(connection):
                if is_new(connection, APPLICATION_ID) or connection.pragma("user_version") != self._definition():
                    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                        connection.execute(f'DROP TABLE "{name}"')
                    for statement in (WATERMARKS, RESIDUE, *(table.create for table in self._tables.values())):
                        connection.execute(statement)
                    connection.pragma("user_version", self._definition())
            # It reads the whole file, and other processes may write meanwhile.
            check(connection)
            # A process that was killed may have left in it what it erased.
            try:
                self._is_wiped = wipe(connection)
            except (apsw.FullError, apsw.BusyError, apsw.IOError) as error:
                self._is_wiped = False
                self._tell(advise(self._path, error))
        except BaseException:
            connection.close(force=True)
            raise
        return connection

    def _connect(self, create: int = 0) -> apsw.Connection:
        connection = connect(self._path, apsw.SQLITE_OPEN_READWRITE | create)
        connection.pragma("synchronous", "NORMAL")
        connection.pragma("secure_delete", "ON")
        connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        return connection

    def _definition(self) -> int:
        views = [table.definition for _, table in sorted(self._tables.items())]
        return zlib.crc32(msgspec.json.encode((SCHEMA, views))) & 0x7FFFFFFF


class _Table(Generic[D]):
    """The documents in one table, and in a table of its own each filter that has several values.

    Of an erased document, where it was erased is left; its `hidden` is NULL, which keeps it out of the lists' indexes.
    """

    def __init__(self, view: View[D]) -> None:
        self.definition = (view.name, view.filters, view.several, msgspec.json.schema(view.document))
        self.name = f'"view_{view.name}"'
        self.decode = msgspec.json.Decoder(view.document).decode
        self._fields = view.fields
        self._filters = view.filters
        self._single = [name for name in view.filters if name not in view.several]
        self._several = {name: f'"view_{view.name}_{name}"' for name in view.several}
        columns = [f'"filter_{name}"' for name in self._single]
        self.create = (
            f"CREATE TABLE {self.name} (id TEXT PRIMARY KEY, position INTEGER NOT NULL, created_at TEXT NOT NULL, "
            f"hidden INTEGER, body BLOB NOT NULL{''.join(f', {column}' for column in columns)});"
        )
        for index, prefix in enumerate(["", *(f"{column}, " for column in columns)]):
            self.create += (
                f'CREATE INDEX "list_{view.name}_{index}" ON {self.name} (hidden, {prefix}created_at DESC, id DESC) '
                "WHERE hidden IS NOT NULL;"
            )
        for name, table in self._several.items():
            self.create += (
                f"CREATE TABLE {table} (hidden INTEGER, value, created_at TEXT, id TEXT, "
                "PRIMARY KEY (hidden, value, created_at DESC, id DESC)) WITHOUT ROWID;"
                f'CREATE INDEX "several_{view.name}_{name}" ON {table} (id);'
            )
        names = ["position", "created_at", "hidden", "body", *columns]
        self._save = (
            f"INSERT INTO {self.name} (id, {', '.join(names)}) VALUES (?{', ?' * len(names)}) "
            f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)} "
            "WHERE excluded.position > position"
        )
        self._erase = (
            f"INSERT INTO {self.name} (id, position, created_at, hidden, body) "
            "SELECT value ->> 0, value ->> 1, '', NULL, '' FROM json_each(?) WHERE true "
            f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)} "
            "WHERE excluded.position > position"
        )
        self.get = (
            f"SELECT id, body FROM {self.name} WHERE id IN (SELECT value FROM json_each(?)) AND hidden IS NOT NULL"
        )
        self.scan = f"SELECT id, body FROM {self.name} WHERE id > ? AND hidden IS NOT NULL ORDER BY id LIMIT ?"

    def save(self, connection: apsw.Connection, document: D) -> None:
        fields: Mapping[str, Any] = self._fields(document)
        hidden = bool(fields.get("hidden", False))
        body, filters = msgspec.json.encode(document), (fields[name] for name in self._single)
        connection.execute(self._save, (document.id, document.position, document.created_at, hidden, body, *filters))
        if self._several and connection.changes():
            for name, table in self._several.items():
                connection.execute(f"DELETE FROM {table} WHERE id = ?", (document.id,))
                rows = [(hidden, value, document.created_at, document.id) for value in fields[name]]
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", rows)

    def erase(self, connection: apsw.Connection, ends: Sequence[tuple[str, int]]) -> None:
        """Each document by its id and the position of its erasure; in one statement, as there may be thousands."""
        encoded = msgspec.json.encode(ends).decode()
        connection.execute(self._erase, (encoded,))
        for table in self._several.values():
            connection.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT e.value ->> 0 FROM json_each(?) AS e "
                f"JOIN {self.name} AS v ON v.id = e.value ->> 0 WHERE v.hidden IS NULL)",
                (encoded,),
            )

    def listing(self, query: Query) -> tuple[str, tuple[Scalar, ...]]:
        order = "v" if self._leading(query) is None else "o"
        queries = [query]
        if len(query.among) == 1 and not query.equal:
            # Each value has its own order in the index, and SQLite merges them row by row.
            [(name, options)] = query.among.items()
            queries = [replace(query, among={}, equal={name: value}) for value in dict.fromkeys(options)] or [query]
        after, bounds = "", tuple[Scalar, ...]()
        if query.after is not None:
            # The first bound follows from the second, and lets the index start there when there is an `end` too.
            after = f" AND {order}.created_at <= ? AND ({order}.created_at, {order}.id) < (?, ?)"
            bounds = (query.after[0], *query.after)
        columns = f"v.body, {order}.created_at AS time, {order}.id AS ident"
        selects = [(select + after, values + bounds) for select, values in (self.select(columns, q) for q in queries)]
        sql = " UNION ALL ".join(select for select, _ in selects) + " ORDER BY time DESC, ident DESC LIMIT ? OFFSET ?"
        return sql, (*(value for _, values in selects for value in values), query.limit, query.offset)

    def select(self, columns: str, query: Query) -> tuple[str, tuple[Scalar, ...]]:
        """`v` has the documents, and `o` the order of the list where a filter of several values leads it."""
        if unknown := (query.equal.keys() - set(self._filters)) | (query.among.keys() - set(self._single)):
            raise ValueError(f"{self.name} cannot be filtered by {sorted(unknown)}, only by {sorted(self._filters)}.")
        leading = self._leading(query)
        order, source = "v", f"{self.name} AS v"
        if leading is not None:
            order, source = "o", f"{self._several[leading]} AS o CROSS JOIN {source} ON v.id = o.id"
        terms, values = [f"{order}.hidden = {query.hidden:d}"], list[Scalar]()
        for name, value in query.equal.items():
            if name == leading:
                terms.append("o.value = ?")
            elif name in self._several:
                terms.append(f"EXISTS (SELECT 1 FROM {self._several[name]} AS s WHERE s.id = v.id AND s.value = ?)")
            else:
                terms.append(f'v."filter_{name}" IS ?')
            values.append(value)
        for name, options in query.among.items():
            terms.append(f'v."filter_{name}" IN ({", ".join("?" * len(options))})')
            values += options
        for operator, ids in (("IN", query.ids), ("NOT IN", query.without or None)):
            if ids is not None:
                terms.append(f"v.id {operator} (SELECT value FROM json_each(?))")
                values.append(msgspec.json.encode(ids).decode())
        if query.start is not None:
            terms.append(f"{order}.created_at >= ?")
            values.append(query.start)
        if query.end is not None:
            terms.append(f"{order}.created_at <= ?")
            values.append(query.end)
        return f"SELECT {columns} FROM {source} WHERE {' AND '.join(terms)}", tuple(values)

    def _leading(self, query: Query) -> str | None:
        return next((name for name in query.equal if name in self._several), None)


def wipe(connection: apsw.Connection) -> bool:
    """Writes the file anew, if anything was erased since the last time; false while somebody else uses its log."""
    try:
        if connection.execute("SELECT count(*) FROM residue").get:
            connection.execute("VACUUM")
            connection.execute("DELETE FROM residue")
    finally:
        # Where there was no room for it, the write-ahead log has taken what was left.
        is_empty = truncate_wal(connection)
    return is_empty
