"""Erases the feedback of deleted jobs: from the log by tombstones, and by them from the views."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from domain.events import Erased, Recorded
from domain.events.feedback import TOPIC, FeedbackGiven
from domain.events.jobs import JobDeleted
from domain.feedback import FEEDBACK, Feedback
from domain.jobs import JOBS
from domain.journal import Journal, until_done
from domain.ports import Position, Query, Reader, ReadStore
from workers.reactions import PATIENCE_SECONDS, Views

WHO: Final = "The erasure of feedback"
PAGE: Final = 2_500
# The job whose sample was judged, and that of the sample with which it was compared.
SIDES: Final = ("job_id", "other_job_id")


async def has_feedback(store: Reader, job_id: str) -> bool:
    """Whether anybody judged a sample of the job, or another sample against one of its. Waits out outages."""
    for side in SIDES:
        if await until_done(partial(store.find, FEEDBACK, Query(equal={side: job_id}, limit=1)), WHO):
            return True
    return False


class ErasureOfFeedback:
    """Whichever is on the log first, a deletion or feedback, nothing of the feedback is left.

    A deletion has what the views show of the job's feedback erased, once they show all that was given before. What is
    given after that meets a job that the views already show as deleted.
    """

    name = "erase-feedback"
    topics = (JOBS.name, TOPIC.name)

    def __init__(self, journal: Journal, store: ReadStore, views: Views) -> None:
        self._journal = journal
        self._store = store
        self._views = views

    async def react(self, batch: Sequence[Recorded]) -> None:
        given = list({recorded.key for recorded in batch if isinstance(recorded.event, FeedbackGiven)})
        if given:
            await self._look(given)
        gone = {recorded.key for recorded in batch if isinstance(recorded.event, JobDeleted)}
        if gone := await self._deleted(gone):
            await self._catch_up()
            for job_id in gone:
                await self._sweep(job_id)

    async def _look(self, ids: Sequence[str]) -> None:
        """Erases, of this feedback, what is about deleted jobs."""
        found = list((await self._store.get(FEEDBACK, ids)).values())
        deleted = await self._deleted({job_id for each in found for job_id in each.job_ids})
        await self._erase(each for each in found if not deleted.isdisjoint(each.job_ids))

    async def _sweep(self, job_id: str) -> None:
        for side in SIDES:
            last = None
            while page := await self._page(Query(equal={side: job_id}, after=last, limit=PAGE)):
                await self._erase(page)
                last = (page[-1].created_at, page[-1].id)

    async def _page(self, query: Query) -> list[Feedback]:
        return await until_done(partial(self._store.find, FEEDBACK, query), WHO)

    async def _erase(self, feedback: Iterable[Feedback]) -> None:
        tombstones = [
            Erased(topic=TOPIC.name, key=each.id, given_partition_key=each.sample.job_id) for each in feedback
        ]
        if tombstones:
            await until_done(partial(self._journal.append, *tombstones), WHO)

    async def _deleted(self, job_ids: Iterable[str]) -> set[str]:
        """A deletion may have been refused, or be of a job that never was."""
        ids = list(job_ids)
        jobs = await self._store.get(JOBS, ids) if ids else {}
        return {job.id for job in jobs.values() if job.deleted_at}

    async def _catch_up(self) -> None:
        """Until the views have folded all feedback that is on the log now."""
        ends = await until_done(partial(self._journal.log.ends, TOPIC.name), WHO)
        given = [Position(TOPIC.name, number, end - 1) for number, end in ends.items()]
        while not await self._views.wait(given, PATIENCE_SECONDS):
            pass
