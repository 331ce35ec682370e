"""The generation worker: claims jobs by log order, has them generated, stores the audio, reports.

It reads the whole `jobs` topic, so it folds every claim, cancel and result in the order all others do. A claim is an
event like any other: the worker runs a job only once the fold, at that position, says that the claim is its own.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol, TypeVar
from uuid import NAMESPACE_URL, uuid5

import msgspec

from domain import jobs
from domain.events import (
    Event,
    JobAttemptFailed,
    JobCancelled,
    JobCompleted,
    JobFailed,
    JobProgressed,
    Recorded,
    SampleGenerated,
    WorkerAlive,
    timestamp,
)
from domain.jobs import JOBS, MAX_LOST, Job
from domain.journal import Frontier, Journal, until_done
from domain.ports import ObjectStore, Position, Query, ReadStore, after
from workers.audio import master
from workers.engine import Clip, EngineError, EngineRequest, Progress, Take

logger = logging.getLogger(__name__)

PAGE: Final = 500
REMEMBERED: Final = 100_000
PROGRESS_EVERY: Final = 0.5
HEARTBEAT_SECONDS: Final = 3.0
T = TypeVar("T")


class Generator(Protocol):
    """An engine as the worker sees it; closing the iterator stops the request before it returns."""

    @property
    def device(self) -> str: ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]: ...


def sample_id(job_id: str, index: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"sample:{job_id}:{index}"))


def folder(job_id: str) -> str:
    """Where a job's audio lies, in a folder for each attempt."""
    return f"samples/{job_id}"


class _Run:
    """The job in hand: as it was claimed, and as the log has it now."""

    def __init__(self, claimed: Job, task: asyncio.Task[None]) -> None:
        self.claimed = claimed
        self.job = claimed
        self.task = task

    def stop(self) -> None:
        """Once: a second cancel would break into the clean-up that the first one set off."""
        if not self.task.cancelling():
            self.task.cancel()

    @property
    def is_held(self) -> bool:
        return self.job.status == "processing" and self.job.attempt == self.claimed.attempt


