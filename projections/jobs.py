"""Jobs, their samples, and the queue's statistics, folded together from one topic."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

from msgspec import Struct

from domain.events import Recorded
from domain.jobs import JOBS, Job, evolve
from domain.ports import Changes, Query, Reader, View
from projections.audio import AUDIO, documents

WINDOW: Final = timedelta(hours=1)
FIRST_YEARS: Final = "0002"


class QueueStats(Struct, frozen=True, kw_only=True):
    """One partition's share of the figures, without deleted jobs. `completions` counts the last hour's, by minute.

    Milliseconds are whole so that taking a job out again leaves exactly what was there before.
    """

    id: str
    position: int = -1
    created_at: str = ""
    counts: Mapping[str, int] = {}
    processing_ms: int = 0
    completions: Mapping[str, int] = {}


STATS: Final = View("queue_stats", QueueStats)
VIEWS: Final = (JOBS, AUDIO, STATS)


class Statistics(Struct, frozen=True, kw_only=True):
    """`average_processing_seconds` is None until a job has completed; `throughput_per_hour` is of the last hour."""

    counts: Mapping[str, int]
    average_processing_seconds: float | None
    throughput_per_hour: int


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    """Derived documents come first.

    A store that saves in order may stop anywhere in between: as long as the job itself is still the old one, folding
    the batch again derives the same figures and samples again.
    """
    # Jobs before figures, which are written before jobs: then a save by another host in between miscounts nothing.
    jobs = await store.get(JOBS, list({recorded.key for recorded in batch}))
    before = dict(jobs)
    partitions = groupby(sorted(batch, key=_partition), key=_partition)
    tallies = {}
    stored = await store.get(STATS, [str(number) for number in {_partition(recorded) for recorded in batch}])
    for number, records in partitions:
        tallies[number] = _fold_partition(jobs, stored.get(str(number), QueueStats(id=str(number))), records)
    changed = [job for key, job in jobs.items() if job is not before.get(key)]
    audio = [sample for job in changed for sample in documents(job) if _audio_differs(before.get(job.id), job)]
    return Changes(
        [
            *((AUDIO, sample) for sample in audio),
            *((STATS, stats) for stats in tallies.values()),
            *((JOBS, job) for job in changed),
        ]
    )


async def statistics(store: Reader, now: datetime) -> Statistics:
    parts = await store.find(STATS, Query(limit=10_000))
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    completed = counts["completed"]
    since, until = _minute((now - WINDOW).isoformat()), _minute(now.isoformat())
    return Statistics(
        counts=dict(counts),
        average_processing_seconds=sum(part.processing_ms for part in parts) / completed / 1000 if completed else None,
        throughput_per_hour=sum(
            n for part in parts for minute, n in part.completions.items() if since < minute <= until
        ),
    )


def _fold_partition(jobs: dict[str, Job], stats: QueueStats, records: Iterable[Recorded]) -> QueueStats:
    counts, completions = Counter(stats.counts), Counter(stats.completions)
    processing_ms, position, newest = stats.processing_ms, stats.position, ""
    for recorded in records:
        before = jobs.get(recorded.key)
        after = evolve(before, recorded)
        if after is not None:
            jobs[recorded.key] = after
        if recorded.position.offset <= stats.position:
            continue
        position = recorded.position.offset
        if after is not None and after.status == "completed" and (before is None or before.status != "completed"):
            newest = max(newest, after.completed_at or "")
        for job, sign in ((before, -1), (after, 1)):
            if job is None or job.deleted_at:
                continue
            counts[job.status] += sign
            if job.status == "completed" and job.started_at and job.completed_at:
                processing_ms += sign * _milliseconds(job.started_at, job.completed_at)
                completions[_minute(job.completed_at)] += sign
    horizon = _minute((datetime.fromisoformat(newest) - 2 * WINDOW).isoformat()) if newest > FIRST_YEARS else ""
    return QueueStats(
        id=stats.id,
        position=position,
        counts={status: count for status, count in sorted(counts.items()) if count},
        processing_ms=processing_ms,
        completions={minute: count for minute, count in sorted(completions.items()) if count > 0 and minute > horizon},
    )


def _partition(recorded: Recorded) -> int:
    return recorded.position.partition


def _audio_differs(before: Job | None, after: Job) -> bool:
    return before is None or (before.samples, before.silenced) != (after.samples, after.silenced)


def _milliseconds(start: str, end: str) -> int:
    """Not below zero, whatever the clock did in between."""
    return max(0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)) // timedelta(milliseconds=1))


def _minute(time: str) -> str:
    return time[: len("2026-01-01T00:00")]
