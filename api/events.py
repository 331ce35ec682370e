"""A job's life as server-sent events, each with the job's version as its id, so that a client can go on from there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get
from litestar.params import FromPath, HeaderParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.status_codes import HTTP_204_NO_CONTENT

from api.jobs import body, load
from api.positions import CURRENT
from api.services import Injected, Services
from domain.events import JobCancelRequested, JobProgressed, Recorded, decode
from domain.jobs import Job, evolve
from projections.current import WAIT_SECONDS

HEARTBEAT_SECONDS: Final = 15.0
NAMES: Final = {
    "JobSubmitted": "queued",
    "JobStarted": "started",
    "SampleGenerated": "sample",
    "JobAttemptFailed": "queued",
    "JobCompleted": "completed",
    "JobFailed": "failed",
    "JobCancelled": "cancelled",
    "JobDeleted": "deleted",
}


@get("/jobs/{job_id:str}/events", operation_id="followJob", opt=CURRENT, tags=["jobs"])
async def follow_job(
    services: Injected,
    job_id: FromPath[str],
    last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0)] = None,
) -> Response[Any]:
    """`snapshot`, then `queued`, `started`, `progress`, `sample`, `completed`, `failed`, `cancelling`, `cancelled` or
    `deleted` as they happen; closes after the last. With `Last-Event-ID` what was missed comes instead of a snapshot,
    and 204 says that nothing was and nothing will.
    """
    job = await load(services, job_id)
    if last_event_id is not None and last_event_id >= job.position and not job.is_open:
        return Response(None, status_code=HTTP_204_NO_CONTENT)
    return ServerSentEvent(_events(services, job_id, last_event_id))


async def _events(services: Services, job_id: str, last: int | None) -> AsyncIterator[ServerSentEventMessage]:
    with services.feed.listen(job_id) as queue:
        seen = await load(services, job_id)
        job: Job | None = None
        # Whoever hears of something can read it, from any process; but nobody waits twice for views that stand still.
        folds = True
        if last is None:
            job = seen
            yield _message("snapshot", job.position, body(services, job))
        else:
            async for recorded in _life(services, seen):
                before, job = job, evolve(job, recorded)
                if recorded.position.offset > last and (change := _change(services, before, job, recorded)):
                    folds = folds and await services.folded.wait([recorded.position], WAIT_SECONDS)
                    yield change
        while job and job.is_open and not job.deleted_at:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    news = await queue.get()
            except TimeoutError:
                yield ServerSentEventMessage(data=None, comment="still here")
                continue
            if news is None:
                return
            if isinstance(news.event, JobProgressed):
                if news.event.attempt == job.attempt and job.status == "processing":
                    yield _message("progress", None, news.event)
                continue
            before, job = job, evolve(job, news)
            if change := _change(services, before, job, news):
                folds = folds and await services.folded.wait([news.position], WAIT_SECONDS)
                yield change


async def _life(services: Services, job: Job) -> AsyncIterator[Recorded]:
    """The job's own records from its submission to the end of its partition, or of its life where that is known."""
    offset = job.origin
    while page := await services.journal.log.read("jobs", job.partition, offset):
        if not job.is_open and offset > job.position:
            return
        offset = page[-1].position.offset + 1
        for record in page:
            if record.key == job.id:
                yield decode(record)


def _change(
    services: Services, before: Job | None, after: Job | None, recorded: Recorded
) -> ServerSentEventMessage | None:
    """The message for an event that the fold accepted, and had not met before."""
    if after is None or (before is not None and after.outcomes is before.outcomes):
        return None
    outcome = after.outcome(recorded.id)
    if outcome is None or outcome.reason:
        return None
    name = after.status if isinstance(recorded.event, JobCancelRequested) else NAMES.get(recorded.type)
    return _message(name, after.position, body(services, after)) if name else None


def _message(name: str, version: int | None, data: Any) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, id=version, data=msgspec.json.encode(data).decode())
