"""The event log in one SQLite file: durable, ordered, and open to any number of processes at once."""

import asyncio
import logging
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Self, TypeAlias, TypeVar

import apsw
import msgspec
from msgspec.structs import replace

from domain.aggregates import TOPICS
from domain.errors import ConflictError, TooLargeError, UnavailableError, UncertainError
from domain.ports import Batch, Message, Position, Record, Topic, TopicPartition
from infra.storage.log_table import LogTable
from infra.storage.recent import Recent
from infra.storage.sqlite import (
    CHECKPOINT_PAGES,
    Readers,
    advise,
    connect,
    is_new,
    transaction,
    truncate_wal,
    write_ahead,
)

T = TypeVar("T")
Row: TypeAlias = tuple[TopicPartition, Message, bytes]  # its headers, encoded
Append: TypeAlias = tuple[list[Row], asyncio.Future[list[Position]]]

BATCH: Final = 1_000
POLL_SECONDS: Final = 0.002
IDLE_POLL_SECONDS: Final = 0.02
ACTIVE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.1
APPLICATION_ID: Final = 0x7432736C
ONE_OF_EACH: Final = {name: replace(topic, partitions=1) for name, topic in TOPICS.items()}
HEADS: Final = """
CREATE TABLE heads (
    topic TEXT, partition INTEGER, compacted INTEGER NOT NULL, next INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID
"""

logger: Final = logging.getLogger(__name__)


