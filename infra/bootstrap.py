"""The composition root: which adapters run, chosen in one place from the settings."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Final

import uvicorn
from msgspec import Struct
from uuid_utils import uuid7

from api.app import create_app
from api.feed import Feed
from api.renditions import Renditions
from api.services import Services
from domain.errors import UnavailableError
from domain.events import timestamp
from domain.journal import Journal
from domain.models import Registry
from domain.ports import EventLog, ReadStore
from infra.file_objects import FileObjects
from infra.kafka import KafkaAccess
from infra.kafka_log import KafkaLog
from infra.settings import Settings
from infra.sqlite_log import SqliteLog
from infra.sqlite_store import SqliteStore
from projections.faust_app import FaustHost
from projections.local import LocalHost
from projections.project import VIEWS
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import resolve
from workers.engines.loading import load
from workers.generation import GenerationWorker

PATIENCE_SECONDS: Final = 5.0


class Studio(Struct, frozen=True, kw_only=True):
    """Everything of one local process, opened but not yet running."""

    services: Services
    host: LocalHost
    engine: EngineProcess
    worker: GenerationWorker

    async def follow(self) -> None:
        """Keeps the views and the feed up with the log until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.host.run())
            tasks.create_task(self.services.feed.run())

    async def generate(self) -> None:
        """Until cancelled. Raises EngineError when the model cannot be loaded."""
        await self.engine.start()
        await self.worker.run()

    async def started(self) -> None:
        """Nothing can be missed any more, and the views are up to date unless that takes long."""
        await self.services.feed.started.wait()
        await self.host.caught_up(PATIENCE_SECONDS)


@contextlib.asynccontextmanager
async def open_studio(settings: Settings) -> AsyncIterator[Studio]:
    """Raises EngineError for a model that is not there, UnavailableError for a folder that cannot be used."""
    checkpoint = resolve(settings.model)
    folder = settings.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"The data folder {folder} cannot be made: {error.strerror}. Choose another with --data."
        ) from None
    async with contextlib.AsyncExitStack() as stack:
        log = await SqliteLog.open(folder / "events.db")
        stack.push_async_callback(log.close)
        store = await SqliteStore.open(folder / "views.db", VIEWS)
        stack.push_async_callback(store.close)
        objects = await FileObjects.open(folder / "objects")
        stack.push_async_callback(objects.close)
        engine = EngineProcess(load, checkpoint, settings.device)
        stack.push_async_callback(engine.stop)
        journal = Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))
        host = LocalHost(log, store)
        yield Studio(
            services=Services(
                journal=journal,
                store=store,
                objects=objects,
                registry=Registry(checkpoint.model),
                views=host,
                feed=Feed(journal),
                renditions=Renditions(objects),
            ),
            host=host,
            engine=engine,
            worker=GenerationWorker(journal, store, objects, engine, checkpoint.model.id, lease=settings.lease_seconds),
        )


def projection_host(settings: Settings) -> FaustHost:
    """The views' host of a cluster, not yet connected to anything."""
    access = KafkaAccess(servers=settings.log.removeprefix("kafka://"))

    @contextlib.asynccontextmanager
    async def adapters() -> AsyncIterator[tuple[EventLog, ReadStore]]:
        async with contextlib.AsyncExitStack() as stack:
            log = await KafkaLog.open(access, prefix=settings.topic_prefix)
            stack.push_async_callback(log.close)
            store = await SqliteStore.open(settings.folder / "views.db", VIEWS)
            stack.push_async_callback(store.close)
            yield log, store

    return FaustHost(
        access.servers,
        adapters,
        instance=settings.instance,
        prefix=settings.topic_prefix,
        credentials=access.faust_credentials(),
    )


class _Server(uvicorn.Server):
    """Leaves the signals alone: there is more to stop than the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A running studio behind its URL; leaving stops it cleanly.

    Raises as open_studio does, and from the body's end an ExceptionGroup when a part of the studio fails.
    """
    async with open_studio(settings) as studio:
        listener = listen(settings.host, settings.port)
        config = uvicorn.Config(
            create_app(studio.services),
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=3,
        )
        server = _Server(config)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(studio.follow()), tasks.create_task(studio.generate())]
            await studio.started()
            answering = tasks.create_task(server.serve(sockets=[listener]))
            try:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                yield f"http://{host}:{listener.getsockname()[1]}"
            finally:
                studio.services.feed.close()
                server.should_exit = True
                await asyncio.wait({answering})
                for task in running:
                    task.cancel()


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
