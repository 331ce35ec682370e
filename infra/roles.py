"""What each process of a studio runs."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import uvicorn
from uuid_utils import uuid7

from api.app import create_app
from api.http.feed import Feed
from api.http.hosts import AllowedHosts
from api.http.renditions import Renditions
from api.http.sealing import Seals
from api.http.services import Services
from commands.adapters import register
from commands.waiting import StoredViews
from domain.datasets import Dataset
from domain.errors import UnavailableError
from domain.events import timestamp
from domain.journal import Journal, until_done
from domain.models import KNOWN, Registry
from domain.ports import EventLog, ObjectStore, ReadStore
from infra import bootstrap
from infra.settings import Settings, unusable
from projections.freshness.current import CurrentViews
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail
from projections.freshness.watermarks import Watermarks
from projections.hosts.local import LocalHost
from workers import dataset_rebuild, generation, mastering, purging, trainings
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
from workers.purging import PurgeOfDeleted
from workers.reactions import Reaction, Reactions

PATIENCE_SECONDS: Final = 5.0


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
    async with bootstrap.adapters(settings) as (log, store, objects):
        services = _services(log, store, LocalHost(log, store), registry, _renditions(settings, objects))
        working = partial(_work, settings, checkpoint, log, store, objects)
        reacting = _reactions(settings, log, store, objects, services.folded).run
        building_datasets = _builder(settings, log, store, objects).run
        learning = partial(_learn, settings, log, store, objects, services.folded)
        async with _http(settings, services, working, reacting, building_datasets, learning) as url:
            yield url


@contextlib.asynccontextmanager
async def api(settings: Settings) -> AsyncIterator[str]:
    """The API alone, behind its URL: other processes fold the views and generate. Raises as `studio` does."""
    registry = _registry(settings.model)
    async with bootstrap.adapters(settings) as (log, store, objects):
        services = _services(log, store, Watermarks(log, store), registry, _renditions(settings, objects))
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
        tasks.create_task(_builder(settings, log, store, objects).run())


async def learn(settings: Settings) -> None:
    """A trainer, until cancelled."""
    async with bootstrap.adapters(settings) as (log, store, objects), asyncio.TaskGroup() as tasks:
        folded = Watermarks(log, store)
        tasks.create_task(folded.run())
        tasks.create_task(_learn(settings, log, store, objects, folded))


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
            size += sum(sample.event.size for sample in job.samples)
        return Purged(jobs, size, kept)


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
    """Raises InvalidError for a name that no host can have."""
    names = [name for name in (settings.allowed_hosts or "").split(",") if name.strip()]
    try:
        return AllowedHosts.of(settings.host, socket.gethostname(), names)
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


def _services(log: EventLog, store: ReadStore, folded: Folded, registry: Registry, renditions: Renditions) -> Services:
    journal, tail = _journal(log), Tail(log, folded)
    return Services(
        journal=journal,
        views=CurrentViews(store, tail, folded),
        objects=renditions.objects,
        registry=registry,
        folded=folded,
        tail=tail,
        feed=Feed(journal, tail),
        renditions=renditions,
        seals=Seals(renditions.objects),
    )


def _builder(settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore) -> Claims[Dataset]:
    return building.worker(_journal(log), store, objects, _scratch(settings), lease=settings.lease_seconds)


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
    ]
    return Reactions(journal, store, folded, reactions)


def _renditions(settings: Settings, objects: ObjectStore) -> Renditions:
    return Renditions(objects, settings.renditions_mb * 1_000_000)


def _journal(log: EventLog) -> Journal:
    return Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))


async def _learn(settings: Settings, log: EventLog, store: ReadStore, objects: ObjectStore, folded: Folded) -> None:
    journal = _journal(log)
    trainer = trainings.worker(
        journal,
        store,
        objects,
        BuiltDatasets(store, objects),
        partial(register, journal, StoredViews(store, folded)),
        place=settings.folder / "cache" / "training",
        lease=settings.lease_seconds,
        device=settings.device,
    )
    await trainer.run()


async def _work(
    settings: Settings, checkpoint: Checkpoint, log: EventLog, store: ReadStore, objects: ObjectStore
) -> None:
    engine = EngineProcess(load, checkpoint, settings.device)
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
            # Or else the garbage collector looks through every module again and again while requests pass.
            gc.collect()
            gc.freeze()
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
