"""The life of a generation job.

    queued ──▶ processing ──▶ completed        cancel: queued ──▶ cancelled, if no attempt was made
      ▲            │  └─────▶ failed                   queued, processing ──▶ cancelling ──▶ cancelled
      └── attempt failed                       delete: the same, and `deleted_at` is set

Once a job has ended its audio may be purged: that of a deleted one is at once.

Events on the log are proposals. `evolve` takes the first valid one in partition order and refuses the others with a
reason that stays on the job, so that every reader sees the same job and the API can say what became of a request.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from domain import attempts, candidates
from domain.attempts import MAX_FAILURES
from domain.correlation import Correlation
from domain.errors import ConflictError, KeyReusedError, NotFoundError
from domain.events import Recorded
from domain.events.jobs import (
    LABELS,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobEvent,
    JobFailed,
    JobPurged,
    JobStarted,
    JobSubmitted,
    SampleGenerated,
)
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View

Status: TypeAlias = Literal["queued", "processing", "completed", "failed", "cancelling", "cancelled"]
OPEN: Final = frozenset({"queued", "processing", "cancelling"})
LIFE: Final = ("job", "processing")


class Sample(Struct, frozen=True):
    event: SampleGenerated
    created_at: str
    position: int


class Job(Judged, frozen=True, kw_only=True):
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
    purged_at: str | None = None
    silenced: int | None = None
    correlation: Correlation | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_running(self) -> bool:
        return self.status == "processing"

    @property
    def is_stopping(self) -> bool:
        return self.status == "cancelling"

    @property
    def missing(self) -> list[int]:
        """The indexes of the samples still to be made, candidates among them."""
        made = {sample.event.index for sample in self.samples}
        return [index for index in range(len(self.request.seeds)) if index not in made]

    @property
    def audible(self) -> tuple[Sample, ...]:
        """The samples a listener may have: none of a deleted, cancelled or purged job."""
        return () if self.is_silent else self.kept

    @property
    def rows(self) -> Iterator[list[Sample]]:
        """The candidates of each sample that is decided; without `best_of`, that is the sample itself."""
        return candidates.groups(self.samples, len(self.request.seeds), self.request.best_of)

    @property
    def kept(self) -> tuple[Sample, ...]:
        """The best of each row."""
        return tuple(candidates.best(row, self.request.best_of_by) for row in self.rows)

    @property
    def wanted(self) -> int:
        """How many samples were asked for."""
        return -(-len(self.request.seeds) // self.request.best_of)

    @property
    def is_silent(self) -> bool:
        return bool(self.deleted_at or self.purged_at) or self.status in {"cancelling", "cancelled"}

    @property
    def awaits_purge(self) -> bool:
        """Whether it was deleted with audio that is still stored; that of a cancelled job is gone already."""
        return bool(self.deleted_at and self.samples and not self.purged_at) and self.status in {"completed", "failed"}


JOBS: Final = View(
    "jobs",
    Job,
    fields=lambda job: {
        "status": job.status,
        "open": job.is_open,
        "adapter_id": job.request.adapter.id if job.request.adapter else None,
        "ab_test_id": job.request.ab_test_id,
        "ab_open": job.request.ab_test_id if job.is_open else None,
        "model_id": job.request.model_id,
        "user_id": job.request.user_id,
        "user_status": None if job.request.user_id is None else f"{job.status} {job.request.user_id}",
        **{label: getattr(job.request, label) for label in LABELS},
        "hidden": job.deleted_at is not None,
    },
    filters=("status", "open", "adapter_id", "ab_test_id", "ab_open", "model_id", "user_id", "user_status", *LABELS),
)


def folder(job_id: str) -> str:
    """Where a job's masters lie among the objects."""
    return f"samples/{job_id}"


def renditions(job_id: str) -> str:
    """Where other formats of them lie, which can be made again."""
    return f"renditions/{job_id}"


def waveform(master: str) -> str:
    """Where the peaks of a master lie."""
    return f"{master.removesuffix('flac')}json"