class GenerationWorker:
    """`lease` is how long a silent worker keeps its jobs, and `backoff` the first wait before a retry, in seconds."""

    def __init__(
        self,
        journal: Journal,
        store: ReadStore,
        objects: ObjectStore,
        engine: Generator,
        model_id: str,
        *,
        lease: float = 6.0,
        backoff: float = 1.0,
    ) -> None:
        self.id = journal.new_id()
        self._journal = journal
        self._store = store
        self._objects = objects
        self._engine = engine
        self._model_id = model_id
        self._lease = lease
        self._backoff = backoff
        self._jobs: dict[str, Job] = {}
        self._closed: dict[str, None] = {}
        self._heard: dict[str, float] = {}
        self._resting: dict[str, float] = {}
        self._frontier = Frontier()
        self._running: _Run | None = None

    async def run(self) -> None:
        """Until cancelled; a job in hand then goes back to the queue."""
        barrier = await self._until_done(lambda: self._journal.log.ends("jobs"))
        await self._until_done(self._load_open_jobs)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._heartbeat())
                await self._frontier.reached(Position("jobs", number, end - 1) for number, end in barrier.items())
                await self._work()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease):
                    await self._append(self._alive("stopped"))

    async def _load_open_jobs(self) -> None:
        """The views' open jobs, and where to read on: closed ones need never be folded again."""
        marks = await self._store.watermarks()
        jobs_partitions = range(self._journal.log.topics["jobs"].partitions)
        start = {("jobs", number): marks.get(("jobs", number), 0) for number in jobs_partitions}
        for number, end in (await self._journal.log.ends("progress")).items():
            start["progress", number] = end
        await self._frontier.advance(start)
        # A job that is deleted in the meantime is found among the hidden ones, which are read last.
        for hidden in (False, True):
            after = None
            while page := await self._store.find(
                JOBS, Query(equal={"open": True}, hidden=hidden, after=after, limit=PAGE)
            ):
                self._jobs |= {job.id: job for job in page}
                after = (page[-1].created_at, page[-1].id)
        self._heard = dict.fromkeys((job.worker_id for job in self._jobs.values() if job.worker_id), time.monotonic())

    async def _follow(self) -> None:
        async for batch in self._journal.follow(dict(self._frontier.next)):
            for recorded in batch:
                self._fold(recorded)
            await self._frontier.advance(after(recorded.position for recorded in batch))

    def _fold(self, recorded: Recorded) -> None:
        if isinstance(recorded.event, WorkerAlive):
            self._heard[recorded.event.worker_id] = time.monotonic()
        if recorded.position.topic != "jobs" or recorded.key in self._closed:
            return
        job = jobs.evolve(self._jobs.get(recorded.key), recorded)
        if job is None:
            return
        if not (job.is_open and job.retry_at):
            self._resting.pop(job.id, None)
        elif isinstance(recorded.event, JobAttemptFailed):
            # Both moments are of one clock, and the wait is spent by another that never jumps.
            wait = datetime.fromisoformat(job.retry_at) - datetime.fromisoformat(recorded.time)
            self._resting[job.id] = time.monotonic() + wait.total_seconds()
        if job.is_open:
            self._jobs[job.id] = job
            if job.worker_id:
                self._heard.setdefault(job.worker_id, time.monotonic())
        else:
            self._jobs.pop(job.id, None)
            self._closed[job.id] = None
            if len(self._closed) > REMEMBERED:
                del self._closed[next(iter(self._closed))]
        if (run := self._running) and run.job.id == job.id:
            run.job = job
            if not run.is_held:
                run.stop()

    async def _heartbeat(self) -> None:
        while True:
            await self._append(self._alive("busy" if self._running else "ready"))
            await asyncio.sleep(min(self._lease / 3, HEARTBEAT_SECONDS))

    def _alive(self, state: str) -> WorkerAlive:
        return WorkerAlive(worker_id=self.id, model_id=self._model_id, state=state, device=self._engine.device)

    async def _work(self) -> None:
        while True:
            job = self._next_job()
            if job is None:
                await self._wait_for_change(self._lease / 10)
            elif job.status == "cancelling":
                await self._clean_up(job)
            else:
                await self._take(job)

    async def _wait_for_change(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._frontier.moved()

    def _next_job(self) -> Job | None:
        now = time.monotonic()
        free = [job for job in self._jobs.values() if self._is_free(job, now)]
        return min(
            free,
            key=lambda job: (job.status != "cancelling", -job.request.priority, job.created_at, job.id),
            default=None,
        )

    def _is_free(self, job: Job, now: float) -> bool:
        """Asked only with no job in hand: one that this worker holds nevertheless was dropped by a fault."""
        abandoned = job.worker_id == self.id or self._heard.get(job.worker_id or "", 0.0) < now - self._lease
        match job.status:
            case "queued":
                return job.request.model_id == self._model_id and self._resting.get(job.id, now) <= now
            case _:
                return abandoned

    async def _take(self, job: Job) -> None:
        """Claims the job and carries it out, if the claim is the first on the log."""
        await self._frontier.reached(await self._append(jobs.start(job, self.id)))
        claimed = self._jobs.get(job.id)
        if claimed is None or (claimed.status, claimed.worker_id) != ("processing", self.id):
            return
        if claimed.lost >= MAX_LOST:
            await self._sweep(claimed, claimed.attempt)
            error = f"Its worker vanished {MAX_LOST} times in a row without finishing a sample."
            await self._frontier.reached(
                await self._append(JobFailed(job_id=job.id, attempt=claimed.attempt, error=error))
            )
            return
        if claimed.request.model_id != self._model_id:
            # Its own model's workers are gone: back to the queue, for one that comes again.
            await self._frontier.reached(await self._append(jobs.release(claimed, self._journal.now())))
            return
        run = self._running = _Run(claimed, asyncio.create_task(self._carry_out(claimed)))
        try:
            await asyncio.wait({run.task})
        except asyncio.CancelledError:
            run.stop()
            await asyncio.wait({run.task})
            if run.is_held:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease):
                        await self._append(jobs.release(claimed, self._journal.now()))
            raise
        finally:
            self._running = None
        if not run.task.cancelled():
            run.task.result()
        await self._sweep(run.job, claimed.attempt)

    async def _carry_out(self, job: Job) -> None:
        """Ends with the job completed, failed or back in the queue; cancelled as soon as the claim is over."""
        try:
            await self._generate(job)
            outcome: Event = JobCompleted(job_id=job.id, attempt=job.attempt)
        except EngineError as error:
            outcome = self._failed(job, str(error), transient=error.transient)
        except Exception as error:
            logger.exception("Attempt %d of job %s failed.", job.attempt, job.id)
            outcome = self._failed(job, f"{type(error).__name__}: {error}", transient=True)
        # Before the job may close: nobody looks into a closed job's folder again.
        if current := self._jobs.get(job.id):
            await self._sweep(current, job.attempt)
        await self._frontier.reached(await self._append(outcome))

    def _failed(self, job: Job, error: str, *, transient: bool) -> Event:
        wait = timedelta(seconds=self._backoff * 2**job.failures)
        retry_at = timestamp(datetime.fromisoformat(self._journal.now()) + wait)
        return jobs.report_failure(job, error, retry_at if transient else None)

    async def _generate(self, job: Job) -> None:
        request = job.request
        takes = [Take(index, request.seeds[index]) for index in job.missing]
        engine_request = EngineRequest(
            id=f"{job.id}/{job.attempt}",
            prompt=request.prompt,
            duration=request.duration,
            takes=takes,
            sampling=request.sampling,
        )
        reported = 0.0
        async with aclosing(self._engine.generate(engine_request)) as updates:
            async for update in updates:
                if isinstance(update, Clip):
                    await self._keep(job, update)
                elif time.monotonic() - reported >= PROGRESS_EVERY:
                    reported = time.monotonic()
                    await self._append(
                        JobProgressed(
                            job_id=job.id,
                            attempt=job.attempt,
                            fraction=1 - len(takes) * (1 - update.fraction) / len(request.seeds),
                            stage=update.stage,
                            eta_seconds=update.eta_seconds,
                        )
                    )

    async def _keep(self, job: Job, clip: Clip) -> None:
        """Audio first, event second: what the log speaks of exists."""
        request, ident = job.request, sample_id(job.id, clip.index)
        tags = {
            "title": request.prompt,
            "artist": request.model_id,
            "date": self._journal.now()[: len("2026-01-31")],
            "comment": msgspec.json.encode(
                {
                    "sample_id": ident,
                    "job_id": job.id,
                    "seed": clip.seed,
                    "model": request.model_id,
                    "adapter": request.adapter,
                    "sampling": request.sampling,
                }
            ).decode(),
        }
        made = await asyncio.to_thread(master, clip.pcm, clip.sample_rate, tags)
        path = f"{folder(job.id)}/{job.attempt}/{clip.index}"
        await self._put(f"{path}.flac", made.flac)
        await self._put(f"{path}.json", msgspec.json.encode(made.waveform))
        placed = await self._append(
            SampleGenerated(
                job_id=job.id,
                attempt=job.attempt,
                index=clip.index,
                sample_id=ident,
                seed=clip.seed,
                storage_path=f"{path}.flac",
                duration_seconds=made.duration_seconds,
                sample_rate=clip.sample_rate,
                channels=clip.pcm.shape[0],
                size=made.size,
                sha256=made.sha256,
                loudness_lufs=made.loudness_lufs,
            )
        )
        await self._frontier.reached(placed)

    async def _put(self, key: str, data: bytes) -> None:
        """A cancel waits for the write in hand: one that landed later would outlive the clean-up."""

        async def put() -> None:
            writing = asyncio.create_task(self._objects.put(key, data))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})
                writing.exception()
                raise

        await self._until_done(put)

    async def _sweep(self, job: Job, attempt: int) -> None:
        """Removes what this attempt and those before it stored and the log does not hold; a later one is another's."""
        if job.status == "cancelling":
            return
        kept = tuple(sample.event.storage_path.removesuffix("flac") for sample in job.samples)
        for stored in await self._until_done(lambda: self._objects.list(folder(job.id))):
            made_by = stored.key.split("/")[2]
            if made_by.isdecimal() and int(made_by) <= attempt and not stored.key.startswith(kept):
                await self._until_done(partial(self._objects.delete, stored.key))

    async def _clean_up(self, job: Job) -> None:
        """Says cancelled only once the partial outputs are gone."""
        await self._until_done(lambda: self._objects.delete(folder(job.id)))
        await self._frontier.reached(await self._append(JobCancelled(job_id=job.id, worker_id=self.id)))

    async def _append(self, event: Event) -> list[Position]:
        event_id = self._journal.new_id()
        return await self._until_done(lambda: self._journal.append(event, event_id=event_id))

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        return await until_done(call, f"Worker {self.id}")
