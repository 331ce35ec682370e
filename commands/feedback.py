from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from commands.transact import LOCAL, Receipt, Views, append, identify, load, seen, settle, transact
from domain import feedback as rules
from domain.envelope import decode
from domain.errors import NotFoundError, UnavailableError
from domain.events import Erased
from domain.events.feedback import SampleSnapshot
from domain.feedback import FEEDBACK, Feedback, FeedbackRequest, Revision
from domain.jobs import JOBS
from domain.journal import Journal
from domain.ports import Position, Reader

# Finds a sample by its id: None unless it can be heard.
Samples: TypeAlias = Callable[[str], Awaitable[SampleSnapshot | None]]


async def give(
    journal: Journal,
    views: Views,
    samples: Samples,
    request: FeedbackRequest,
    idempotency_key: str | None,
    *,
    owner: str = LOCAL,
) -> Receipt:
    """Raises InvalidError, NotFoundError for the sample, and KeyReusedError when the key named other feedback."""
    feedback_id = identify(journal, "feedback", owner, idempotency_key)
    feedback = None if idempotency_key is None else await find(views, feedback_id)
    sample, other = None, None
    if feedback is None:
        sample, other = await samples(request.audio_id), await _other(samples, request)
    events = rules.give(feedback, feedback_id, request, sample, other)
    receipt = await append(journal, views, feedback_id, events, seen(FEEDBACK, feedback))
    decide = partial(rules.give, feedback_id=feedback_id, request=request, sample=sample, other=other)
    return await settle(views, FEEDBACK, receipt, idempotency_key, decide)


async def revise(journal: Journal, views: Views, samples: Samples, feedback_id: str, request: Revision) -> Receipt:
    """Raises InvalidError, and NotFoundError for feedback that is not there, or was erased before this could land."""
    ends = await journal.log.ends(FEEDBACK.name)
    # What was erased until here is seen to be: what lands between here and the revision is looked through below.
    if not await views.show(Position(FEEDBACK.name, number, end - 1) for number, end in ends.items() if end):
        raise UnavailableError("The end of the log has not been read yet, and nothing was changed. Send it again.")
    feedback = await find(views, feedback_id)
    if feedback is not None and feedback.other is not None and feedback.other.audio_id == request.preferred_over:
        other: SampleSnapshot | None = feedback.other
    else:
        other = await _other(samples, request)
    events = rules.revise(feedback, feedback_id, request, other)
    receipt = await append(journal, views, feedback_id, events, seen(FEEDBACK, feedback))
    if events and feedback is not None and await _is_erased(journal, feedback_id, ends, receipt.positions[-1]):
        await append(journal, views, feedback_id, rules.erase(feedback, feedback_id))
        raise NotFoundError("feedback", feedback_id)
    return receipt


async def _is_erased(journal: Journal, feedback_id: str, ends: Mapping[int, int], revised: Position) -> bool:
    """Whether it was erased behind `ends` and before its revision, which then would bring it back."""
    offset = ends.get(revised.partition, 0)
    while offset < revised.offset and (page := await journal.log.read(revised.topic, revised.partition, offset)):
        records = [decode(record) for record in page if record.position < revised]
        if any(isinstance(each.event, Erased) and each.key == feedback_id for each in records):
            return True
        offset = page[-1].position.offset + 1
    return False


async def erase(journal: Journal, views: Views, feedback_id: str) -> Receipt:
    """Raises NotFoundError."""
    return await transact(journal, views, FEEDBACK, feedback_id, lambda feedback: rules.erase(feedback, feedback_id))


async def find(views: Reader, feedback_id: str) -> Feedback | None:
    """None also where a job of it was deleted, which erases it soon."""
    feedback = await load(views, FEEDBACK, feedback_id)
    return next(iter(await standing(views, [feedback] if feedback else [])), None)


async def standing(views: Reader, feedback: Sequence[Feedback]) -> list[Feedback]:
    """Those of which no job was deleted."""
    jobs = await views.get(JOBS, list({job_id for each in feedback for job_id in each.job_ids}))
    deleted = {job.id for job in jobs.values() if job.deleted_at}
    return [each for each in feedback if deleted.isdisjoint(each.job_ids)]


async def _other(samples: Samples, request: Revision) -> SampleSnapshot | None:
    return None if request.preferred_over is None else await samples(request.preferred_over)
