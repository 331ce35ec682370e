"""Everything that happens in the studio, as server-sent events: one stream for a page that shows all of it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from litestar import get
from litestar.response import ServerSentEvent, ServerSentEventMessage
from msgspec import Struct

from api.http.services import Injected, Services
from api.job_events import HEARTBEAT_SECONDS, job_progress, message
from api.jobs import body
from commands.transact import load
from domain.ab_tests import AB_TESTS
from domain.adapters import ADAPTERS
from domain.datasets import DATASETS
from domain.events import Recorded
from domain.events.progress import JobProgressed, TrainingProgressed, WorkerAlive
from domain.feedback import FEEDBACK
from domain.jobs import JOBS
from domain.keys import KEYS
from domain.ports import View
from domain.prompts import PROMPTS
from domain.trainings import TRAININGS
from projections.freshness.current import WAIT_SECONDS

# What a caller that does not see everything may hear of: their own.
SHOWN: Final[Mapping[str, View[Any]]] = {
    view.name: view for view in (PROMPTS, JOBS, FEEDBACK, ADAPTERS, AB_TESTS, DATASETS, TRAININGS)
}


class Changed(Struct, frozen=True, kw_only=True):
    """`kind` is the name of a topic, such as feedback or abtests."""

    kind: str
    id: str


@get("/events", operation_id="followStudio", tags=["events"])
async def follow_studio(services: Injected) -> ServerSentEvent:
    """`connected`, and from then on `job` with the job as it is now, `progress` of the jobs that run, and `changed`
    with the kind and the id of anything else. A client that falls far behind is cut off; it connects again and reads
    what it shows anew.
    """
    return ServerSentEvent(_events(services))


ROUTES: Final = (follow_studio,)


async def _events(services: Services) -> AsyncGenerator[ServerSentEventMessage]:
    # A client that hears of a change can read it from any process. After one timeout, stop waiting for the views.
    folds = True
    with services.feed.listen_everywhere() as queue:
        yield message("connected", None, {})
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    news = await queue.get()
            except TimeoutError:
                yield ServerSentEventMessage(data=None, comment="still here")
                continue
            if news is None:
                return
            if not isinstance(news.event, JobProgressed | TrainingProgressed | WorkerAlive):
                folds = folds and await services.folded.wait([news.position], WAIT_SECONDS)
            if (told := await _told(services, news)) is not None:
                yield told


async def _told(services: Services, news: Recorded) -> ServerSentEventMessage | None:
    """None for what the caller may not see."""
    match news.event:
        case WorkerAlive():
            return None
        case JobProgressed() as event:
            return (
                message("progress", None, job_progress(event))
                if await _sees(services, JOBS.name, event.job_id)
                else None
            )
        case TrainingProgressed(training_id=id_):
            changed = Changed(kind=TRAININGS.name, id=id_)
            return message("changed", None, changed) if await _sees(services, TRAININGS.name, id_) else None
    if not await _sees(services, news.position.topic, news.key):
        return None
    if news.position.topic != JOBS.name:
        return message("changed", None, Changed(kind=news.position.topic, id=news.key))
    job = await load(services.views, JOBS, news.key)
    if job is None or job.deleted_at:
        return message("changed", None, Changed(kind=JOBS.name, id=news.key))
    return message("job", None, await body(services, job))


async def _sees(services: Services, topic: str, key: str) -> bool:
    if not services.caller.is_restricted:
        return topic != KEYS.name
    return topic in SHOWN and await load(services.views, SHOWN[topic], key) is not None
