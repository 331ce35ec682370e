"""The life of a generation job.

    queued ──▶ processing ──▶ completed        cancel: queued ──▶ cancelled, if no attempt was made
      ▲            │  └─────▶ failed                   queued, processing ──▶ cancelling ──▶ cancelled
      └── attempt failed                       delete: the same, and `deleted_at` is set

Events on the log are proposals. `evolve` takes the first valid one in partition order and refuses the others with a
reason that stays on the job, so that every reader sees the same job and the API can say what became of a request.
"""

from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from domain.errors import ConflictError, KeyReusedError, NotFoundError
from domain.events import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobEvent,
    JobFailed,
    JobStarted,
    JobSubmitted,
    Recorded,
    SampleGenerated,
    Undecodable,
    UnknownEvent,
)
from domain.ports import View

Status: TypeAlias = Literal["queued", "processing", "completed", "failed", "cancelling", "cancelled"]
OPEN: Final = frozenset({"queued", "processing", "cancelling"})
MAX_FAILURES: Final = 3
MAX_LOST: Final = 5
OUTCOMES: Final = 8


class Outcome(Struct, frozen=True):
    """What the fold made of one event; `reason` None means that it holds."""

    event_id: str
    type: str
    reason: str | None = None


class Sample(Struct, frozen=True):
    event: SampleGenerated
    created_at: str
    position: int


class Job(Struct, frozen=True, kw_only=True):
    """`failures` counts attempts that reported an error, `lost` those in a row that ended without word or sample.

    Offsets in `partition`: `origin` of the submission, `position` of the last event folded, `silenced` of the one that
    took the samples away from listeners.
    """

    id: str
    request: JobSubmitted
    status: Status
    created_at: str
    partition: int
    origin: int
    position: int
    attempt: int = 0
    worker_id: str | None = None
    samples: tuple[Sample, ...] = ()
    failures: int = 0
    lost: int = 0
    retry_at: str | None = None
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    deleted_at: str | None = None
    silenced: int | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def missing(self) -> list[int]:
        """The indexes of the samples still to be made."""
        made = {sample.event.index for sample in self.samples}
        return [index for index in range(len(self.request.seeds)) if index not in made]

    @property
    def audible(self) -> tuple[Sample, ...]:
        """The samples a listener may have: none of a deleted or cancelled job."""
        return () if self.is_silent else self.samples

    @property
    def is_silent(self) -> bool:
        return self.deleted_at is not None or self.status in {"cancelling", "cancelled"}

    def outcome(self, event_id: str) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.event_id == event_id), None)


JOBS: Final = View(
    "jobs",
    Job,
    fields=lambda job: {
        "status": job.status,
        "open": job.is_open,
        "adapter_id": job.request.adapter.id if job.request.adapter else None,
        "client_id": job.request.client_id,
        "campaign_id": job.request.campaign_id,
        "brief_id": job.request.brief_id,
        "collection": job.request.collection,
        "hidden": job.deleted_at is not None,
    },
    filters=("status", "open", "adapter_id", "client_id", "campaign_id", "brief_id", "collection"),
)


def submit(job: Job | None, submission: JobSubmitted) -> list[JobEvent]:
    """Raises KeyReusedError when the id was used for another request."""
    if job is None:
        return [submission]
    check_same_request(job, submission.request_digest)
    return []


def check_same_request(job: Job, digest: str | None) -> None:
    if job.request.request_digest != digest:
        raise KeyReusedError("This Idempotency-Key was sent before with another request; use a new key for a new one.")


def cancel(job: Job | None, job_id: str) -> list[JobEvent]:
    match job:
        case None | Job(deleted_at=str()):
            raise NotFoundError("job", job_id)
        case Job(status="completed" | "failed" as status):
            raise ConflictError(f"Job {job_id} is {status}; only a queued or processing job can be cancelled.")
        case Job(status="cancelling" | "cancelled"):
            return []
    return [JobCancelRequested(job_id=job_id)]


def delete(job: Job | None, job_id: str) -> list[JobEvent]:
    if job is None or job.deleted_at:
        raise NotFoundError("job", job_id)
    return [JobDeleted(job_id=job_id)]


def start(job: Job, worker_id: str) -> JobStarted:
    return JobStarted(job_id=job.id, attempt=job.attempt + 1, worker_id=worker_id)


def release(job: Job, now: str) -> JobAttemptFailed:
    """Hands a job back unharmed, for a worker that is told to stop."""
    return JobAttemptFailed(
        job_id=job.id, attempt=job.attempt, error="The worker was stopped.", retry_at=now, released=True
    )


