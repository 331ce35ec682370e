"""The composition root: which adapters run, chosen in one place from the settings."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import uvicorn
from botocore.utils import is_valid_uri
from uuid_utils import uuid7

from api.app import create_app
from api.feed import Feed
from api.renditions import Renditions
from api.services import Services
from domain.errors import ConflictError, UnavailableError
from domain.events import timestamp
from domain.journal import Journal, until_done
from domain.models import KNOWN, Model, Registry
from domain.ports import EventLog, ObjectStore, ReadStore
from infra.file_objects import FileObjects
from infra.kafka import KafkaAccess
from infra.kafka_log import KafkaLog
from infra.mongo_store import AddressError, MongoStore
from infra.s3_objects import Bucket, S3Objects
from infra.settings import Settings, refused
from infra.sqlite_log import SqliteLog
from infra.sqlite_store import SqliteStore
from projections import faust_app
from projections import rebuild as rebuilding
from projections.current import CurrentViews
from projections.faust_app import FaustHost
from projections.folded import Folded
from projections.local import LocalHost
from projections.project import VIEWS
from projections.rebuild import Comparison, Progress
from projections.tail import Tail
from projections.watermarks import Watermarks
from workers import audio
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import Checkpoint, resolve
from workers.engines.loading import load
from workers.generation import GenerationWorker

A = TypeVar("A", bound=EventLog | ReadStore | ObjectStore)

PATIENCE_SECONDS: Final = 5.0
DATABASE: Final = "text2song"
KAFKA_FORM: Final = (
    "Write kafka://host:port, or several with commas between; user and password are settings of their own."
)
MONGO_FORM: Final = (
    "Write mongodb://user:password@host:port/database, and in the user and the password %40 for @, %3A for :, %2F for "
    "/, %3F for ? and %25 for %."
)


@contextlib.asynccontextmanager
async def adapters(settings: Settings) -> AsyncIterator[tuple[EventLog, ReadStore, ObjectStore]]:
    """Waits for servers that do not answer yet. Raises UnavailableError for a folder that cannot be used."""
    async with contextlib.AsyncExitStack() as stack:
        yield (
            await _opened(stack, _log(settings)),
            await _opened(stack, _store(settings)),
            await _opened(stack, _objects(settings)),
        )


@contextlib.asynccontextmanager
async def _log_and_store(settings: Settings) -> AsyncIterator[tuple[EventLog, ReadStore]]:
    """All that folding takes."""
    async with contextlib.AsyncExitStack() as stack:
        yield await _opened(stack, _log(settings)), await _opened(stack, _store(settings))


async def _opened(stack: contextlib.AsyncExitStack, opening: Awaitable[A]) -> A:
    adapter = await opening
    stack.push_async_callback(adapter.close)
    return adapter


async def _log(settings: Settings) -> EventLog:
    if settings.log == "sqlite":
        return await SqliteLog.open(_folder(settings) / "events.db")
    opening = partial(KafkaLog.open, kafka(settings), prefix=settings.kafka_prefix, replicas=settings.kafka_replication)
    return await until_done(opening, "The event log")


async def _store(settings: Settings) -> ReadStore:
    if settings.store == "sqlite":
        return await SqliteStore.open(_folder(settings) / "views.db", VIEWS)
    return await _mongo_store(settings)


async def _mongo_store(settings: Settings, *, outdated: bool = False) -> MongoStore:
    opening = partial(MongoStore.open, *mongo(settings), VIEWS, outdated=outdated)
    try:
        return await until_done(opening, "The read store")
    except AddressError as error:
        raise refused(settings, "store", f"{error} {MONGO_FORM}") from None


async def _objects(settings: Settings) -> ObjectStore:
    if settings.objects == "files":
        return await FileObjects.open(_folder(settings) / "objects")
    return await until_done(partial(S3Objects.open, _bucket(settings)), "The object store")


def _folder(settings: Settings) -> Path:
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"The data folder {settings.folder} cannot be made: {error.strerror}. Choose another with --data."
        ) from None
    return settings.folder


def kafka(settings: Settings) -> KafkaAccess:
    """Raises InvalidError for a log that is no list of servers, and for SASL without a login."""
    if settings.kafka_security.startswith("SASL") and None in (settings.kafka_username, settings.kafka_password):
        raise refused(
            settings,
            "kafka_security",
            "it needs a login. Set TEXT2SONG_KAFKA_USERNAME and TEXT2SONG_KAFKA_PASSWORD, or choose PLAINTEXT or SSL.",
        )
    try:
        return KafkaAccess(
            servers=settings.log.removeprefix("kafka://"),
            security_protocol=settings.kafka_security,
            sasl_mechanism=settings.kafka_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password,
            cafile=settings.kafka_ca,
        )
    except ValueError:
        raise refused(settings, "log", f"it names no servers of Kafka. {KAFKA_FORM}") from None


def mongo(settings: Settings) -> tuple[str, str]:
    """The URI and the database that its path names."""
    address = settings.store.partition("://")[2].partition("?")[0]
    return settings.store, address.partition("/")[2].strip("/") or DATABASE


def _bucket(settings: Settings) -> Bucket:
    """Raises InvalidError for an endpoint that no client can connect to."""
    if settings.s3_endpoint is not None and not _is_endpoint(settings.s3_endpoint):
        raise refused(
            settings,
            "s3_endpoint",
            "it names no server. Write http://host:port or https://host:port, the host in letters, digits, - and dots.",
        )
    return Bucket(
        endpoint=settings.s3_endpoint,
        name=settings.objects.removeprefix("s3://"),
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
    )


def _is_endpoint(url: str) -> bool:
    try:
        return is_valid_uri(url) and urlsplit(url).port != 0
    except ValueError:
        return False


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A whole studio in this process, behind its URL; leaving stops it cleanly.

    Raises EngineError for a model that is not there, UnavailableError for a folder or an address that cannot be used,
    and from the body's end an ExceptionGroup when a part of the studio fails.
    """
    checkpoint = resolve(settings.model)
    async with adapters(settings) as (log, store, objects):
        services = _services(log, store, objects, checkpoint.model, LocalHost(log, store))
        async with _answering(settings, services, partial(_generate, settings, checkpoint, log, store, objects)) as url:
            yield url