def submit(job: Job | None, request_digest: str | None, submission: Callable[[], JobSubmitted]) -> list[JobEvent]:
    """A repeated request submits nothing, whatever has become of the models and limits that the first was held to.

    `submission` is called for a new job alone. Raises KeyReusedError when the id was used for another request, and
    ConflictError when the job was deleted.
    """
    if job is None:
        return [submission()]
    if job.request.request_digest != request_digest:
        raise KeyReusedError("This Idempotency-Key was sent before with another request; use a new key for a new one.")
    if job.deleted_at:
        raise ConflictError(f"Job {job.id} of this Idempotency-Key was deleted; use a new key for a new job.")
    return []


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


def release(job: Job, now: str, why: str) -> JobAttemptFailed:
    """Hands a job back unharmed."""
    return JobAttemptFailed(job_id=job.id, attempt=job.attempt, error=why, retry_at=now, released=True)


def report_failure(job: Job, error: str, retry_at: str | None) -> JobAttemptFailed | JobFailed:
    """`retry_at` None says that trying again cannot help."""
    if retry_at is None:
        return JobFailed(job_id=job.id, attempt=job.attempt, error=error)
    if job.failures + 1 >= MAX_FAILURES:
        return JobFailed(job_id=job.id, attempt=job.attempt, error=f"{error} (tried {MAX_FAILURES} times)")
    return JobAttemptFailed(job_id=job.id, attempt=job.attempt, error=error, retry_at=retry_at)


def evolve(job: Job | None, recorded: Recorded) -> Job | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if job is None:
        return _submitted(recorded.event, recorded) if isinstance(recorded.event, JobSubmitted) else None
    job = judge(job, recorded, _apply)
    return replace(job, silenced=job.position) if job.is_silent and job.silenced is None else job


def _submitted(event: JobSubmitted, recorded: Recorded) -> Job:
    return Job(
        id=event.job_id,
        request=event,
        status="queued",
        created_at=recorded.time,
        partition=recorded.position.partition,
        origin=recorded.position.offset,
        position=recorded.position.offset,
        correlation=recorded.correlation,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def _apply(job: Job, recorded: Recorded) -> Job | str:
    """The job after the event, or why the event is refused."""
    now = recorded.time
    match recorded.event:
        case JobStarted(attempt=attempt, worker_id=worker_id):
            return attempts.started(job, *LIFE, attempt, worker_id, started_at=now)
        case SampleGenerated() as event:
            if refusal := attempts.not_running(job, *LIFE, event.attempt):
                return refusal
            if event.index not in job.missing:
                return f"sample {event.index} is not one of those missing"
            if not event.storage_path.startswith(f"{folder(job.id)}/"):
                return "its audio is in another job's folder"
            samples = sorted(
                (*job.samples, Sample(event, now, recorded.position.offset)), key=lambda sample: sample.event.index
            )
            return replace(job, samples=tuple(samples), lost=0)
        case JobCompleted(attempt=attempt):
            if refusal := attempts.not_running(job, *LIFE, attempt):
                return refusal
            if job.missing:
                return f"{len(job.missing)} samples are missing"
            return replace(job, status="completed", completed_at=now)
        case JobAttemptFailed(attempt=attempt, error=error, retry_at=retry_at, released=released):
            if refusal := attempts.not_running(job, *LIFE, attempt):
                return refusal
            return attempts.requeued(job, error, retry_at, released=released)
        case JobFailed(attempt=attempt, error=error):
            if refusal := attempts.not_running(job, *LIFE, attempt):
                return refusal
            return replace(job, status="failed", error=error, completed_at=now)
        case JobCancelRequested():
            return attempts.asked_to_stop(job, "job", now)
        case JobCancelled():
            return attempts.cancelled(job, "job", now)
        case JobDeleted():
            return job if job.deleted_at else replace(attempts.stopped(job, now), deleted_at=now)
        case JobPurged():
            if job.is_open:
                return f"the job is {job.status}"
            return "its audio was purged before" if job.purged_at else replace(job, purged_at=now)
        case JobSubmitted():
            return "the job was submitted before"
        case _:
            return "not an event of a job"
