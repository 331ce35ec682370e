"""A local studio taken apart: the real log, store, objects, views and API, with as many workers as a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
from uuid_utils import uuid7

from api.app import create_app
from api.http.feed import Feed
from api.http.hosts import AllowedHosts
from api.http.quota import Quota
from api.http.renditions import Renditions
from api.http.sealing import Seals
from api.http.services import Services
from domain.events import timestamp
from domain.events.jobs import JobSubmitted
from domain.jobs import JOBS, Job
from domain.journal import Journal
from domain.models import NOISE, Registry
from infra.storage.file_objects import FileObjects
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.freshness.current import CurrentViews
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail
from projections.freshness.watermarks import Watermarks
from projections.hosts.local import LocalHost
from projections.project import VIEWS
from tests import audit
from tests.conditions import eventually
from workers.adapters import AdapterFiles
from workers.claims import Claims
from workers.generation import Generator, worker
from workers.reactions import PROGRESS

LEASE = 0.6


def submission(job_id: str, **changes: Any) -> JobSubmitted:
    fields = {
        "job_id": job_id,
        "prompt_id": "prompt",
        "prompt": "rain on a tin roof",
        "model_id": NOISE.id,
        "seeds": [1, 2],
        "duration": 1.0,
    }
    return JobSubmitted(**{**fields, **changes})


class Parts:
    def __init__(
        self,
        folder: Path,
        log: SqliteLog,
        store: SqliteStore,
        objects: FileObjects,
        *,
        is_folded: bool = True,
        **services: Any,
    ) -> None:
        """`services` are those of the API's that are to be others."""
        self.folder = folder
        self.log = log
        self.store = store
        self.objects = objects
        self.adapters = AdapterFiles(objects, folder / "cache")
        self.journal = Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))
        self.host: Folded = LocalHost(log, store) if is_folded else Watermarks(log, store)
        tail = Tail(log, self.host)
        self.services = Services(
            journal=self.journal,
            views=CurrentViews(store, tail, self.host),
            objects=objects,
            registry=Registry(NOISE),
            folded=self.host,
            tail=tail,
            feed=Feed(self.journal, tail),
            renditions=Renditions(objects, 1_000_000_000),
            seals=Seals(objects),
            quota=Quota(store, self.host),
            **services,
        )
        app = create_app(self.services, AllowedHosts(frozenset({"studio"})))
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(cast("Any", app), raise_app_exceptions=False), base_url="http://studio"
        )

    def worker(self, engine: Generator, **options: Any) -> Claims[Job]:
        options = {"lease": LEASE, "backoff": 0.05, **options}
        options = {"adapters": self.adapters, **options}
        return worker(self.journal, self.store, self.objects, engine, NOISE.id, **options)

    @contextlib.asynccontextmanager
    async def working(self, *engines: Generator, **options: Any) -> AsyncIterator[list["asyncio.Task[None]"]]:
        """Runs a worker for each engine; leaving stops them as a shutdown does."""
        tasks = [asyncio.create_task(self.worker(engine, **options).run()) for engine in engines]
        try:
            yield tasks
        finally:
            await stop(*tasks)

    async def submit(self, job_id: str, **changes: Any) -> None:
        await self.journal.append(submission(job_id, **changes))

    async def job(self, job_id: str) -> Job | None:
        await self.host.caught_up(10)
        return (await self.store.get(JOBS, [job_id])).get(job_id)

    async def when(self, job_id: str, *statuses: str, seconds: float = 60.0) -> Job:
        """The job once it has one of the statuses."""

        async def reached() -> Job | None:
            job = await self.job(job_id)
            return job if job and job.status in statuses else None

        try:
            job = await eventually(reached, seconds)
        except AssertionError:
            history = await self.history(job_id)
            raise AssertionError(f"{job_id} never became {statuses}: {await self.job(job_id)}, {history}") from None
        assert job is not None
        return job

    async def history(self, key: str, topic: str = "jobs") -> list[str]:
        """The types of the records of the key, refused ones too."""
        found = await audit.records(self.log, topic)
        return [record.headers["ce_type"].split(".", 1)[1] for record in found if record.key == key]


async def stop(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


@contextlib.asynccontextmanager
async def open_parts(
    folder: Path, kind: type[SqliteStore] = SqliteStore, *, is_folded: bool = True, **services: Any
) -> AsyncIterator[Parts]:
    """Opened on a folder, which may hold a studio's past, with the feed running, and the views unless nobody folds."""
    async with contextlib.AsyncExitStack() as stack:
        log = await SqliteLog.open(folder / "events.db")
        stack.push_async_callback(log.close)
        store = await kind.open(folder / "views.db", (*VIEWS, PROGRESS))
        stack.push_async_callback(store.close)
        objects = await FileObjects.open(folder / "objects")
        parts = Parts(folder, log, store, objects, is_folded=is_folded, **services)
        running = [asyncio.create_task(parts.host.run()), asyncio.create_task(parts.services.feed.run())]
        stack.push_async_callback(stop, *running)
        stack.push_async_callback(parts.http.aclose)
        stack.callback(parts.adapters.close)
        await parts.services.feed.started.wait()
        await parts.services.tail.begun()
        assert not is_folded or await parts.host.caught_up(30)
        yield parts
