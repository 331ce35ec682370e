"""Records as the log would hand them out, for tests that need no log."""

from collections.abc import Iterable
from itertools import count
from typing import Any

from msgspec.structs import replace

from domain import jobs
from domain.events import Event, Recorded, Undecodable, UnknownEvent
from domain.events.jobs import JobSubmitted, SampleGenerated
from domain.jobs import Job
from domain.ports import Position

SUBMITTED = JobSubmitted(
    job_id="job", prompt_id="prompt", prompt="rain on a tin roof", model_id="model", seeds=[7, 8], duration=2.0
)


def at(offset: int, event: Event | UnknownEvent | Undecodable, event_id: str | None = None) -> Recorded:
    """The event at that offset, one second after the one before."""
    return Recorded(
        position=Position("jobs", 0, offset),
        key="job",
        id=event_id or f"event-{offset}",
        time=f"2026-01-01T{offset // 3600:02}:{offset // 60 % 60:02}:{offset % 60:02}.000000Z",
        event=event,
    )


def recorded(*events: Any) -> list[Recorded]:
    return [at(offset, event) for offset, event in zip(count(), events, strict=False)]


def sample(index: int, attempt: int = 1, **changes: Any) -> SampleGenerated:
    made = SampleGenerated(
        job_id="job",
        attempt=attempt,
        index=index,
        sample_id=f"sample-{index}",
        seed=7 + index,
        storage_path=f"samples/{changes.get('job_id', 'job')}/{attempt}/{index}.flac",
        duration_seconds=2.0,
        sample_rate=32000,
        channels=1,
        size=1000,
        sha256=f"{index:064}",
    )
    job_id = changes.get("job_id", made.job_id)
    return replace(made, **{"storage_path": f"samples/{job_id}/{attempt}/{index}.flac", **changes})


def fold(records: Iterable[Recorded], job: Job | None = None) -> Job | None:
    for record in records:
        job = jobs.evolve(job, record)
    return job


def job_after(*events: Any) -> Job:
    job = fold(recorded(SUBMITTED, *events))
    assert job is not None
    return job
