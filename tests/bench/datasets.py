"""Datasets: rows a second and memory of building one from a long history of feedback, beside a tenth of it."""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

import apsw
import msgspec
from uuid_utils import uuid7

from domain.envelope import encode
from domain.events import Event, timestamp
from domain.events.datasets import DatasetCreated, Filters
from domain.events.jobs import JobCompleted, JobStarted, SampleGenerated
from domain.journal import Journal
from infra.storage.sqlite_log import SqliteLog
from tests.bench.feedback import PER_JOB, given
from tests.local.parts import submission
from workers.datasets import replayed

EVENTS: Final = int(os.environ.get("EVENTS", "1_000_000"))
BATCH: Final = 20_000
MOMENT: Final = "2026-01-01T00:00:00.000000Z"
REQUESTS: Final = {
    "supervised": DatasetCreated(dataset_id="d", dataset_name="d", kind="supervised"),
    "preference": DatasetCreated(dataset_id="d", dataset_name="d", kind="preference"),
    "reliable": DatasetCreated(
        dataset_id="d", dataset_name="d", kind="preference", filters=Filters(min_reliability=0.4, min_rating=2.0)
    ),
}


async def fill(path: Path, events: int) -> None:
    """The feedback of tests/bench/feedback.py and the jobs that it is about, put straight into the log's tables."""
    log = await SqliteLog.open(path)
    await log.close()
    connection = apsw.Connection(str(path))
    connection.pragma("synchronous", "OFF")
    records = given(events)
    offset = 0
    while page := list(islice(records, BATCH)):
        rows = [
            (record.position.offset, record.key, record.value, msgspec.json.encode(record.headers), 0.0)
            for record in page
        ]
        _insert(connection, "feedback", rows)
    for job in range((events - 1) // PER_JOB + 1):
        made = _job(job)
        rows = []
        for event in made:
            message = encode(event, event_id=f"job-event-{offset}", time=MOMENT)
            rows.append((offset, message.key, message.value, msgspec.json.encode(message.headers), 0.0))
            offset += 1
        _insert(connection, "jobs", rows)
    for topic, end in (("feedback", events), ("jobs", offset)):
        connection.execute("UPDATE heads SET next = ? WHERE topic = ?", (end, topic))
    connection.execute("COMMIT")
    connection.close()


def _insert(connection: apsw.Connection, topic: str, rows: Sequence[tuple[object, ...]]) -> None:
    if connection.get_autocommit():
        connection.execute("BEGIN")
    connection.executemany(f'INSERT INTO "{topic}/0" VALUES (?, ?, ?, ?, ?)', rows)  # noqa: S608


def _job(number: int) -> list[Event]:
    job_id = f"job-{number:07}"
    dice = Random(number)
    samples = [
        SampleGenerated(
            job_id=job_id,
            attempt=1,
            index=index,
            sample_id=f"{number:07}-{index}",
            seed=index,
            storage_path=f"samples/{job_id}/1/1/{index}.flac",
            duration_seconds=8.0,
            sample_rate=32_000,
            channels=1,
            size=500_000,
            sha256=sha256(dice.randbytes(8)).hexdigest(),
        )
        for index in range(PER_JOB)
    ]
    prompt = f"prompt-{number:07}"
    return [
        submission(job_id, prompt_id=prompt, prompt=f"song number {number}", seeds=[*range(PER_JOB)]),
        JobStarted(job_id=job_id, attempt=1, worker_id="worker"),
        *samples,
        JobCompleted(job_id=job_id, attempt=1),
    ]


async def measure(folder: Path, kind: str) -> None:
    """In a process of its own, so that its peak of memory is its own."""
    log = await SqliteLog.open(folder / "events.db")
    journal = Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))
    events = sum((await log.ends("feedback")).values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, begin = time.perf_counter(), time.process_time()
    async with replayed(journal, REQUESTS[kind], folder / "scratch") as made:
        taken, spent = time.perf_counter() - start, time.process_time() - begin
        summary = made.summary
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    await log.close()
    print(
        f"{kind:11} {events:>9,} feedback events in {taken:6.1f} s ({spent:.1f} s of processor), "
        f"{events / taken:7,.0f}/s, {summary.count:>8,} items, {summary.size / 1e6:6.1f} MB of list; "
        f"memory {before:.0f} MB before, {after:.0f} MB at most; {summary.digest[:12]}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for events in (EVENTS // 10, EVENTS):
            place = Path(folder, str(events))
            place.mkdir()
            asyncio.run(fill(place / "events.db", events))
            for kind in REQUESTS:
                subprocess.run([sys.executable, "-m", "tests.bench.datasets", str(place), kind], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(measure(Path(sys.argv[1]), sys.argv[2]))
    else:
        main()
