"""Progress, workers and job events as they happen, from this process's own tail of the log."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from api.http.keyring import Keyring
from api.http.meter import Meter
from domain.events import Recorded
from domain.events.jobs import JobCancelled, JobCompleted, JobFailed
from domain.events.models import ModelActivated
from domain.events.progress import TOPIC, JobProgressed, TrainingProgressed, WorkerAlive
from domain.events.trainings import TrainingCancelled, TrainingCompleted, TrainingFailed
from domain.jobs import JOBS
from domain.journal import Journal, until_done
from domain.keys import KEYS
from domain.ports import Batch
from domain.trainings import TRAININGS
from projections.freshness.tail import Tail
from projections.project import REST_SECONDS, SMALL_BATCH

SILENCE: Final = 10.0
REMEMBERED: Final = 10_000
UNREAD: Final = 5_000  # records that wait for a client, at most


class Feed:
    """The latest progress of each running job and training, the workers heard of, and the records of both as they land.

    What it follows is also what `tail` holds, what `keys` knows, and what `meter` counts.

    `started` is set once nothing that is appended from then on can be missed.
    """

    def __init__(self, journal: Journal, tail: Tail) -> None:
        self._journal = journal
        self._tail = tail
        self._progress: dict[str, JobProgressed] = {}
        self._training_progress: dict[str, TrainingProgressed] = {}
        self._workers: dict[str, tuple[float, WorkerAlive]] = {}
        self._listeners: dict[str, set[asyncio.Queue[Recorded | None]]] = {}
        self._everywhere: set[asyncio.Queue[Recorded | None]] = set()
        self._closed = False
        self.started = asyncio.Event()
        self.model_changes = 0
        self.keys = Keyring(journal.now)
        self.meter = Meter()

    async def run(self) -> None:
        """Until cancelled. Raises UnknownVersionError at an event that a newer version wrote."""
        ends = await until_done(partial(self._journal.log.ends, TOPIC.name), "The feed")
        told = await self._tail.begin()
        await until_done(partial(self.keys.load, self._journal.log, told), "The keys")
        start = {**told, **{(TOPIC.name, number): end for number, end in ends.items()}}
        self.started.set()
        async for batch in self._journal.follow(start):
            for recorded in batch.records:
                self._take(recorded)
            facts = [recorded for recorded in batch.records if recorded.position.topic != TOPIC.name]
            self._tail.take(Batch(facts, batch.reached))
            # Or else every record would be asked for by itself, which costs as much as a batch of them.
            if len(batch.records) < SMALL_BATCH:
                await self._tail.rest(REST_SECONDS)

    def progress(self, job_id: str, attempt: int) -> JobProgressed | None:
        known = self._progress.get(job_id)
        return known if known and known.attempt == attempt else None

    def training_progress(self, training_id: str, attempt: int) -> TrainingProgressed | None:
        known = self._training_progress.get(training_id)
        return known if known and known.attempt == attempt else None

    def workers(self) -> list[WorkerAlive]:
        """Those with a model that said something lately and did not stop: the others generate nothing."""
        since = time.monotonic() - SILENCE
        return [alive for heard, alive in self._workers.values() if heard > since and alive.model_id]

    @contextmanager
    def listen(self, job_id: str) -> Iterator[asyncio.Queue[Recorded | None]]:
        """The job's or training's records from now on; None is the last, when the process stops."""
        queue: asyncio.Queue[Recorded | None] = asyncio.Queue()
        listeners = self._listeners.setdefault(job_id, set())
        listeners.add(queue)
        if self._closed:
            queue.put_nowait(None)
        try:
            yield queue
        finally:
            listeners.discard(queue)
            if not listeners:
                self._listeners.pop(job_id, None)

    @contextmanager
    def listen_everywhere(self) -> Iterator[asyncio.Queue[Recorded | None]]:
        """Every record from now on. None is the last: the process stops, or too much was left unread."""
        queue: asyncio.Queue[Recorded | None] = asyncio.Queue()
        self._everywhere.add(queue)
        if self._closed:
            queue.put_nowait(None)
        try:
            yield queue
        finally:
            self._everywhere.discard(queue)

    def close(self) -> None:
        """Ends every stream, so that a server can stop."""
        self._closed = True
        for listeners in (*self._listeners.values(), self._everywhere):
            for queue in listeners:
                queue.put_nowait(None)

    @property
    def streams(self) -> int:
        """How many clients listen."""
        return sum(len(listeners) for listeners in self._listeners.values()) + len(self._everywhere)

    def _take(self, recorded: Recorded) -> None:
        self.meter.take(recorded.event)
        match recorded.event:
            case JobProgressed(job_id=job_id) as event:
                self._progress[job_id] = event
                if len(self._progress) > REMEMBERED:
                    del self._progress[next(iter(self._progress))]
            case TrainingProgressed(training_id=training_id) as event:
                self._training_progress[training_id] = event
                if len(self._training_progress) > REMEMBERED:
                    del self._training_progress[next(iter(self._training_progress))]
            case TrainingCompleted() | TrainingFailed() | TrainingCancelled():
                self._training_progress.pop(recorded.key, None)
            case WorkerAlive(worker_id=worker_id, state="stopped"):
                self._workers.pop(worker_id, None)
            case WorkerAlive(worker_id=worker_id) as event:
                self._workers.pop(worker_id, None)
                self._workers[worker_id] = (time.monotonic(), event)
                if len(self._workers) > REMEMBERED:
                    del self._workers[next(iter(self._workers))]
            case ModelActivated():
                self.model_changes += 1
            case JobCompleted() | JobFailed() | JobCancelled():
                self._progress.pop(recorded.key, None)
        if recorded.position.topic == KEYS.name:
            self.keys.take(recorded)
        # What else may stand among the telemetry has no place in a job's life.
        told = isinstance(recorded.event, JobProgressed | TrainingProgressed)
        if told or recorded.position.topic in {JOBS.name, TRAININGS.name}:
            for queue in self._listeners.get(recorded.key, ()):
                queue.put_nowait(recorded)
        for queue in tuple(self._everywhere):
            if queue.qsize() < UNREAD:
                queue.put_nowait(recorded)
            else:
                self._everywhere.discard(queue)
                queue.put_nowait(None)
