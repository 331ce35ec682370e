"""What each process of a studio runs."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn
from uuid_utils import uuid7

from api.app import create_app
from api.http.entrance import ABORT
from api.http.feed import Feed
from api.http.hosts import AllowedHosts, origins
from api.http.limits import Limiter
from api.http.quota import Quota
from api.http.renditions import Renditions
from api.http.sealing import Seals
from api.http.services import Services
from commands import keys
from commands.adapters import register
from commands.waiting import StoredViews
from domain.datasets import Dataset
from domain.errors import UnavailableError
from domain.events import timestamp
from domain.journal import Journal, until_done
from domain.keys import Key, KeyRequest
from domain.models import KNOWN, Registry
from domain.ports import Counters, EventLog, ObjectStore, ReadStore
from domain.trainings import Training
from domain.webhooks import Delivery
from infra import bootstrap, logs, tracing
from infra.garbage import collect_rarely
from infra.loopback import is_loopback_alone
from infra.serving import Patience, Server, listen, protocol
from infra.settings import Settings, path, unusable
from projections.freshness.current import CurrentViews
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail
from projections.freshness.watermarks import Watermarks
from projections.hosts.local import LocalHost
from workers import dataset_rebuild, generation, mastering, purging, trainings, webhooks
from workers import datasets as building
from workers.ab_tests import ABTestReaction
from workers.adapters import AdapterFiles
from workers.claims import Claims
from workers.dataset_erasures import ErasureFromDatasets
from workers.dataset_exports import ExportOfDatasets
from workers.dataset_folder import BuiltDatasets
from workers.dataset_rebuild import Rebuilt
from workers.engine import EngineError
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import Checkpoint, resolve
from workers.engines.loading import load
from workers.engines.reading import reader
from workers.feedback import ErasureOfFeedback, has_feedback
from workers.outgoing import Receivers
from workers.purging import PurgeOfDeleted
from workers.reactions import Reaction, Reactions
from workers.tracks import TracksInFolder
from workers.trade import BrokenError
from workers.webhooks import QueueingOfWebhooks

PATIENCE_SECONDS: Final = 5.0
REST_SECONDS: Final = 60.0
# Clients and proxies keep an idle connection for 60 s at most: closed before them, it would lose the request that is on
# its way.
KEPT_SECONDS: Final = 75

logger: Final = logging.getLogger(__name__)


class Purged(NamedTuple):
    """How many jobs lost their audio, the bytes of its masters, and how many kept theirs for the sake of feedback."""

    jobs: int
    size: int
    kept: int


@contextlib.asynccontextmanager
async def studio(settings: Settings) -> AsyncIterator[str]:
    """A whole studio in this process, behind its URL; leaving stops it cleanly.

    Raises EngineError for a model that is not there, UnavailableError for a folder or an address that cannot be used,
    and from the body's end an ExceptionGroup when a part of the studio fails.
    """
    checkpoint = resolve(settings.model)
    registry = Registry(checkpoint.model, reader=reader(checkpoint))
    async with bootstrap.adapters(settings) as (log, store, objects), bootstrap.counters(settings) as counters:
        services = _services(settings, (log, store, objects), LocalHost(log, store), registry, counters)
        working = partial(_work, settings, checkpoint, log, store, objects)
        reacting = _reactions(settings, log, store, objects, services.folded).run
        building_datasets = partial(_again, "The builder of datasets", _builder(settings, log, store, objects))
        learning = partial(_again, "The trainer", _trainer(settings, log, store, objects, services.folded))
        sending = partial(_again, webhooks.WHO, partial(_sender, settings, log, store, objects))
        async with _http(settings, services, working, reacting, building_datasets, learning, sending) as url:
            yield url


@contextlib.asynccontextmanager
async def api(settings: Settings) -> AsyncIterator[str]:
    """The API alone, behind its URL: other processes fold the views and generate. Raises as `studio` does."""
    registry = _registry(settings.model)
    async with bootstrap.adapters(settings) as (log, store, objects), bootstrap.counters(settings) as counters:
        services = _services(settings, (log, store, objects), Watermarks(log, store), registry, counters)
        async with _http(settings, services) as url:
            yield url


async def work(settings: Settings) -> None:
    """A worker, until cancelled. Raises EngineError for a model that cannot be loaded."""
    checkpoint = resolve(settings.model)
    async with bootstrap.adapters(settings) as (log, store, objects):
        await _work(settings, checkpoint, log, store, objects)


async def react(settings: Settings) -> None:
    """What follows from events by itself, until cancelled. Raises as Reactions.run does."""
    async with bootstrap.adapters(settings) as (log, store, objects), asyncio.TaskGroup() as tasks:
        folded = Watermarks(log, store)
        tasks.create_task(folded.run())
        tasks.create_task(_reactions(settings, log, store, objects, folded).run())
        tasks.create_task(_again("The builder of datasets", _builder(settings, log, store, objects)))
        tasks.create_task(_again(webhooks.WHO, partial(_sender, settings, log, store, objects)))


async def learn(settings: Settings) -> None:
    """A trainer, until cancelled."""
    async with bootstrap.adapters(settings) as (log, store, objects), asyncio.TaskGroup() as tasks:
        folded = Watermarks(log, store)
        tasks.create_task(folded.run())
        tasks.create_task(_trainer(settings, log, store, objects, folded)().run())


async def purge(settings: Settings, age: timedelta, *, dry_run: bool, keep_rated: bool = False) -> Purged:
    """Removes the audio of jobs that ended so long ago; `keep_rated` spares that of jobs with feedback.

    Raises UnavailableError where there is no studio.
    """
    _check_studio(settings)
    async with bootstrap.adapters(settings) as (log, store, objects):
        journal = _journal(log)
        before = timestamp(datetime.fromisoformat(journal.now()) - age)
        jobs = size = kept = 0
        async for job in purging.ended(store, before):
            if keep_rated and await has_feedback(store, job.id):
                kept += 1
                continue
            if not dry_run:
                await purging.purge(journal, objects, job)
            jobs += 1
            size += sum(sample.event.size for sample in job.kept)
        return Purged(jobs, size, kept)


async def create_key(settings: Settings, request: KeyRequest) -> tuple[Key, str]:
    """On the log itself, whether a studio runs on it or not: the key and its text. Raises InvalidError."""
    async with contextlib.AsyncExitStack() as stack:
        return await keys.create_on(_journal(await bootstrap.opened(stack, bootstrap.open_log(settings))), request)


async def list_keys(settings: Settings) -> list[Key]:
    """Newest first. Raises UnavailableError where there is no studio."""
    _check_studio(settings)
    async with contextlib.AsyncExitStack() as stack:
        found = await keys.logged(await bootstrap.opened(stack, bootstrap.open_log(settings)))
    return sorted(found.values(), key=lambda key: (key.created_at, key.id), reverse=True)


async def revoke_key(settings: Settings, key_id: str) -> Key:
    """Raises NotFoundError, and UnavailableError where there is no studio."""
    _check_studio(settings)
    async with contextlib.AsyncExitStack() as stack:
        return await keys.revoke_on(_journal(await bootstrap.opened(stack, bootstrap.open_log(settings))), key_id)


async def rebuild_dataset(settings: Settings, dataset_id: str) -> tuple[Dataset, Rebuilt]:
    """The dataset, and what became of building it again. Raises UnavailableError where there is no studio, and as
    `workers.dataset_rebuild` does.
    """
    _check_studio(settings)
    async with bootstrap.adapters(settings) as (log, store, objects):
        journal = _journal(log)
        dataset = await dataset_rebuild.find(journal, dataset_id)
        scratch = _scratch(settings)
        return dataset, await dataset_rebuild.rebuild(journal, store, objects, dataset, scratch)


def _check_studio(settings: Settings) -> None:
    if settings.log == "sqlite" and not (settings.folder / "events.db").exists():
        raise UnavailableError(f"There is no studio in {settings.folder}. Name its data folder with --data.")


def allowed_hosts(settings: Settings) -> AllowedHosts:
    """Raises InvalidError for a name that no host can have, and for what is no origin of a page."""
    try:
        pages = origins(settings.cors_allow_origins.split(","))
    except ValueError as error:
        form = "Write origins such as https://app.example.org with commas between, or * for all."
        raise unusable(settings, "cors_allow_origins", f"{error}. {form}") from None
    names = [name for name in (settings.allowed_hosts or "").split(",") if name.strip()]
    try:
        return AllowedHosts.of(settings.host, socket.gethostname(), names, pages)
    except ValueError as error:
        form = "Write names or addresses with commas between, without scheme and port, or * for all."
        raise unusable(settings, "allowed_hosts", f"{error}. {form}") from None


def _registry(name: str) -> Registry:
    """Workers have the model; what it reads of a prompt is known here only where its files are as well."""
    try:
        checkpoint = resolve(name)
    except EngineError:
        if (model := next((model for model in KNOWN if model.id == name), None)) is None:
            raise
        return Registry(model)
    return Registry(checkpoint.model, reader=reader(checkpoint))


def _services(
    settings: Settings,
    stores: tuple[EventLog, ReadStore, ObjectStore],
    folded: Folded,
    registry: Registry,
    counters: Counters,
) -> Services:
    log, store, objects = stores
    journal, tail = _journal(log), Tail(log, folded)
    limits = {"read": settings.read_limit, "write": settings.write_limit}
    return Services(
        journal=journal,
        views=CurrentViews(store, tail, folded),
        objects=objects,
        registry=registry,
        folded=folded,
        tail=tail,
        feed=Feed(journal, tail),
        renditions=Renditions(objects, settings.renditions_mb * 1_000_000),
        seals=Seals(objects),
        receivers=_receivers(settings),
        track_seconds=settings.track_seconds,
        quota=Quota(store, folded, settings.open_jobs),
        limiter=Limiter(counters, limits),
    )


def _receivers(settings: Settings) -> Receivers:
    return Receivers(loopback=settings.webhook_loopback)


def _sender(settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore) -> Claims[Delivery]:
    receivers = _receivers(settings)
    return webhooks.worker(_journal(log), store, objects, receivers, lease=settings.lease_seconds)


async def _again(who: str, make: Callable[[], Claims[Any]]) -> None:
    """One of several parts of a process, which takes the others down with it neither when it gives up nor later."""
    while True:
        try:
            await make().run()
        except* BrokenError as faults:
            logger.error("%s stands still for %g s: %s", who, REST_SECONDS, faults.exceptions[0])  # noqa: TRY400
        await asyncio.sleep(REST_SECONDS)


def _builder(
    settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore
) -> Callable[[], Claims[Dataset]]:
    return partial(building.worker, _journal(log), store, objects, _scratch(settings), lease=settings.lease_seconds)


def _scratch(settings: Settings) -> Path:
    """Where temporary files are: on the disk that keeps everything, as they may be larger than the memory."""
    return settings.folder / "cache" / "datasets"


def _reactions(settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore, folded: Folded) -> Reactions:
    """Every reaction of the project."""
    journal, scratch = _journal(log), _scratch(settings)
    reactions: list[Reaction] = [
        PurgeOfDeleted(journal, store, objects),
        ErasureOfFeedback(journal, store, folded),
        ABTestReaction(journal, store),
        ExportOfDatasets(journal, store, objects, scratch),
        ErasureFromDatasets(journal, store, objects, folded, scratch),
        QueueingOfWebhooks(journal, store),
    ]
    if settings.output_dir is not None:
        reactions.append(TracksInFolder(store, objects, path(settings, "output_dir")))
    return Reactions(journal, store, folded, reactions)


def _journal(log: EventLog) -> Journal:
    return Journal(log, lambda: timestamp(datetime.now(UTC)), lambda: str(uuid7()), tracing.span)


def _trainer(
    settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore, folded: Folded
) -> Callable[[], Claims[Training]]:
    journal = _journal(log)
    return partial(
        trainings.worker,
        journal,
        store,
        objects,
        BuiltDatasets(store, objects),
        partial(register, journal, StoredViews(store, folded)),
        folded=folded,
        place=settings.folder / "cache" / "training",
        lease=settings.lease_seconds,
        device=settings.device,
    )


async def _work(
    settings: Settings, checkpoint: Checkpoint, log: EventLog, store: ReadStore, objects: ObjectStore
) -> None:
    log_as = partial(logs.configure, "engine", settings.log_format, settings.log_level)
    rest = None if settings.unload_after == "off" else 60 * float(settings.unload_after)
    engine = EngineProcess(load, checkpoint, settings.device, unload_after=rest, log=log_as)
    adapters = AdapterFiles(objects, settings.folder / "cache" / "adapters")
    try:
        await asyncio.gather(engine.start(), asyncio.to_thread(mastering.prepare))
        worker = generation.worker(
            _journal(log),
            store,
            objects,
            engine,
            checkpoint.model.id,
            capacity=lambda: engine.capacity,
            lease=settings.lease_seconds,
            model=checkpoint.model,
            adapters=adapters,
        )
        await worker.run()
    finally:
        await engine.stop()
        adapters.close()


@contextlib.asynccontextmanager
async def _http(
    settings: Settings, services: Services, *beside: Callable[[], Coroutine[None, None, None]]
) -> AsyncIterator[str]:
    """The API behind its URL, and what runs beside it."""
    app = create_app(services, allowed_hosts(settings))
    listener = listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        http=protocol(Patience(), ABORT),
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=KEPT_SECONDS,
    )
    server = Server(config)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part()) for part in (services.folded.run, services.feed.run, *beside)]
        await services.feed.started.wait()
        await until_done(partial(services.folded.caught_up, PATIENCE_SECONDS), "The views")
        await _check_reach(settings, services)
        answered = tasks.create_task(server.serve(sockets=[listener]))
        try:
            collect_rarely()
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            services.feed.close()
            server.should_exit = True
            await asyncio.wait({answered})
            for task in running:
                task.cancel()


async def _check_reach(settings: Settings, services: Services) -> None:
    """Raises UnavailableError for a studio without keys that others than this machine can reach."""
    if settings.open or is_loopback_alone(settings.host) or not services.feed.keys.is_open:
        return
    # A first key may stand in what was not read yet.
    await services.tail.begun()
    if services.feed.keys.is_open:
        raise UnavailableError(
            f"This studio has no keys, so that everybody who reaches {settings.host} could use it. Make the first key "
            "with `text2song keys create --owner NAME --scope admin`, listen on 127.0.0.1, or set TEXT2SONG_OPEN=true "
            "where a proxy asks who comes."
        )