@contextlib.asynccontextmanager
async def answering(settings: Settings) -> AsyncIterator[str]:
    """The API alone, behind its URL: other processes fold the views and generate. Raises as `serving` does."""
    model = next((model for model in KNOWN if model.id == settings.model), None) or resolve(settings.model).model
    async with adapters(settings) as (log, store, objects):
        services = _services(log, store, objects, model, Watermarks(log, store))
        async with _answering(settings, services) as url:
            yield url


async def generate(settings: Settings) -> None:
    """A worker, until cancelled. Raises EngineError for a model that cannot be loaded."""
    checkpoint = resolve(settings.model)
    async with adapters(settings) as (log, store, objects):
        await _generate(settings, checkpoint, log, store, objects)


async def fold(settings: Settings) -> None:
    """A host of the views, until cancelled: Faust's for a log on Kafka, which processes share."""
    if settings.log != "sqlite":
        await faust_app.run(projection_host(settings))
        return
    async with _log_and_store(settings) as (log, store):
        await LocalHost(log, store).run()


async def rebuild(
    settings: Settings, topics: Sequence[str], progress: Callable[[Progress], object]
) -> list[Comparison]:
    """Folds the views of the topics anew while the old ones serve. Raises ConflictError for a store on SQLite."""
    if settings.store == "sqlite":
        raise ConflictError(
            "Views on SQLite are not replaced while they serve: stop the studio, delete "
            f"{settings.folder / 'views.db'}, and the next start folds them anew."
        )
    async with contextlib.AsyncExitStack() as stack:
        log = await _opened(stack, _log(settings))
        store = await _opened(stack, _mongo_store(settings, outdated=True))
        # Or else the garbage collector looks through every module again and again while the events pass.
        gc.freeze()
        return await rebuilding.rebuild(log, store, topics, progress)


def projection_host(settings: Settings) -> FaustHost:
    """The views' host of a cluster, not yet connected to anything. Raises InvalidError for a log on SQLite."""
    if settings.log == "sqlite":
        raise refused(
            settings, "log", "Faust folds a log on Kafka. Set kafka://host:port, or fold with `text2song project`."
        )
    access = kafka(settings)
    return FaustHost(
        access.servers,
        partial(_log_and_store, settings),
        instance=settings.instance or socket.gethostname(),
        prefix=settings.kafka_prefix,
        credentials=access.faust_credentials(),
    )


def _services(log: EventLog, store: ReadStore, objects: ObjectStore, model: Model, folded: Folded) -> Services:
    journal, tail = _journal(log), Tail(folded)
    return Services(
        journal=journal,
        views=CurrentViews(store, tail, folded),
        objects=objects,
        registry=Registry(model),
        folded=folded,
        tail=tail,
        feed=Feed(journal, tail),
        renditions=Renditions(objects),
    )


def _journal(log: EventLog) -> Journal:
    return Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))


async def _generate(
    settings: Settings, checkpoint: Checkpoint, log: EventLog, store: ReadStore, objects: ObjectStore
) -> None:
    engine = EngineProcess(load, checkpoint, settings.device)
    try:
        await asyncio.gather(engine.start(), asyncio.to_thread(audio.prepare))
        worker = GenerationWorker(
            _journal(log), store, objects, engine, checkpoint.model.id, lease=settings.lease_seconds
        )
        await worker.run()
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def _answering(
    settings: Settings, services: Services, *beside: Callable[[], Coroutine[None, None, None]]
) -> AsyncIterator[str]:
    """The API behind its URL, and what runs beside it."""
    listener = listen(settings.host, settings.port)
    config = uvicorn.Config(
        create_app(services),
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part()) for part in (services.folded.run, services.feed.run, *beside)]
        await services.feed.started.wait()
        await until_done(partial(services.folded.caught_up, PATIENCE_SECONDS), "The views")
        answered = tasks.create_task(server.serve(sockets=[listener]))
        try:
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            services.feed.close()
            server.should_exit = True
            await asyncio.wait({answered})
            for task in running:
                task.cancel()


class _Server(uvicorn.Server):
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