def report_failure(job: Job, error: str, retry_at: str | None) -> JobAttemptFailed | JobFailed:
    """`retry_at` None says that trying again cannot help."""
    if retry_at is None:
        return JobFailed(job_id=job.id, attempt=job.attempt, error=error)
    if job.failures + 1 >= MAX_FAILURES:
        return JobFailed(job_id=job.id, attempt=job.attempt, error=f"{error} (tried {MAX_FAILURES} times)")
    return JobAttemptFailed(job_id=job.id, attempt=job.attempt, error=error, retry_at=retry_at)


def evolve(job: Job | None, recorded: Recorded) -> Job | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    position = recorded.position
    if job is None:
        return _submitted(recorded.event, recorded) if isinstance(recorded.event, JobSubmitted) else None
    if position.offset <= job.position:
        return job
    job = replace(job, position=position.offset)
    if isinstance(recorded.event, UnknownEvent) or job.outcome(recorded.id):
        return job
    result = _apply(job, recorded)
    reason = result if isinstance(result, str) else None
    changed = job if isinstance(result, str) else result
    if isinstance(recorded.event, Undecodable):
        changed, reason = replace(job, suspect=True), recorded.event.error
    if changed.is_silent and job.silenced is None:
        changed = replace(changed, silenced=position.offset)
    outcome = Outcome(recorded.id, recorded.type, reason)
    return replace(changed, outcomes=(*changed.outcomes, outcome)[-OUTCOMES:])


def _submitted(event: JobSubmitted, recorded: Recorded) -> Job:
    return Job(
        id=event.job_id,
        request=event,
        status="queued",
        created_at=recorded.time,
        partition=recorded.position.partition,
        origin=recorded.position.offset,
        position=recorded.position.offset,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def _apply(job: Job, recorded: Recorded) -> Job | str:
    """The job after the event, or why the event is refused."""
    now = recorded.time
    match recorded.event:
        case JobStarted(attempt=attempt, worker_id=worker_id):
            if job.status not in {"queued", "processing"}:
                return f"the job is {job.status}"
            if attempt != job.attempt + 1:
                return f"attempt {attempt} is not the next one, attempt {job.attempt} is on record"
            lost = job.lost + 1 if job.status == "processing" else job.lost
            return replace(
                job,
                status="processing",
                attempt=attempt,
                worker_id=worker_id,
                started_at=now,
                lost=lost,
                retry_at=None,
                error=None,
            )
        case SampleGenerated() as event:
            if refusal := _not_running(job, event.attempt):
                return refusal
            if event.index not in job.missing:
                return f"sample {event.index} is not one of those missing"
            samples = sorted(
                (*job.samples, Sample(event, now, recorded.position.offset)), key=lambda sample: sample.event.index
            )
            return replace(job, samples=tuple(samples), lost=0)
        case JobCompleted(attempt=attempt):
            if refusal := _not_running(job, attempt):
                return refusal
            if job.missing:
                return f"{len(job.missing)} samples are missing"
            return replace(job, status="completed", completed_at=now)
        case JobAttemptFailed(attempt=attempt, error=error, retry_at=retry_at, released=released):
            if refusal := _not_running(job, attempt):
                return refusal
            failures = job.failures if released else job.failures + 1
            retry = None if released else retry_at
            return replace(job, status="queued", failures=failures, lost=0, error=error, retry_at=retry)
        case JobFailed(attempt=attempt, error=error):
            if refusal := _not_running(job, attempt):
                return refusal
            return replace(job, status="failed", error=error, completed_at=now)
        case JobCancelRequested():
            return _stopped(job, now) if job.is_open or job.status == "cancelled" else f"the job is {job.status}"
        case JobCancelled():
            if job.status == "cancelling":
                return replace(job, status="cancelled", completed_at=now)
            return job if job.status == "cancelled" else f"the job is {job.status}"
        case JobDeleted():
            return job if job.deleted_at else replace(_stopped(job, now), deleted_at=now)
        case JobSubmitted():
            return "the job was submitted before"
        case _:
            return "not an event of a job"


def _not_running(job: Job, attempt: int) -> str | None:
    if job.status != "processing":
        return f"the job is {job.status}"
    return None if attempt == job.attempt else f"attempt {attempt} is over, attempt {job.attempt} is running"


def _stopped(job: Job, now: str) -> Job:
    match job.status:
        case "queued" if job.attempt == 0:
            return replace(job, status="cancelled", completed_at=now)
        case "queued" | "processing":
            return replace(job, status="cancelling")
        case _:
            return job
