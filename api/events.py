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
from api.services import Injected, Services
from domain.events import JobCancelRequested, JobProgressed, Recorded, decode
from domain.jobs import Job, evolve

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


@get("/jobs/{job_id:str}/events", operation_id="followJob", tags=["jobs"])
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
        job = await load(services, job_id)
        if last is None:
            yield _message("snapshot", job.position, body(services, job))
        else:
            async for message in _missed(services, job, last):
                yield message
        while job.is_open and not job.deleted_at:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    recorded = await queue.get()
            except TimeoutError:
                yield ServerSentEventMessage(data=None, comment="still here")
                continue
            if recorded is None:
                return
            if isinstance(recorded.event, JobProgressed):
                if recorded.event.attempt == job.attempt and job.status == "processing":
                    yield _message("progress", None, recorded.event)
                continue
            before, job = job, evolve(job, recorded) or job
            if change := _change(services, before, job, recorded):
                yield change


async def _missed(services: Services, job: Job, last: int) -> AsyncIterator[ServerSentEventMessage]:
    """What the job went through after version `last`, folded again from its submission."""
    folded: Job | None = None
    offset = job.origin
    while page := await services.journal.log.read("jobs", job.partition, offset):
        offset = page[-1].position.offset + 1
        for recorded in (decode(record) for record in page if record.key == job.id):
            if recorded.position.offset > job.position:
                return
            before, folded = folded, evolve(folded, recorded)
            if folded and recorded.position.offset > last and (message := _change(services, before, folded, recorded)):
                yield message


def _change(services: Services, before: Job | None, after: Job, recorded: Recorded) -> ServerSentEventMessage | None:
    """The message for an event that the fold accepted."""
    outcome = after.outcome(recorded.id)
    if after is before or outcome is None or outcome.reason:
        return None
    name = after.status if isinstance(recorded.event, JobCancelRequested) else NAMES.get(recorded.type)
    return _message(name, after.position, body(services, after)) if name else None


def _message(name: str, version: int | None, data: Any) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, id=version, data=msgspec.json.encode(data).decode())
