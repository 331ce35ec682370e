"""Conformance vectors: records in, aggregates out, as this project's own decode and evolve make them.

A reader that ends with the same states, dead letters and stops reads the log as everybody else does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.aggregates import AGGREGATES, LATER, SUBMITTED, Json, sample
from domain.errors import UnknownVersionError
from domain.events import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobStarted,
    PromptAttributes,
    PromptCreated,
    Undecodable,
    decode,
    encode,
)
from domain.ports import Position, Record

FAILED: Final = JobFailed(job_id="job-1", attempt=1, error="no such key")
REQUEUED: Final = JobAttemptFailed(job_id="job-1", attempt=1, error="out of memory", retry_at=LATER)
RELEASED: Final = JobAttemptFailed(job_id="job-1", attempt=1, error="stopped", retry_at=LATER, released=True)
COMPLETED: Final = JobCompleted(job_id="job-1", attempt=1)
CANCEL: Final = JobCancelRequested(job_id="job-1")
CANCELLED: Final = JobCancelled(job_id="job-1", worker_id="worker-1")
DELETED: Final = JobDeleted(job_id="job-1")
CREATED: Final = PromptCreated(
    prompt_id="prompt-1",
    text="rain on a tin roof",
    attributes=PromptAttributes(mood="calm", instrumentation=("oud",)),
    user_id="user-1",
)


def started(attempt: int, worker_id: str = "worker-1") -> JobStarted:
    return JobStarted(job_id="job-1", attempt=attempt, worker_id=worker_id)


RUN: Final = (SUBMITTED, started(1), sample(0), sample(1), COMPLETED)


def vectors(topic: str) -> list[Json]:
    return [
        {"name": name, "records": [_published(record) for record in records], "expected": _expected(topic, records)}
        for name, records in {"prompts": _prompts, "jobs": _jobs}[topic]().items()
    ]


def _jobs() -> dict[str, list[Record]]:
    run = _log(*RUN)
    return {
        "a job runs to its end": run,
        "a batch delivered again changes nothing": [*run[:3], *run],
        "a record older than the state changes nothing": [run[0], run[1], run[3], run[2], run[1], run[4]],
        "offsets may have gaps": [replace(record, position=_at(record.position.offset * 7)) for record in run],
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
        "a sample is made once": _log(SUBMITTED, started(1), sample(0), sample(0), sample(1), sample(1)),
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
        "a release ends the count of lost attempts": _log(
            SUBMITTED, started(1), started(2), replace(RELEASED, attempt=2)
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
        "an event appended twice under one id holds once": [
            *_log(SUBMITTED, started(1)),
            _headed(_record(2, started(1)), ce_id="event-1"),
        ],
        "an id is forgotten after eight verdicts": [
            *_log(SUBMITTED, started(1), *([sample(0, 2)] * 8)),
            _headed(_record(10, started(2)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(SUBMITTED, b'{"type":"JobPraised","stars":5}', started(1)),
        "an unknown type in the last record moves the position": _log(SUBMITTED, b'{"type":"JobPraised"}'),
        "unknown fields are ignored and missing ones have their default": [
            *_log(SUBMITTED),
            _record(1, started(1), value=_encoded(started(1)).replace(b"}", b',"mood":"calm"}')),
            _record(2, REQUEUED, value=_encoded(REQUEUED).replace(b',"released":false', b"")),
        ],
        "an unknown version stops the reader": [
            *_log(SUBMITTED),
            _headed(_record(1, started(1)), ce_type="text2song.job.started.v2"),
            _record(2, CANCEL),
        ],
        "a tombstone erases nothing here": _log(SUBMITTED, None, started(1)),
        "undecodable records are skipped": _undecodable(),
        "an undecodable record delivered again is the same dead letter": [
            *_log(SUBMITTED, b"{"),
            *_log(SUBMITTED, b"{"),
        ],
        "an undecodable record under a known id leaves no mark": [
            *_log(SUBMITTED),
            _headed(_record(1, started(1), value=b"{"), ce_id="event-0"),
        ],
        "without an id the position is the id": [*_log(SUBMITTED), _headed(_record(1, CANCEL), ce_id=None)],
        "times are normalised": [
            _headed(_record(0, SUBMITTED), ce_time="2026-01-31T14:30:00+02:30"),
            _headed(_record(1, started(1)), ce_time="2026-01-31T12:00:01.5Z"),
        ],
        "two jobs on one partition do not touch": [
            *_log(SUBMITTED, started(1)),
            _record(2, replace(SUBMITTED, job_id="job-2")),
            _record(3, replace(CANCEL, job_id="job-2")),
            _record(4, sample(0)),
        ],
    }


def _undecodable() -> list[Record]:
    started_1 = _encoded(started(1))
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
        _record(number, replace(CREATED, prompt_id="job-1"), position=_at(number)),
        _headed(_record(number + 1, started(1)), ce_type="text2song.job.completed.v1"),
        _headed(_record(number + 2, started(1)), ce_type=None),
        _headed(_record(number + 3, started(1)), ce_time=None),
        _headed(_record(number + 4, started(1)), ce_time="noon"),
        _headed(_record(number + 5, started(1)), ce_time="2026-01-31T12:00:00"),
        _headed(_record(number + 6, started(1), value=b'{"type":"JobPraised"}'), ce_time="noon"),
        _record(number + 7, started(1)),
    ]


def _prompts() -> dict[str, list[Record]]:
    created = _record(0, CREATED)
    return {
        "a prompt is created": [created],
        "a prompt delivered again is the same": [created, created],
        "the first creation holds": [created, _record(1, replace(CREATED, text="snow"))],
        "everything else only moves the position": [
            created,
            _record(1, CREATED, value=b'{"type":"PromptPraised"}'),
            _record(2, CREATED, value=b"{"),
            _record(3, CREATED, value=None),
        ],
        "an unknown version stops the reader": [
            created,
            _headed(_record(1, CREATED), ce_type="text2song.prompt.created.v2"),
        ],
    }


def _at(offset: int, topic: str = "jobs") -> Position:
    return Position(topic, 0, offset)


def _encoded(event: Event) -> bytes:
    return encode(event, event_id="", time="").value or b""


def _record(offset: int, event: Event, **changes: Any) -> Record:
    message = encode(event, event_id=f"event-{offset}", time=f"2026-01-31T12:00:{offset:02}.000000Z")
    return replace(Record(_at(offset, event.topic), message.key, message.value, message.headers), **changes)


def _log(*events: Event | bytes | None) -> list[Record]:
    """One record after the other; bytes and None stand as the values of what calls itself a JobStarted."""
    return [
        _record(offset, event) if isinstance(event, Event) else _record(offset, started(1), value=event)
        for offset, event in enumerate(events)
    ]


def _headed(record: Record, **changes: str | None) -> Record:
    headers = {**record.headers, **changes}
    return replace(record, headers={name: value for name, value in headers.items() if value is not None})


def _published(record: Record) -> Json:
    """With the value as text or null; where it is no UTF-8, as `value_base64`."""
    try:
        value: Json = {"value": record.value if record.value is None else record.value.decode()}
    except UnicodeDecodeError:
        value = {"value_base64": record.value}
    return {"position": str(record.position), "key": record.key, "headers": record.headers, **value}


def _expected(topic: str, records: Sequence[Record]) -> Json:
    aggregate = AGGREGATES[topic]
    folded: dict[str, Any] = {}
    dead_letters: dict[str, None] = {}
    stopped_at = None
    for record in records:
        try:
            recorded = decode(record)
        except UnknownVersionError:
            stopped_at = str(record.position)
            break
        if isinstance(recorded.event, Undecodable):
            dead_letters[str(record.position)] = None
        if (after := aggregate.evolve(folded.get(record.key), recorded)) is not None:
            folded[record.key] = after
    return {
        "aggregates": {key: published(topic, document) for key, document in folded.items()},
        "dead_letters": [*dead_letters],
        "stopped_at": stopped_at,
    }


def published(topic: str, document: Any) -> Json:
    """A folded aggregate as the vectors show it."""
    aggregate = AGGREGATES[topic]
    marks: Mapping[str, Any] = {}
    if aggregate.outcomes:
        outcomes = [{"id": outcome.event_id, "accepted": outcome.reason is None} for outcome in document.outcomes]
        marks = {"suspect": document.suspect, "outcomes": outcomes}
    return {"state": aggregate.state(document), "offset": document.position, **marks}
