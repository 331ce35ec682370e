"""Removes the audio of jobs that have ended: of deleted ones at once, of old ones when somebody asks for it."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from domain.correlation import correlated
from domain.events import Recorded
from domain.events.jobs import JobDeleted, JobPurged
from domain.jobs import JOBS, Job, folder, renditions
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, Query, ReadStore

WHO: Final = "The purge"
PAGE: Final = 500


async def remove(objects: ObjectStore, job_id: str) -> None:
    """Everything that is stored of a job. Waits out outages."""
    for place in (folder(job_id), renditions(job_id)):
        await until_done(partial(objects.delete, place), WHO)


async def purge(journal: Journal, objects: ObjectStore, job: Job) -> None:
    """Removes the audio first and says so second: killed in between, it is done again by whoever finds the job."""
    await remove(objects, job.id)
    event_id = str(uuid5(NAMESPACE_URL, f"purge:{job.id}"))
    await until_done(partial(journal.append, JobPurged(job_id=job.id), event_id=event_id), WHO)


class PurgeOfDeleted:
    """The reaction to the deletion of a job that has ended. The audio of one that has not is its worker's to remove."""

    name = "purge"
    topics = (JOBS.name,)

    def __init__(self, journal: Journal, store: ReadStore, objects: ObjectStore) -> None:
        self._journal = journal
        self._store = store
        self._objects = objects

    async def react(self, batch: Sequence[Recorded]) -> None:
        deleted = {recorded.key: recorded.correlation for recorded in batch if isinstance(recorded.event, JobDeleted)}
        if not deleted:
            return
        for job in (await self._store.get(JOBS, list(deleted))).values():
            if job.awaits_purge:
                with correlated(deleted[job.id], job.id):
                    await purge(self._journal, self._objects, job)


async def ended(store: ReadStore, before: str) -> AsyncIterator[Job]:
    """Jobs that ended before that time and may have audio, newest first; `before` is as in Recorded.time."""
    last = None
    while page := await until_done(partial(store.find, JOBS, Query(end=before, after=last, limit=PAGE)), WHO):
        for job in page:
            if job.samples and not job.is_open and not job.is_silent and (job.completed_at or "") < before:
                yield job
        last = (page[-1].created_at, page[-1].id)
