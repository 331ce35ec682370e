"""What a worker does with a generation job: has it made by its engine, stores the audio, reports."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Any, Final, Protocol, TypeVar
from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec import convert
from msgspec.structs import asdict

from domain import jobs, prompts
from domain.attempts import MAX_LOST
from domain.errors import DamagedError, NotFoundError, Text2SongError, UnavailableError
from domain.events import Event
from domain.events.jobs import JobCancelled, JobCompleted, JobFailed, JobSubmitted, SampleGenerated
from domain.events.progress import JobProgressed, LoadedModel, WorkerAlive
from domain.events.prompts import PromptCreated
from domain.families import FAMILIES
from domain.generation import fits, mismatch
from domain.jobs import JOBS, Job, folder, waveform
from domain.journal import Journal, until_done
from domain.models import Model, described
from domain.ports import ObjectStore, ReadStore
from domain.prompts import CONTROL, PROMPTS
from workers.adapters import AdapterFiles
from workers.claims import Claims
from workers.cores import usable_cores
from workers.engine import Adapter, Clip, EngineError, EngineRequest, Opening, Progress, Take
from workers.mastering import master
from workers.openings import melody, opening
from workers.purging import remove
from workers.trade import AttemptError, BrokenError, Run
from workers.uploads import finished

PROGRESS_EVERY: Final = 0.5
T = TypeVar("T")


class Generator(Protocol):
    """An engine as the worker sees it; closing the iterator stops the request before it returns."""

    @property
    def device(self) -> str: ...

    @property
    def busy(self) -> int:
        """How many samples it is making."""

    @property
    def real_time_factor(self) -> float | None:
        """How many seconds of audio it makes in a second of work, None while that is not known."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]: ...

    async def check(self) -> None:
        """Carries out a small request of its own. Raises EngineError: then no request can be carried out."""


def sample_id(job_id: str, index: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"sample:{job_id}:{index}"))


def _asked(
    job: Job, takes: list[Take], adapter: Adapter | None, opening: Opening | None, melody: tuple[int, ...]
) -> EngineRequest:
    request = job.request
    return EngineRequest(
        id=f"{job.id}/{job.attempt}",
        prompt=request.model_prompt or request.prompt,
        duration=request.duration,
        takes=takes,
        sampling=request.sampling,
        adapter=adapter,
        opening=opening,
        melody=melody,
        is_judged=request.best_of > 1,
        parameters=request.parameters,
        lyrics=request.lyrics,
    )


def worker(
    journal: Journal,
    store: ReadStore,
    objects: ObjectStore,
    engine: Generator,
    model_id: str,
    *,
    capacity: int | Callable[[], int] = 1,
    lease: float = 6.0,
    backoff: float = 1.0,
    model: Model | None = None,
    adapters: AdapterFiles | None = None,
) -> Claims[Job]:
    """One that generates with this model, `capacity` samples at once, which may change. Times are in seconds, as in
    Claims.

    `model` is what it tells of the model; without `adapters` it fails jobs that need one.
    """
    generation = Generation(
        journal, store, objects, engine, model_id, model=model, adapters=adapters, capacity=capacity
    )
    return Claims(journal, store, generation, capacity=capacity, lease=lease, backoff=backoff, turn=turn)


def turn(job: Job) -> tuple[int, str]:
    """Its rank and its owner: a person, or else a client's or a blind test's jobs together."""
    request = job.request
    return -request.priority, request.user_id or request.client_id or request.ab_test_id or ""


