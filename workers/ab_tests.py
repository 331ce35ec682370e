"""What follows from an A/B test: its jobs are submitted, and once all have ended it is ready."""

from collections.abc import Mapping, Sequence
from typing import Final

from domain.ab_tests import AB_TESTS, ABTest, job_ids, losses, own_prompts, readiness, ready_id, submissions
from domain.correlation import correlated
from domain.events import Recorded
from domain.events.ab_tests import ABTestCreated
from domain.events.jobs import JobCancelled, JobCancelRequested, JobCompleted, JobDeleted, JobFailed
from domain.jobs import JOBS, Job
from domain.journal import Journal
from domain.ports import Query, ReadStore
from domain.prompts import PROMPTS

SUBMITTED_AT_ONCE: Final = 100
# Those that end a job, or take it from listeners. A job that was never started is cancelled by the request alone.
ENDINGS: Final = (JobCompleted, JobFailed, JobCancelRequested, JobCancelled, JobDeleted)


class ABTestReaction:
    name = "ab_tests"
    topics = (AB_TESTS.name, JOBS.name)

    def __init__(self, journal: Journal, store: ReadStore) -> None:
        self._journal = journal
        self._store = store

    async def react(self, batch: Sequence[Recorded]) -> None:
        """As in Reaction. Jobs and events have ids that follow from the test, so that a second try doubles nothing."""
        created = {recorded.key for recorded in batch if isinstance(recorded.event, ABTestCreated)}
        ended = {recorded.key for recorded in batch if isinstance(recorded.event, ENDINGS)}
        jobs = await self._store.get(JOBS, list(ended)) if ended else {}
        of = {job.request.ab_test_id for job in jobs.values() if job.request.ab_test_id is not None}
        if not created | of:
            return
        for test in (await self._store.get(AB_TESTS, list(created | of))).values():
            if test.id in created and test.ready_at is None:
                with correlated(test.correlation):
                    await self._submit(test)
            with correlated(test.correlation):
                await self._settle(test, {id_: job for id_, job in jobs.items() if job.request.ab_test_id == test.id})

    async def _submit(self, test: ABTest) -> None:
        wanted = [*own_prompts(test.request), *submissions(test.request)]
        there = {
            *await self._store.get(PROMPTS, [prompt.key for prompt in own_prompts(test.request)]),
            *await self._store.get(JOBS, job_ids(test)),
        }
        # The id of what an event creates is the event's as well.
        missing = [(event.key, event) for event in wanted if event.key not in there]
        for first in range(0, len(missing), SUBMITTED_AT_ONCE):
            await self._journal.append_as(missing[first : first + SUBMITTED_AT_ONCE])

    async def _settle(self, test: ABTest, jobs: Mapping[str, Job]) -> None:
        """`jobs` are those of the test that have ended."""
        if test.ready_at is not None:
            found = losses(test, jobs)
        elif await self._is_generating(test):
            return
        else:
            found = readiness(test, await self._store.get(JOBS, job_ids(test)))
        for event in found:
            await self._journal.append_as([(ready_id(event), event)])

    async def _is_generating(self, test: ABTest) -> bool:
        """Whether a job of the test is open, without a look at them all. Deleted ones are until they have ended."""
        for hidden in (False, True):
            if await self._store.count(JOBS, Query(equal={"ab_open": test.id}, hidden=hidden)):
                return True
        return False
