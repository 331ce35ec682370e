from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.contract import Json, Published, records
from domain.contract.prompts import CREATED
from domain.contract.records import encoded, headed, record
from domain.events import Event, Recorded
from domain.events.jobs import (
    AdapterSnapshot,
    Continuation,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobPurged,
    JobStarted,
    JobSubmitted,
    Melody,
    SampleGenerated,
)
from domain.jobs import Job, folder
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record

ATTEMPTS: Final = (1, 2, 3)
LATER: Final = "2026-01-31T12:01:00.000000Z"
SUBMITTED: Final = JobSubmitted(
    job_id="job-1",
    prompt_id="prompt-1",
    prompt="rain on a tin roof",
    model_id="facebook/musicgen-small",
    model_revision="4c8334b0",
    seeds=[7, 8],
    duration=2.0,
    adapter=AdapterSnapshot(
        id="adapter-1", name="jazz", version="1.0.0", base_model="facebook/musicgen-small", storage_path="adapters/1"
    ),
    output_format="wav",
    priority=5,
    user_id="user-1",
    client_id="client-1",
    campaign_id="campaign-1",
    brief_id="brief-1",
    collection="spring",
    request_digest="digest-1",
    model_prompt="rain on a tin roof, slow",
    warnings=("The model does not know “tin”.",),
    continuation=Continuation(
        sample_id="sample-0", seconds=1.0, storage_path="samples/job-0/1/0.flac", sha256=f"{0:064}"
    ),
    melody=Melody(id="melody-1", storage_path="melodies/melody-1/melody.flac", sha256=f"{1:064}"),
)
FAILED: Final = JobFailed(job_id="job-1", attempt=1, error="no such key")
REQUEUED: Final = JobAttemptFailed(job_id="job-1", attempt=1, error="out of memory", retry_at=LATER)
RELEASED: Final = JobAttemptFailed(job_id="job-1", attempt=1, error="stopped", retry_at=LATER, released=True)
COMPLETED: Final = JobCompleted(job_id="job-1", attempt=1)
CANCEL: Final = JobCancelRequested(job_id="job-1")
CANCELLED: Final = JobCancelled(job_id="job-1", worker_id="worker-1")
DELETED: Final = JobDeleted(job_id="job-1")
PURGED: Final = JobPurged(job_id="job-1")


def sample(index: int, attempt: int = 1) -> SampleGenerated:
    return SampleGenerated(
        job_id=SUBMITTED.job_id,
        attempt=attempt,
        index=index,
        sample_id=f"sample-{index}",
        seed=7 + index,
        storage_path=f"samples/{SUBMITTED.job_id}/{attempt}/{index}.flac",
        duration_seconds=2.0,
        sample_rate=32000,
        channels=1,
        size=123456,
        sha256=f"{index:064}",
        loudness_lufs=-14.25,
        pcm_sha256=f"{index + 1:064}",
    )


def candidate(index: int, likelihood: float | None, attempt: int = 1) -> SampleGenerated:
    return replace(sample(index, attempt), likelihood=likelihood)


def started(attempt: int, worker_id: str = "worker-1") -> JobStarted:
    return JobStarted(job_id="job-1", attempt=attempt, worker_id=worker_id)


RUN: Final = (SUBMITTED, started(1), sample(0), sample(1), COMPLETED)


def _state(job: Job | None) -> Json:
    if job is None:
        return {}
    return {
        "id": job.id,
        "status": job.status,
        "seeds": job.request.seeds,
        "samples": {str(made.event.index): made.event.sample_id for made in job.samples},
        "attempt": job.attempt,
        "worker_id": job.worker_id,
        "failures": job.failures,
        "lost": job.lost,
        "retry_at": job.retry_at,
        "error": job.error,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "deleted_at": job.deleted_at,
        "purged_at": job.purged_at,
    }


