"""A job's life as server-sent events, each with the job's version as its id, so that a client can go on from there."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get
from litestar.params import FromPath, HeaderParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.status_codes import HTTP_204_NO_CONTENT
from msgspec import Struct

from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.jobs import body, shown
from domain.envelope import decode
from domain.events import Recorded
from domain.events.jobs import JobCancelRequested
from domain.events.progress import JobProgressed
from domain.jobs import JOBS, Job, evolve
from domain.ports import Position
from projections.freshness.current import WAIT_SECONDS

HEARTBEAT_SECONDS: Final = 15.0
MISSED: Final = 50_000  # records that are read for a client that comes back, at most
VERSION: Final = re.compile(r"[0-9]{1,18}")
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


class JobProgress(Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 100, as a job's own."""

    job_id: str
    attempt: int
    progress: float
    stage: str
    eta_seconds: float | None


@get("/jobs/{job_id:str}/events", operation_id="followJob", opt=CURRENT, tags=["jobs"])
async def follow_job(
    services: Injected,
    job_id: FromPath[str],
    last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
) -> Response[Any]:
    """`snapshot`, then `queued`, `started`, `progress`, `candidate`, `sample`, `completed`, `failed`, `cancelling`,
    `cancelled` or `deleted` as they happen; closes after the last. A `candidate` is one of those that a sample is the
    best of. With `Last-Event-ID` what was missed comes instead of a snapshot, unless that is very much or the id is
    none of this job's; 204 says that nothing was and nothing will.
    """
    job = await shown(services, job_id)
    last = int(last_event_id) if last_event_id and VERSION.fullmatch(last_event_id) else None
    if last is not None and last > job.position and await _reaches(services, job, last):
        job = await shown(services, job_id)
    if last is not None and not job.origin <= last <= job.position:
        last = None
    if last == job.position and not job.is_open:
        return Response(None, status_code=HTTP_204_NO_CONTENT)
    return ServerSentEvent(_events(services, job_id, last))


ROUTES: Final = (follow_job,)


async def _events(services: Services, job_id: str, last: int | None) -> AsyncIterator[ServerSentEventMessage]:
    with services.feed.listen(job_id) as queue:
        job = await shown(services, job_id)
        # A client that hears of a change can read it from any process. After one timeout, stop waiting for the views.
        folds = True
        if last is None or job.position - job.origin > MISSED:
            yield message("snapshot", job.position, await body(services, job))
        elif last < job.position:
            before = None
            async for recorded in _life(services, job):
                after = evolve(before, recorded)
                if recorded.position.offset > last and (change := await _change(services, before, after, recorded)):
                    folds = folds and await services.folded.wait([recorded.position], WAIT_SECONDS)
                    yield change
                before = after
        while job.is_open and not job.deleted_at:
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
                    yield message("progress", None, job_progress(news.event))
                continue
            before, job = job, evolve(job, news) or job
            if change := await _change(services, before, job, news):
                folds = folds and await services.folded.wait([news.position], WAIT_SECONDS)
                yield change


async def _reaches(services: Services, job: Job, offset: int) -> bool:
    """Whether this process has read so far within a short time; another one may have told the client."""
    ends = await services.journal.log.ends(JOBS.name)
    return offset < ends[job.partition] and await services.tail.wait(
        [Position(JOBS.name, job.partition, offset)], WAIT_SECONDS
    )


async def _life(services: Services, job: Job) -> AsyncIterator[Recorded]:
    """The job's own records from its submission to the last that it was folded from."""
    offset = job.origin
    while offset <= job.position and (page := await services.journal.log.read(JOBS.name, job.partition, offset)):
        offset = page[-1].position.offset + 1
        for record in page:
            if record.key == job.id and record.position.offset <= job.position:
                yield decode(record)


async def _change(
    services: Services, before: Job | None, after: Job | None, recorded: Recorded
) -> ServerSentEventMessage | None:
    """The message for an event that the fold accepted, and had not met before."""
    if after is None or (before is not None and after.outcomes is before.outcomes):
        return None
    outcome = after.outcome(recorded.id)
    if outcome is None or outcome.reason:
        return None
    name = after.status if isinstance(recorded.event, JobCancelRequested) else NAMES.get(recorded.type)
    if name == "sample" and before is not None and len(before.kept) == len(after.kept):
        name = "candidate"
    return message(name, after.position, await body(services, after)) if name else None


def job_progress(event: JobProgressed) -> JobProgress:
    return JobProgress(
        job_id=event.job_id,
        attempt=event.attempt,
        progress=round(100 * event.fraction, 1),
        stage=event.stage,
        eta_seconds=event.eta_seconds,
    )


def message(name: str, version: int | None, data: Any) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, id=version, data=msgspec.json.encode(data).decode())