class Generation:
    view = JOBS
    span = "generate"

    def __init__(
        self,
        journal: Journal,
        store: ReadStore,
        objects: ObjectStore,
        engine: Generator,
        model_id: str,
        *,
        model: Model | None = None,
        adapters: AdapterFiles | None = None,
        capacity: int | Callable[[], int] | None = None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._objects = objects
        self._engine = engine
        self._model_id = model_id
        self._model = model
        self._adapters = adapters
        self._capacity = capacity
        # Of its own, as every file operation waits for a thread of the common one.
        self._mastering = ThreadPoolExecutor(max(1, usable_cores() // 2), "mastering")

    def alive(self, worker_id: str, state: str) -> WorkerAlive:
        return WorkerAlive(
            worker_id=worker_id,
            model_id=self._model_id,
            state=state,
            device=self._engine.device,
            model=convert(asdict(self._model), LoadedModel) if self._model else None,
            capacity=self._capacity() if callable(self._capacity) else self._capacity,
            busy=self._engine.busy,
            real_time_factor=self._engine.real_time_factor,
        )

    def job_id(self, job: Job) -> str | None:
        return job.id

    def urgency(self, job: Job) -> Any:
        return -job.request.priority, job.created_at, job.id

    def size(self, job: Job) -> float:
        """The samples that it still has to make: each takes a place in the engine.

        One that may have ended an engine runs alone, as it would take those beside it along, try after try.
        """
        return inf if job.failures or job.lost > 1 else len(job.missing)

    def is_able(self, job: Job) -> bool:
        """Of one revision of the model nothing is made with another one, as far as both are known."""
        revisions = {job.request.model_revision, self._model.revision if self._model else None}
        return job.request.model_id == self._model_id and (None in revisions or len(revisions) == 1)

    def start(self, job: Job, worker_id: str) -> Event:
        return jobs.start(job, worker_id)

    def release(self, job: Job, now: str, why: str) -> Event:
        return jobs.release(job, now, why)

    def give_up(self, job: Job) -> Event | None:
        if job.lost < MAX_LOST:
            return None
        error = f"Its worker vanished {MAX_LOST} times in a row without finishing a sample."
        return JobFailed(job_id=job.id, attempt=job.attempt, error=error)

    def fail(self, job: Job, error: str, retry_at: str | None) -> Event:
        return jobs.report_failure(job, error, retry_at)

    async def perform(self, run: Run[Job]) -> Event:
        job, request = run.claimed, run.claimed.request
        if (unheard := self._unheard(request)) is not None:
            raise AttemptError(unheard)
        takes = [Take(index, request.seeds[index]) for index in job.missing]
        reported, telling, begins = 0.0, None, None
        if request.continuation is not None:
            begins = await opening(self._objects, request.continuation, self._model)
        followed = () if request.melody is None else await melody(self._objects, request.melody)
        try:
            async with (
                self._adapter(request) as adapter,
                aclosing(self._engine.generate(_asked(job, takes, adapter, begins, followed))) as updates,
            ):
                async for update in updates:
                    if isinstance(update, Clip):
                        await self._keep(run, update)
                    # Progress that the log does not take at once holds up nothing but the next one.
                    elif time.monotonic() - reported >= PROGRESS_EVERY and (telling is None or telling.done()):
                        reported = time.monotonic()
                        fraction = 1 - len(takes) * (1 - update.fraction) / len(request.seeds)
                        telling = asyncio.create_task(self._tell(job, update, fraction))
        except EngineError as error:
            raise AttemptError(str(error), transient=error.transient) from error
        finally:
            if telling is not None:
                telling.cancel()
        await self._keep_prompt(request)
        return JobCompleted(job_id=job.id, attempt=job.attempt)

    def _unheard(self, request: JobSubmitted) -> str | None:
        """What the model would make nothing of, in a request that the API did not check."""
        if self._model is None or self._model.family not in FAMILIES:
            return None
        model = described(self._model)
        if request.lyrics is not None and not model.may("lyrics"):
            return f"There are lyrics, but {model.id} does not sing. Submit the job again without them."
        if request.melody is not None and not model.may("melody"):
            return f"There is a melody, but {model.id} follows none. Submit the job again without it."
        if unknown := sorted(request.parameters.keys() - {each.name for each in model.parameters}):
            return f"{unknown[0]} is no parameter of {model.id}. Submit the job again without it."
        return None

    @asynccontextmanager
    async def _adapter(self, request: JobSubmitted) -> AsyncIterator[Adapter | None]:
        """The job's adapter with its files at hand. Raises AttemptError where trying again cannot help, and BrokenError
        where this machine's disk refuses.
        """
        wanted = request.adapter
        if wanted is None:
            yield None
            return
        named = f"Adapter {wanted.name} {wanted.version} ({wanted.id})"
        revision = self._model.revision if self._model else None
        if wanted.base_model != self._model_id or not fits(wanted, revision):
            required = "@".join(filter(None, (wanted.base_model, wanted.base_revision)))
            raise AttemptError(mismatch(required, "@".join(filter(None, (self._model_id, revision)))))
        if self._adapters is None:
            raise AttemptError(f"{named} cannot be used: this worker takes no adapters.")
        async with AsyncExitStack() as stack:
            try:
                folder = await stack.enter_async_context(self._adapters.use(wanted))
            except NotFoundError as error:
                detail = f"its file {error.key!r} is gone from the object store. Put it back, and submit the job again"
                raise AttemptError(f"{named} cannot be used: {detail}.") from error
            except DamagedError as error:
                raise AttemptError(f"{named} cannot be used: {error}.") from error
            except UnavailableError as error:
                raise BrokenError(str(error)) from error
            yield Adapter(sha256=folder.name, folder=str(folder), scale=request.adapter_scale)

    async def check(self) -> None:
        try:
            if self._adapters is not None:
                await asyncio.to_thread(self._adapters.check)
            await self._engine.check()
        except Exception as error:
            raise BrokenError(str(error) or repr(error)) from error

    async def tidy(self, job: Job, attempt: int) -> None:
        others = {sample.event.index for row in job.rows for sample in row} - {s.event.index for s in job.kept}
        kept = tuple(s.event.storage_path.removesuffix("flac") for s in job.samples if s.event.index not in others)
        for stored in await self._until_done(partial(self._objects.list, folder(job.id))):
            made_by = stored.key.split("/")[2]
            if made_by.isdecimal() and int(made_by) <= attempt and not stored.key.startswith(kept):
                await self._until_done(partial(self._objects.delete, stored.key))

    async def cancel(self, job: Job, worker_id: str) -> Event:
        await remove(self._objects, job.id)
        return JobCancelled(job_id=job.id, worker_id=worker_id)

    async def _keep_prompt(self, request: JobSubmitted) -> None:
        """Of a submission that the log took only half of, the prompt may be the half that is missing."""
        ident = request.prompt_id
        if ident == prompts.own_id(request.job_id) and not await self._until_done(
            lambda: self._store.get(PROMPTS, [ident])
        ):
            created = PromptCreated(prompt_id=ident, text=request.prompt, user_id=request.user_id)
            await self._until_done(lambda: self._journal.append(created))

    async def _tell(self, job: Job, update: Progress, fraction: float) -> None:
        with suppress(Text2SongError):
            await self._journal.append(
                JobProgressed(
                    job_id=job.id,
                    attempt=job.attempt,
                    fraction=fraction,
                    stage=update.stage,
                    eta_seconds=update.eta_seconds,
                )
            )

    async def _keep(self, run: Run[Job], clip: Clip) -> None:
        """Stores the audio first and appends the event second, so that every event's audio exists.

        It lies in a folder of the claim, of the attempt and where on the log the job then stood, which no other has.
        """
        job, request, ident = run.claimed, run.claimed.request, sample_id(run.claimed.id, clip.index)
        continued = request.continuation
        if request.best_of_by is not None and getattr(clip, request.best_of_by) is None:
            said = (
                "the adapter has no preference model" if request.best_of_by == "preference" else "the engine gave none"
            )
            raise AttemptError(f"No {request.best_of_by} is known of candidates, so that none can be picked: {said}.")
        tags = {
            "title": CONTROL.sub(" ", request.prompt),
            "artist": request.model_id,
            "date": self._journal.now()[: len("2026-01-31")],
            "comment": msgspec.json.encode(
                {
                    "sample_id": ident,
                    "job_id": job.id,
                    "seed": clip.seed,
                    "model": request.model_id,
                    "adapter": request.adapter,
                    "adapter_scale": request.adapter_scale if request.adapter else None,
                    "sampling": request.sampling,
                    "continue_from": continued.sample_id if continued else None,
                    "continue_seconds": continued.seconds if continued else None,
                    **({"melody_from": request.melody.id} if request.melody else {}),
                    **({"best_of": request.best_of, "likelihood": clip.likelihood} if request.best_of > 1 else {}),
                    **({"parameters": request.parameters} if request.parameters else {}),
                }
            ).decode(),
            **({"lyrics": request.lyrics} if request.lyrics is not None else {}),
        }
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._mastering, master, clip.pcm, clip.sample_rate, tags)
        path = f"{folder(job.id)}/{job.attempt}/{job.position}/{clip.index}.flac"
        await self._put(path, made.flac)
        await self._put(waveform(path), msgspec.json.encode(made.waveform))
        await run.append(
            SampleGenerated(
                job_id=job.id,
                attempt=job.attempt,
                index=clip.index,
                sample_id=ident,
                seed=clip.seed,
                storage_path=path,
                duration_seconds=made.duration_seconds,
                sample_rate=clip.sample_rate,
                channels=clip.pcm.shape[0],
                size=made.size,
                sha256=made.sha256,
                loudness_lufs=made.loudness_lufs,
                pcm_sha256=made.pcm_sha256,
                likelihood=clip.likelihood,
                preference=clip.preference,
            )
        )

    async def _put(self, key: str, data: bytes) -> None:
        put = partial(self._objects.put, key, data, replace=False)
        await self._until_done(partial(finished, put))

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        return await until_done(call, "The worker")
