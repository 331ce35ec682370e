"""The harnesses: what each adapter must offer to be tested. To join, an adapter adds its own to the tables below."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
import pytest

from domain.ports import EventLog, ObjectStore, ReadStore, Topic, View
from infra.storage.file_objects import FileObjects
from infra.storage.sqlite import Readers
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from tests.contract.kafka import KafkaLogHarness
from tests.contract.mongo import MongoStoreHarness
from tests.contract.s3 import S3ObjectsHarness

PATIENCE: Final = 30.0


class LogHarness(Protocol):
    """One log, and the names of its two topics: one that keeps every record, one that erases."""

    kept: Topic
    compacted: Topic
    max_record_bytes: int

    async def open(self) -> EventLog:
        """A fresh connection."""

    async def break_connection(self, log: EventLog) -> None:
        """Cuts what `log` is connected by, as an outage would."""

    async def close(self) -> None: ...


class StoreHarness(Protocol):
    async def open(self, views: Sequence[View[Any]]) -> ReadStore: ...

    async def break_connection(self, store: ReadStore) -> None: ...

    async def close(self) -> None: ...


class ObjectsHarness(Protocol):
    async def open(self) -> ObjectStore: ...

    async def close(self) -> None: ...


class SqliteLogHarness:
    kept = Topic("kept", partitions=4)
    compacted = Topic("compacted", partitions=2, compacted=True)
    max_record_bytes = 100_000

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.sqlite"
        self._opened: list[SqliteLog] = []

    async def open(self) -> SqliteLog:
        topics = {topic.name: topic for topic in (self.kept, self.compacted)}
        log = await SqliteLog.open(self.path, topics, self.max_record_bytes)
        self._opened.append(log)
        return log

    async def break_connection(self, log: EventLog) -> None:
        assert isinstance(log, SqliteLog)
        await asyncio.to_thread(lambda: cut(log._readers, log._write_connection, log._poll_connection))

    async def close(self) -> None:
        for log in self._opened:
            await log.close()


class SqliteStoreHarness:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.sqlite"
        self._opened: list[SqliteStore] = []

    async def open(self, views: Sequence[View[Any]]) -> SqliteStore:
        store = await SqliteStore.open(self.path, views)
        self._opened.append(store)
        return store

    async def break_connection(self, store: ReadStore) -> None:
        assert isinstance(store, SqliteStore)
        await asyncio.to_thread(lambda: cut(store._readers, store._connection))

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class FileObjectsHarness:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "objects"

    async def open(self) -> FileObjects:
        return await FileObjects.open(self.root)

    async def close(self) -> None: ...


LOGS: Final[dict[str, Callable[[Path], LogHarness]]] = {"sqlite": SqliteLogHarness, "kafka": KafkaLogHarness}
STORES: Final[dict[str, Callable[[Path], StoreHarness]]] = {"sqlite": SqliteStoreHarness, "mongo": MongoStoreHarness}
OBJECTS: Final[dict[str, Callable[[Path], ObjectsHarness]]] = {"files": FileObjectsHarness, "s3": S3ObjectsHarness}


@pytest.fixture(params=LOGS)
async def logs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogHarness]:
    harness = LOGS[request.param](tmp_path)
    yield harness
    await harness.close()


@pytest.fixture(params=STORES)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreHarness]:
    harness = STORES[request.param](tmp_path)
    yield harness
    await harness.close()


@pytest.fixture(params=OBJECTS)
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    harness = OBJECTS[request.param](tmp_path)
    store = await harness.open()
    yield store
    await store.close()
    await harness.close()


def cut(readers: Readers, *connections: apsw.Connection | None) -> None:
    for connection in connections:
        _cut(connection)
    for _ in range(readers._threads):
        connection = readers._connections.get()
        _cut(connection)
        readers._connections.put(connection)


def _cut(connection: apsw.Connection | None) -> None:
    while connection is not None:
        try:
            connection.close(force=True)
        except apsw.ThreadingViolationError:
            continue
        return


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file of this process can grow beyond `free` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def too_many_files() -> Iterator[None]:
    """This process can open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