class SqliteLog:
    def __init__(
        self,
        path: Path,
        topics: Mapping[str, Topic],
        max_record_bytes: int,
        sweep_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.topics = topics
        self._path = path
        self._max_record_bytes = max_record_bytes
        self._sweep_seconds = sweep_seconds
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tables: dict[TopicPartition, LogTable] = {}
        self._heads: dict[TopicPartition, int] = {}
        self._recent = defaultdict[TopicPartition, Recent](Recent)
        self._news = asyncio.Event()
        self._pending: list[Append] = []
        self._queue: SimpleQueue[list[Append] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._unerased = True
        self._readers = Readers(path)
        self._write_connection: apsw.Connection | None = None
        self._poll_connection: apsw.Connection | None = None
        self._writer = threading.Thread(target=self._write, name=f"{path.name} writer", daemon=True)
        self._poller = threading.Thread(target=self._poll, name=f"{path.name} poller", daemon=True)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        topics: Mapping[str, Topic] = ONE_OF_EACH,
        max_record_bytes: int = 1_000_000,
        *,
        sweep_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Raises UnavailableError when the file cannot be used, and ConflictError when its topics are kept otherwise.

        A topic that the file has keeps the partitions it began with.
        Records older than their topic's retention, by `clock`, are deleted every `sweep_seconds`.
        """
        self = cls(Path(path), topics, max_record_bytes, sweep_seconds, clock)
        await asyncio.to_thread(self._prepare)
        self._writer.start()
        return self

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        rows = [self._row(message) for message in messages]
        if self._closing.is_set():
            raise UnavailableError(f"The event log {self._path} is closed.")
        if not rows:
            return []
        if not self._pending:
            self._loop.call_soon(self._hand_over)
        done: asyncio.Future[list[Position]] = self._loop.create_future()
        self._pending.append((rows, done))
        return await done

    async def read(self, topic: str, partition: int, offset: int, limit: int = BATCH) -> list[Record]:
        ranges = self._known({(topic, partition): (offset, sys.maxsize)})
        records, _ = await self._readers.run(lambda connection: self._fetch(connection, ranges, limit))
        return records

    async def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[Batch[Record]]:
        at = dict(self._known(start))
        if self._poller.ident is None and not self._closing.is_set():
            self._poller.start()
        while not self._closing.is_set():
            behind = {key: (offset, head) for key, offset in at.items() if offset < (head := self._heads.get(key, 0))}
            if not behind:
                await self._news.wait()
                continue
            try:
                found = self._shared(behind)
                if found is None:
                    found = await self._readers.run(partial(self._fetch, ranges=behind, limit=BATCH))
            except UnavailableError as error:
                logger.warning("A follower of the event log waits: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            at |= found[1]
            yield Batch(*found)

    async def ends(self, topic: str) -> dict[int, int]:
        sql = "SELECT partition, next FROM heads WHERE topic = ?"
        rows: list[Any] = await self._readers.run(lambda connection: connection.execute(sql, (topic,)).fetchall())
        return dict(rows)

    async def close(self) -> None:
        """Finishes the appends already made; followers end."""
        self._hand_over()
        self._closing.set()
        self._announce()
        if self._poller.ident is not None:
            await asyncio.to_thread(self._poller.join)
        await self._readers.close()
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)

    def _prepare(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._write_connection = self._connect(apsw.SQLITE_OPEN_CREATE)
            write_ahead(connection)
            with transaction(connection):
                if is_new(connection, APPLICATION_ID):
                    connection.execute(HEADS)
                self._claim_topics(connection)
            self._sweep()
        except (apsw.Error, OSError) as error:
            raise UnavailableError(f"The event log cannot be opened: {advise(self._path, error)}") from error

    def _connect(self, create: int = 0) -> apsw.Connection:
        connection = connect(self._path, apsw.SQLITE_OPEN_READWRITE | create)
        connection.pragma("synchronous", "FULL")
        connection.pragma("secure_delete", "ON")
        connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        return connection

    def _claim_topics(self, connection: apsw.Connection) -> None:
        grouped = "SELECT topic, count(*), max(compacted) FROM heads GROUP BY topic"
        known = {name: (partitions, bool(compacted)) for name, partitions, compacted in connection.execute(grouped)}
        for topic in self.topics.values():
            partitions, compacted = known.get(topic.name, (topic.partitions, topic.compacted))
            if compacted != topic.compacted:
                kept = {True: "compacted", False: "whole"}
                raise ConflictError(
                    f"{self._path} keeps {topic.name!r} {kept[compacted]}; asked for was {kept[topic.compacted]}. "
                    "That cannot change once a topic exists."
                )
            tables = {(topic.name, number): LogTable(topic, number) for number in range(partitions)}
            if topic.name not in known:
                for at, table in tables.items():
                    connection.execute(table.create)
                    connection.execute(
                        "INSERT INTO heads (topic, partition, compacted) VALUES (?, ?, ?)", (*at, topic.compacted)
                    )
            self._tables |= tables
            self.topics = {**self.topics, topic.name: replace(topic, partitions=partitions)}

    def _known(self, partitions: Mapping[TopicPartition, T]) -> Mapping[TopicPartition, T]:
        for topic, partition in partitions.keys() - self._tables.keys():
            raise ValueError(f"The event log has no partition {partition} of a topic {topic!r}.")
        return partitions

    def _row(self, message: Message) -> Row:
        if (topic := self.topics.get(message.topic)) is None:
            raise ValueError(f"The event log has no topic {message.topic!r}.")
        if message.value is None and not topic.compacted:
            raise ValueError(f"The topic {topic.name!r} erases nothing, so it takes no tombstone of {message.key!r}.")
        headers = msgspec.json.encode(message.headers)
        if (size := len(message.key.encode()) + len(headers) + len(message.value or b"")) > self._max_record_bytes:
            raise TooLargeError(
                f"A record of {size:,} bytes on {topic.name!r} is over the limit of {self._max_record_bytes:,} bytes; "
                "nothing was appended."
            )
        place = zlib.crc32((message.partition_key or message.key).encode()) % topic.partitions
        return (topic.name, place), message, headers

    def _hand_over(self) -> None:
        if self._pending:
            self._queue.put(self._pending)
            self._pending = []

    def _fetch(
        self, connection: apsw.Connection, ranges: Mapping[TopicPartition, tuple[int, int]], limit: int
    ) -> tuple[list[Record], dict[TopicPartition, int]]:
        """The records between two offsets of each partition, and the offsets from which to go on."""
        records: list[Record] = []
        reached: dict[TopicPartition, int] = {}
        share = max(1, limit // len(ranges))
        for (topic, partition), (start, end) in ranges.items():
            select = self._tables[topic, partition].select
            rows: list[tuple[Any, ...]] = connection.execute(select, (start, end, share)).fetchall()
            for offset, key, value, headers in rows:
                records.append(Record(Position(topic, partition, offset), key, value, _headers.decode(headers)))
            reached[topic, partition] = rows[-1][0] + 1 if len(rows) == share else end
        return records, reached

    def _shared(
        self, ranges: Mapping[TopicPartition, tuple[int, int]]
    ) -> tuple[list[Record], dict[TopicPartition, int]] | None:
        """The same without asking the file, which every follower would do after every append."""
        records: list[Record] = []
        for at, (start, end) in ranges.items():
            if (found := self._recent[at].between(start, end)) is None:
                return None
            records += found
        return records, {at: end for at, (_, end) in ranges.items()}

    def _write(self) -> None:
        closing = False
        sweep_at = time.monotonic() + self._sweep_seconds
        while not closing:
            group: list[Append] = []
            try:
                taken = self._queue.get(timeout=max(0.0, sweep_at - time.monotonic()))
                while taken is not None:
                    group += taken
                    taken = self._queue.get_nowait()
                closing = True
            except Empty:
                pass
            if group:
                self._commit(group)
            if time.monotonic() >= sweep_at:
                self._sweep()
                sweep_at = time.monotonic() + self._sweep_seconds
        if self._write_connection is not None:
            self._write_connection.close()

    def _commit(self, group: list[Append]) -> None:
        committing = False
        try:
            connection = self._write_connection = self._write_connection or self._connect()
            with transaction(connection):
                positions, heads, erasing = self._insert(connection, group)
                committing = True
        except Exception as error:  # a dead writer would leave its callers waiting for ever
            self._drop_writer(error)
            unknown = committing and not _surely_not_committed(error)
            sentence = f"The event log could not be written: {advise(self._path, error)} "
            sentence += "It is not known whether this append is on it." if unknown else "Nothing was appended."
            failure = UncertainError if unknown else UnavailableError
            self._loop.call_soon_threadsafe(_refuse, group, failure, sentence)
            return
        if erasing:
            self._unerased = not truncate_wal(connection)
        self._loop.call_soon_threadsafe(self._settle, group, positions, heads)

    def _insert(
        self, connection: apsw.Connection, group: list[Append]
    ) -> tuple[list[list[Position]], dict[TopicPartition, int], bool]:
        heads: dict[TopicPartition, int] = {}
        inserts: dict[TopicPartition, list[tuple[int, str, bytes | None, bytes, float]]] = {}
        erasures = defaultdict[TopicPartition, list[tuple[str, int]]](list)
        positions: list[list[Position]] = []
        now = self._clock()
        for rows, _ in group:
            placed: list[Position] = []
            for at, message, headers in rows:
                if (offset := heads.get(at)) is None:
                    head = "SELECT next FROM heads WHERE topic = ? AND partition = ?"
                    offset = connection.execute(head, at).get
                    inserts[at] = []
                heads[at] = offset + 1
                inserts[at].append((offset, message.key, message.value, headers, now))
                if message.value is None:
                    erasures[at].append((message.key, offset))
                placed.append(Position(*at, offset))
            positions.append(placed)
        for at, bindings in inserts.items():
            connection.executemany(self._tables[at].insert, bindings)
        for at, ends in erasures.items():
            connection.execute(self._tables[at].erase, (msgspec.json.encode(ends).decode(),))
        connection.executemany(
            "UPDATE heads SET next = ? WHERE topic = ? AND partition = ?", [(end, *at) for at, end in heads.items()]
        )
        return positions, heads, bool(erasures)

    def _sweep(self) -> None:
        try:
            connection = self._write_connection = self._write_connection or self._connect()
            with transaction(connection):
                for table in self._tables.values():
                    if table.retention_seconds is not None:
                        connection.execute(table.expire, (self._clock() - table.retention_seconds,))
                self._loop.call_soon_threadsafe(self._recent.clear)
            if self._unerased:
                self._unerased = not truncate_wal(connection)
        except apsw.Error as error:
            self._drop_writer(error)
            logger.warning("Old records could not be deleted; trying again soon: %s", advise(self._path, error))

    def _drop_writer(self, error: Exception) -> None:
        if self._write_connection is not None and not isinstance(error, (apsw.FullError, apsw.BusyError)):
            self._write_connection.close(force=True)
            self._write_connection = None

    def _settle(self, group: list[Append], positions: list[list[Position]], heads: dict[TopicPartition, int]) -> None:
        appended = defaultdict[TopicPartition, list[Record]](list)
        for (rows, done), result in zip(group, positions, strict=True):
            if not done.done():
                done.set_result(result)
            for (at, message, _), position in zip(rows, result, strict=True):
                appended[at].append(Record(position, message.key, message.value, message.headers))
        for at, records in appended.items():
            self._recent[at].add(records)
        self._publish(heads)

    def _publish(self, heads: Mapping[TopicPartition, int]) -> None:
        if risen := {key: head for key, head in heads.items() if head > self._heads.get(key, 0)}:
            self._heads |= risen
            self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _poll(self) -> None:
        """Watches for what other processes append."""
        seen, active, pause = None, time.monotonic(), POLL_SECONDS
        while not self._closing.wait(pause):
            try:
                connection = self._poll_connection = self._poll_connection or connect(self._path)
                version = connection.pragma("data_version")
                if version != seen:
                    rows: list[tuple[Any, ...]] = connection.execute(
                        "SELECT topic, partition, next FROM heads"
                    ).fetchall()
                    heads = {(topic, partition): head for topic, partition, head in rows}
                    # What this process appends it knows by itself; its heartbeats would keep it looking.
                    if any(head > self._heads.get(key, 0) for key, head in heads.items()):
                        self._loop.call_soon_threadsafe(self._publish, heads)
                        active = time.monotonic()
                    seen = version
            except apsw.Error as error:
                if self._poll_connection is not None:
                    logger.warning("Polling the event log failed; retrying: %s", advise(self._path, error))
                self._poll_connection = seen = None
            recent = time.monotonic() - active < ACTIVE_SECONDS
            pause = POLL_SECONDS if recent else min(pause * 1.5, IDLE_POLL_SECONDS)
        if self._poll_connection is not None:
            self._poll_connection.close()


def _surely_not_committed(error: Exception) -> bool:
    """A commit is the last frame written, so a write that failed was no commit; a flush that failed may be one."""
    written = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE
    return written or isinstance(error, (apsw.FullError, apsw.BusyError))


def _refuse(group: list[Append], failure: type[Exception], sentence: str) -> None:
    for _, done in group:
        if not done.done():
            done.set_exception(failure(sentence))


_headers: Final = msgspec.json.Decoder(dict[str, str])