def _facts(job: Job | None, event: Any) -> Json:
    attempt = job.attempt if job else 0
    missing = job.missing if job else []
    facts: Json = {
        "status": job.status if job else None,
        "attempted": attempt > 0,
        "complete": job is not None and not missing,
        "deleted": job is not None and job.deleted_at is not None,
        "purged": job is not None and job.purged_at is not None,
    }
    match event:
        case JobStarted() | SampleGenerated() | JobCompleted() | JobAttemptFailed() | JobFailed():
            facts["attempt"] = {attempt: "current", attempt + 1: "next"}.get(event.attempt, "other")
    match event:
        case SampleGenerated() as made:
            facts["sample"] = "missing" if made.index in missing else "other"
            facts["own"] = made.storage_path.startswith(f"{folder(made.job_id)}/")
        case JobAttemptFailed(released=released):
            facts["released"] = released
    return facts


def _accepted(job: Job | None, recorded: Recorded) -> bool:
    outcome = job.outcome(recorded.id) if job else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    run = _log(*RUN)
    return {
        "a job runs to its end": run,
        "a batch delivered again changes nothing": [*run[:3], *run],
        "a record older than the state changes nothing": [run[0], run[1], run[3], run[2], run[1], run[4]],
        "offsets may have gaps": [
            replace(record, position=Position("jobs", 0, record.position.offset * 7)) for record in run
        ],
        "what comes before the submission is passed over": _log(started(1), b"{", CANCEL, SUBMITTED, started(1)),
        "a second submission is refused": _log(SUBMITTED, replace(SUBMITTED, seeds=[1, 2, 3]), started(1)),
        "events out of order are refused": _log(
            SUBMITTED,
            sample(0),
            COMPLETED,
            started(2),
            CANCELLED,
            started(1),
            COMPLETED,
            sample(0, 2),
            sample(2),
            FAILED,
        ),
        "a sample lies in its own job's folder": _log(
            SUBMITTED, started(1), replace(sample(0), storage_path="samples/job-10/1/0.flac"), sample(0)
        ),
        "what is out of bounds is no event": _log(
            SUBMITTED,
            encoded(started(1)).replace(b":1,", b":0,"),
            encoded(started(1)).replace(b'"worker-1"', b'"worker 1"'),
            encoded(REQUEUED).replace(LATER.encode(), b"soon"),
            started(1),
        ),
        "a sample is made once": _log(SUBMITTED, started(1), sample(0), sample(0), sample(1), sample(1)),
        "each candidate of the best of two is made once": _log(
            replace(SUBMITTED, seeds=[7, 8, 9, 10], best_of=2, best_of_by="likelihood"),
            started(1),
            candidate(1, 0.5),
            candidate(0, 0.25),
            started(2, "worker-2"),
            candidate(1, 0.75, 2),
            COMPLETED,
            candidate(3, None, 2),
            candidate(2, -1.5, 2),
            replace(COMPLETED, attempt=2),
        ),
        "the first of two claims holds": _log(SUBMITTED, started(1), started(1, "worker-2"), sample(0)),
        "a takeover keeps the samples and shuts the old attempt out": _log(
            SUBMITTED, started(1), sample(0), started(2, "worker-2"), sample(1), COMPLETED, sample(1, 2)
        ),
        "lost attempts are counted until a sample is made": _log(
            SUBMITTED, started(1), started(2), started(3), replace(started(4), worker_id="worker-4")
        ),
        "a failed attempt goes back to the queue": _log(SUBMITTED, started(1), REQUEUED, started(2), sample(0, 2)),
        "a failure is counted once": _log(SUBMITTED, started(1), REQUEUED, REQUEUED),
        "a report ends the count of lost attempts": _log(
            SUBMITTED, started(1), started(2), replace(REQUEUED, attempt=2), started(3), started(4)
        ),
        "a release leaves the count of lost attempts": _log(
            SUBMITTED, started(1), started(2), replace(RELEASED, attempt=2), started(3), started(4)
        ),
        "a former attempt has no say": _log(*RUN[:-1], started(2), COMPLETED, REQUEUED, RELEASED, FAILED),
        "an attempt that was reported has no say": _log(*RUN[:-1], REQUEUED, COMPLETED, REQUEUED, RELEASED, FAILED),
        "a released attempt does not count": _log(SUBMITTED, started(1), RELEASED),
        "a failed job stays failed": _log(SUBMITTED, started(1), FAILED, started(2), CANCEL, REQUEUED),
        "a queued job is cancelled at once": _log(SUBMITTED, CANCEL, started(1), CANCEL, CANCELLED),
        "a running job is cancelled by its worker": _log(
            SUBMITTED, started(1), sample(0), CANCEL, sample(1), CANCELLED
        ),
        "a job between attempts is cancelled by a worker": _log(SUBMITTED, started(1), REQUEUED, CANCEL, started(2)),
        "a completed job cannot be cancelled": _log(*RUN, CANCEL, CANCELLED),
        "a completed job is deleted": _log(*RUN, DELETED, DELETED),
        "a queued job is deleted": _log(SUBMITTED, DELETED, started(1)),
        "a cancelled job is deleted": _log(SUBMITTED, CANCEL, DELETED, DELETED),
        "a cancelling job is deleted": _log(SUBMITTED, started(1), CANCEL, DELETED, DELETED, CANCELLED),
        "a failed job is deleted": _log(SUBMITTED, started(1), FAILED, DELETED, DELETED),
        "a job between attempts is deleted": _log(SUBMITTED, started(1), REQUEUED, DELETED, started(2), DELETED),
        "a running job is deleted": _log(SUBMITTED, started(1), DELETED, sample(0), CANCEL, CANCELLED),
        "a job is purged once it has ended": _log(*RUN[:-1], PURGED, COMPLETED, PURGED, PURGED, DELETED),
        "a deleted job is purged": _log(*RUN, DELETED, PURGED),
        "a failed job is purged": _log(SUBMITTED, started(1), sample(0), FAILED, PURGED, PURGED),
        "a cancelling job is not purged": _log(SUBMITTED, started(1), CANCEL, PURGED, CANCELLED, PURGED, PURGED),
        "an event appended twice under one id holds once": [
            *_log(SUBMITTED, started(1)),
            headed(record(2, started(1)), ce_id="event-1"),
        ],
        "an id is forgotten after eight verdicts": [
            *_log(SUBMITTED, started(1), *([sample(0, 2)] * 8)),
            headed(record(10, started(2)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(SUBMITTED, b'{"type":"JobPraised","stars":5}', started(1)),
        "an unknown type in the last record moves the position": _log(SUBMITTED, b'{"type":"JobPraised"}'),
        "unknown fields are ignored and missing ones have their default": [
            *_log(SUBMITTED),
            record(1, started(1), value=encoded(started(1)).replace(b"}", b',"mood":"calm"}')),
            record(2, REQUEUED, value=encoded(REQUEUED).replace(b',"released":false', b"")),
        ],
        "an unknown version stops the reader": [
            *_log(SUBMITTED),
            headed(record(1, started(1)), ce_type="text2song.job.started.v2"),
            record(2, CANCEL),
        ],
        "a tombstone erases nothing here": _log(SUBMITTED, None, started(1)),
        "undecodable records are skipped": _undecodable(),
        "an undecodable record delivered again is the same dead letter": [
            *_log(SUBMITTED, b"{"),
            *_log(SUBMITTED, b"{"),
        ],
        "an undecodable record under a known id leaves no mark": [
            *_log(SUBMITTED),
            headed(record(1, started(1), value=b"{"), ce_id="event-0"),
        ],
        "without an id the position is the id": [*_log(SUBMITTED), headed(record(1, CANCEL), ce_id=None)],
        "times are normalised": [
            headed(record(0, SUBMITTED), ce_time="2026-01-31T14:30:00+02:30"),
            headed(record(1, started(1)), ce_time="2026-01-31T12:00:01.5Z"),
        ],
        "two jobs on one partition do not touch": [
            *_log(SUBMITTED, started(1)),
            record(2, replace(SUBMITTED, job_id="job-2")),
            record(3, replace(CANCEL, job_id="job-2")),
            record(4, sample(0)),
        ],
    }


def _undecodable() -> list[Record]:
    started_1 = encoded(started(1))
    records = _log(
        SUBMITTED,
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"job_id":"job-1"}',
        b'{"type":7}',
        started_1[:-1],
        started_1.replace(b":1,", b':"first",'),
        started_1.replace(b":1,", b":1.0,"),
        started_1.replace(b":1,", b":true,"),
        started_1.replace(b":1,", b":null,"),
        started_1.replace(b'"attempt":1,', b""),
        started_1.replace(b'"worker-1"', b"NaN"),
        started_1.replace(b'"worker-1"', b'"\\ud800"'),
        started_1.replace(b'"job-1"', b'"job-2"'),
        started_1.replace(b'"worker-1"', b"[" * 64 + b"]" * 64),
    )
    number = len(records)
    return [
        *records,
        record(number, replace(CREATED, prompt_id="job-1"), position=Position("jobs", 0, number)),
        headed(record(number + 1, started(1)), ce_type="text2song.job.completed.v1"),
        headed(record(number + 2, started(1)), ce_type=None),
        headed(record(number + 3, started(1)), ce_time=None),
        headed(record(number + 4, started(1)), ce_time="noon"),
        headed(record(number + 5, started(1)), ce_time="2026-01-31T12:00:00"),
        headed(record(number + 6, started(1), value=b'{"type":"JobPraised"}'), ce_time="noon"),
        record(number + 7, started(1)),
    ]


def _log(*events: Event | bytes | None) -> list[Record]:
    return records.log(*events, name=started(1))


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "status": "queued, processing, completed, failed, cancelling or cancelled",
        "seeds": "one seed a sample; with best_of over 1, one a candidate, best_of in a row for each sample",
        "samples": "the id of each sample or candidate made, by its index written as text",
        "attempt": "the number of the last claim, from 1",
        "worker_id": "who made it",
        "failures": "attempts that reported an error",
        "lost": "attempts in a row that ended without word or sample",
        "retry_at": "when the job may be claimed again",
        "error": "what the last failed attempt reported",
        "created_at": "when it was submitted",
        "started_at": "when the last attempt began",
        "completed_at": "when the status became final",
        "deleted_at": "when it was deleted; then, or while cancelling or cancelled, no sample is to be heard",
        "purged_at": "when its audio was removed; then no sample can be heard",
    },
    conditions={
        "status": "the state's status; null while there is no state",
        "attempted": "whether the state's attempt is over 0",
        "complete": "whether samples has every index from 0 to the number of seeds less one",
        "deleted": "whether deleted_at is set",
        "purged": "whether purged_at is set",
        "attempt": "the event's attempt against the state's: current (equal), next (one more) or other",
        "sample": "missing when the event's index is one of seeds and not yet one of samples, else other",
        "own": "whether the event's storage_path begins with samples/, the event's job_id and a slash",
        "released": "the event's own field",
    },
    proposals=[
        SUBMITTED,
        *(JobStarted(job_id="job-1", attempt=n, worker_id=f"worker-{n}") for n in ATTEMPTS),
        *(sample(index, n) for index in (0, 1, 2) for n in ATTEMPTS),
        replace(sample(0), storage_path="samples/job-10/1/0.flac"),
        *(JobCompleted(job_id="job-1", attempt=n) for n in ATTEMPTS),
        *(
            JobAttemptFailed(job_id="job-1", attempt=n, error=f"error-{n}", retry_at=LATER, released=released)
            for n in ATTEMPTS
            for released in (False, True)
        ),
        *(JobFailed(job_id="job-1", attempt=n, error=f"error-{n}") for n in ATTEMPTS),
        JobCancelRequested(job_id="job-1"),
        JobCancelled(job_id="job-1", worker_id="worker-1"),
        JobDeleted(job_id="job-1"),
        JobPurged(job_id="job-1"),
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
