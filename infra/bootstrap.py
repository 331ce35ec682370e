"""The composition root of storage: which log, store and objects are opened, chosen in one place from the settings.

The adapters of a cluster are imported only where they are chosen: a studio on files starts in half the time.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

from domain.errors import UnavailableError
from domain.ports import Counters, EventLog, ObjectStore, ReadStore
from infra.settings import Settings
from infra.storage.file_objects import FileObjects
from infra.storage.sqlite_counters import SqliteCounters
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.project import VIEWS
from workers.reactions import PROGRESS

A = TypeVar("A", bound=EventLog | ReadStore | ObjectStore | Counters)


@contextlib.asynccontextmanager
async def adapters(settings: Settings) -> AsyncIterator[tuple[EventLog, ReadStore, ObjectStore]]:
    """Waits for servers that do not answer yet. Raises UnavailableError for a folder that cannot be used."""
    async with contextlib.AsyncExitStack() as stack:
        yield (
            await opened(stack, open_log(settings)),
            await opened(stack, _store(settings)),
            await opened(stack, _objects(settings)),
        )


@contextlib.asynccontextmanager
async def log_and_store(settings: Settings) -> AsyncIterator[tuple[EventLog, ReadStore]]:
    """All that folding takes."""
    async with contextlib.AsyncExitStack() as stack:
        yield await opened(stack, open_log(settings)), await opened(stack, _store(settings))


async def opened(stack: contextlib.AsyncExitStack, opening: Awaitable[A]) -> A:
    adapter = await opening
    stack.push_async_callback(adapter.close)
    return adapter


async def open_log(settings: Settings) -> EventLog:
    if settings.log == "sqlite":
        return await SqliteLog.open(_folder(settings) / "events.db")
    from infra import cluster

    return await cluster.kafka_log(settings)


@contextlib.asynccontextmanager
async def counters(settings: Settings) -> AsyncIterator[Counters]:
    """What the API's processes count together, beside the read store."""
    async with contextlib.AsyncExitStack() as stack:
        yield await opened(stack, _counters(settings))


async def _counters(settings: Settings) -> Counters:
    if settings.store == "sqlite":
        return await SqliteCounters.open(_folder(settings) / "counters.db")
    from infra import cluster

    return await cluster.mongo_counters(settings)


async def _store(settings: Settings) -> ReadStore:
    if settings.store == "sqlite":
        return await SqliteStore.open(_folder(settings) / "views.db", (*VIEWS, PROGRESS))
    from infra import cluster

    return await cluster.mongo_store(settings)


async def _objects(settings: Settings) -> ObjectStore:
    if settings.objects == "files":
        return await FileObjects.open(_folder(settings) / "objects")
    from infra import cluster

    return await cluster.s3_objects(settings)


def _folder(settings: Settings) -> Path:
    folder = settings.folder
    try:
        # SQLite takes names in UTF-8 alone.
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
    except UnicodeEncodeError:
        raise UnavailableError(
            f"The data folder {folder} cannot be used: its name is not UTF-8. Choose another with --data."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnavailableError(
            f"The data folder {folder} cannot be made: {reason}. Choose another with --data."
        ) from None
    return folder
