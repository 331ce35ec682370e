"""A worker has a training carried out in a process of its own, stores its checkpoints, and registers its adapter."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import msgspec

from domain import adapters, trainings
from domain.adapters import ADAPTERS
from domain.attempts import MAX_LOST
from domain.errors import ConflictError, DamagedError, InvalidError, NotFoundError, UnavailableError, UncertainError
from domain.events import MAX_ERROR, Event
from domain.events.adapters import MAX_ENTRIES, AdapterRegistered
from domain.events.progress import TrainingProgressed, WorkerAlive
from domain.events.trainings import (
    TrainingCancelled,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingSample,
)
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, ReadStore
from domain.trainings import SAMPLES, TRAININGS, Training, folder
from workers import adapter_files
from workers.claims import Claims
from workers.engines.checkpoints import resolve
from workers.scratch import ScratchError, check, scratch, sweep, taken
from workers.trade import AttemptError, BrokenError, Run
from workers.training import process
from workers.training.config import config
from workers.training.process import Died, Ended, Kept, Order, Progressed, Refused
from workers.training.result import RESULT, Result
from workers.training.standing import FILE, standing_of
from workers.training_results import curve, described, sample, sound

SEEN_SECONDS: Final = 30.0
PROGRESS_EVERY: Final = 1.0
REMEMBERED: Final = 1_000
WHO: Final = "The trainer"

logger: Final = logging.getLogger(__name__)


class Datasets(Protocol):
    async def open(self, dataset_id: str, place: Path) -> Path:
        """An export below `place`. Raises NotFoundError, DamagedError, and ConflictError before it is built."""


class Folded(Protocol):
    async def caught_up(self, seconds: float) -> bool:
        """Whether the views show within that time all that is on the log now."""


class Register(Protocol):
    async def __call__(
        self,
        registration: AdapterRegistered,
        store: Callable[[], Awaitable[None]],
        discard: Callable[[], Awaitable[None]],
    ) -> Any:
        """Registers an adapter. `store` puts its files in their place first, `discard` removes them where another one
        of its name and version was registered meanwhile. Raises ConflictError, also for one that was there before.
        """


def worker(
    journal: Journal,
    store: ReadStore,
    objects: ObjectStore,
    datasets: Datasets,
    register: Register,
    *,
    folded: Folded,
    place: Path,
    lease: float = 6.0,
    backoff: float = 1.0,
    device: str | None = None,
    checkpoint_seconds: float = 120.0,
) -> Claims[Training]:
    """One that trains one adapter at a time. `place` is a folder for what it can make again."""
    trade = Learning(
        journal,
        store,
        objects,
        datasets,
        register,
        folded=folded,
        place=place,
        lease=lease,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
    )
    return Claims(journal, store, trade, lease=lease, backoff=backoff)


class Learning:
    view = TRAININGS
    span = "train"

    def __init__(
        self,
        journal: Journal,
        store: ReadStore,
        objects: ObjectStore,
        datasets: Datasets,
        register: Register,
        *,
        folded: Folded,
        place: Path,
        lease: float = 6.0,
        device: str | None = None,
        checkpoint_seconds: float = 120.0,
    ) -> None:
        self._journal = journal
        self._objects = objects
        self._store = store
        self._datasets = datasets
        self._folded = folded
        self._register_adapter = register
        # The process that trains has another working directory.
        self._place = place.absolute()
        self._lease = lease
        self._device = device
        self._checkpoint_seconds = checkpoint_seconds
        # The attempt whose samples an event names that may not be folded yet.
        self._sampled: dict[str, int] = {}

    def alive(self, worker_id: str, state: str) -> WorkerAlive:
        """It has no model to generate with, so no API takes it for a worker that has one."""
        return WorkerAlive(worker_id=worker_id, model_id="", state=state, device=self._device or "cpu")

    def job_id(self, training: Training) -> str | None:  # noqa: ARG002
        return None

    def urgency(self, training: Training) -> Any:
        return training.created_at, training.id

    def size(self, training: Training) -> int:  # noqa: ARG002
        return 1

    def is_able(self, training: Training) -> bool:  # noqa: ARG002
        return True

    def start(self, training: Training, worker_id: str) -> Event:
        return trainings.start(training, worker_id)

    def release(self, training: Training, now: str, why: str) -> Event:
        return trainings.release(training, now, why)

    def give_up(self, training: Training) -> Event | None:
        if training.lost < MAX_LOST:
            return None
        error = f"Its worker vanished {MAX_LOST} times in a row without a checkpoint."
        return TrainingFailed(training_id=training.id, attempt=training.attempt, error=error)

    def fail(self, training: Training, error: str, retry_at: str | None) -> Event:
        return trainings.report_failure(training, error, retry_at)

    async def perform(self, run: Run[Training]) -> Event:
        try:
            with scratch(self._place):
                return await self._perform(run)
        except UnavailableError as error:
            raise BrokenError(str(error)) from error

    async def _perform(self, run: Run[Training]) -> Event:
        await asyncio.to_thread(sweep, self._place)
        with (
            taken(self._place) as own,
            # The process of a trainer that was killed may still be writing to a folder of the same number.
            TemporaryDirectory(prefix="training-", dir=own, ignore_cleanup_errors=True) as name,
        ):
            here = Path(name)
            data = await self._data(run.claimed, here)
            output = here / "output"
            output.mkdir()
            await self._fetch_checkpoint(run.claimed, output)
            await self._train(run, data, output)
            result = msgspec.json.decode(await asyncio.to_thread((output / RESULT).read_bytes), type=Result)
            adapter_id = None
            samples: list[TrainingSample] = []
            if result.status == "completed":
                adapter_id = await self._register(run.claimed, result, output)
                samples = [await sample(run.claimed, self._objects, each, output) for each in result.samples]
                self._sampled[run.claimed.id] = run.claimed.attempt
                if len(self._sampled) > REMEMBERED:
                    del self._sampled[next(iter(self._sampled))]
        return TrainingCompleted(
            training_id=run.claimed.id,
            attempt=run.claimed.attempt,
            step=len(result.curve),
            steps=result.config.steps,
            adapter_id=adapter_id,
            message=" ".join([result.message, *result.warnings])[:MAX_ERROR],
            metrics=dict(list(result.metrics.items())[:MAX_ENTRIES]),
            curve=curve(result.curve),
            samples=tuple(samples),
        )

    async def check(self) -> None:
        try:
            await asyncio.to_thread(check, self._place)
        except UnavailableError as error:
            raise BrokenError(str(error)) from error

    async def tidy(self, training: Training, attempt: int) -> None:
        """Of a training that has ended no checkpoint stays, but its samples do. Of an open one the last checkpoint
        stays, and newer ones: the event that names them may be on its way to the log.
        """
        for stored in await until_done(partial(self._objects.list, folder(training.id)), WHO):
            _, _, first, *rest = stored.key.split("/")
            made_by = rest[0] if first == SAMPLES else first
            if made_by.isdecimal() and int(made_by) <= attempt and not self._is_needed(training, stored.key):
                await until_done(partial(self._objects.delete, stored.key), WHO)

    def _is_needed(self, training: Training, key: str) -> bool:
        if key.startswith(f"{folder(training.id)}/{SAMPLES}/"):
            ended = training.attempt if training.status == "completed" else None
            return int(key.split("/")[3]) in {ended, self._sampled.get(training.id)}
        step = key.rpartition("/")[2].removesuffix(".safetensors")
        return training.is_open and step.isdecimal() and int(step) >= training.step

    async def cancel(self, training: Training, worker_id: str) -> Event:
        await until_done(partial(self._objects.delete, folder(training.id)), WHO)
        return TrainingCancelled(training_id=training.id, worker_id=worker_id)

    async def _data(self, training: Training, here: Path) -> Path:
        # The request came after its dataset, and the views may be behind both.
        while not await until_done(partial(self._folded.caught_up, SEEN_SECONDS), WHO):
            logger.warning("Training %s waits for the views to show its dataset.", training.id)
        try:
            return await until_done(partial(self._opened, training.request.dataset_id, here), WHO)
        except (NotFoundError, ConflictError, DamagedError) as error:
            raise AttemptError(f"{error} Build a dataset, and ask for a training on it.") from error

    async def _opened(self, dataset_id: str, here: Path) -> Path:
        """Raises BrokenError where the disk has no room, and UnavailableError, which can be waited for."""
        try:
            return await self._datasets.open(dataset_id, here)
        except ScratchError as error:
            raise BrokenError(str(error)) from error

    async def _fetch_checkpoint(self, training: Training, output: Path) -> None:
        """Without one, or with one that is not what was stored, the training begins anew."""
        if training.checkpoint is None:
            return
        key = training.checkpoint.storage_path

        async def fetch() -> bytes:
            return b"".join([chunk async for chunk in self._objects.read(key)])

        try:
            content = await until_done(fetch, WHO)
        except NotFoundError:
            return
        if sha256(content).hexdigest() == training.checkpoint.sha256:
            await asyncio.to_thread((output / FILE).write_bytes, content)

    async def _train(self, run: Run[Training], data: Path, output: Path) -> None:
        """Raises AttemptError."""
        request = run.claimed.request
        order = Order(
            method=request.method,
            config=request.config,
            data=str(data),
            output=str(output),
            cache=str(self._place / "codes"),
            device=self._device,
            checkpoint_seconds=self._checkpoint_seconds,
        )
        reported, telling = 0.0, None
        try:
            async with aclosing(process.train(order, output.parent / "order.json")) as sayings:
                async for said in sayings:
                    match said:
                        case Progressed() if time.monotonic() - reported >= PROGRESS_EVERY:
                            reported = time.monotonic()
                            # Progress that the log does not take at once holds up nothing but the next one.
                            if telling is None or telling.done():
                                telling = asyncio.create_task(self._tell(run.claimed, said))
                        case Kept():
                            await self._keep(run, output / FILE)
                        case Refused(error=error, transient=transient):
                            raise BrokenError(error) if transient else AttemptError(error)
                        case Ended(status="stopped"):
                            raise AttemptError("The training was stopped.", transient=True)
        except Died as error:
            raise AttemptError(f"The training's process ended: {error}", transient=True) from error
        except asyncio.CancelledError:
            if run.is_held:
                await self._keep_last(run, output / FILE)
            raise
        finally:
            if telling is not None:
                telling.cancel()

    async def _tell(self, training: Training, said: Progressed) -> None:
        event = TrainingProgressed(
            training_id=training.id,
            attempt=training.attempt,
            stage=said.stage,
            step=said.step,
            steps=said.steps,
            values=sound(said.values),
        )
        with suppress(UnavailableError, UncertainError):
            await self._journal.append(event)

    async def _keep(self, run: Run[Training], path: Path) -> None:
        before = run.current.checkpoint
        if (kept := await self._stored(run, path)) is None:
            return
        await run.append(kept)
        if before is not None:
            await until_done(partial(self._objects.delete, before.storage_path), WHO)

    async def _keep_last(self, run: Run[Training], path: Path) -> None:
        """What the process kept as it was stopped, so that the next trainer goes on from there; within a lease, as a
        worker that stops reads no longer what it appends, and may not be waited for.
        """
        with suppress(TimeoutError, FileNotFoundError, UnavailableError, UncertainError):
            async with asyncio.timeout(self._lease):
                if (kept := await self._stored(run, path)) is not None:
                    await self._journal.append(kept)

    async def _stored(self, run: Run[Training], path: Path) -> TrainingCheckpointed | None:
        """The event about a checkpoint that has been stored, in a folder of the claim that no other has; None for the
        one that stands there already.
        """
        training = run.claimed
        content = await asyncio.to_thread(path.read_bytes)
        standing = standing_of(content)
        if standing.step == (run.current.checkpoint.step if run.current.checkpoint else 0):
            return None
        key = f"{folder(training.id)}/{training.attempt}/{training.position}/{standing.step}.safetensors"
        await until_done(partial(self._objects.put, key, content), WHO)
        return TrainingCheckpointed(
            training_id=training.id,
            attempt=training.attempt,
            step=standing.step,
            steps=config(training.request.method, training.request.config).steps,
            storage_path=key,
            sha256=sha256(content).hexdigest(),
            curve=curve(standing.curve),
        )

    async def _register(self, training: Training, result: Result, output: Path) -> str:
        """The adapter's id. Doing it twice registers it once. Raises AttemptError where another one has its name."""
        request = training.request
        id_ = adapters.adapter_id(request.adapter_name, request.adapter_version)
        model = await asyncio.to_thread(lambda: resolve(result.base_model).model)
        try:
            checked = await asyncio.to_thread(adapter_files.check, output, model)
        except InvalidError as error:
            raise AttemptError(f"The adapter that came of it cannot be used: {error}") from error
        registration = AdapterRegistered(
            adapter_id=id_,
            adapter_name=request.adapter_name,
            adapter_version=request.adapter_version,
            base_model=result.base_model,
            base_revision=result.base_revision,
            rank=checked.rank,
            storage_path=adapters.folder(checked.sha256, id_),
            size=checked.size,
            sha256=checked.sha256,
            files=checked.files,
            description=f"Trained by {request.method} on dataset {request.dataset_id}.",
            training_dataset_id=request.dataset_id,
            training_id=training.id,
            training_config=described(result),
            metrics=dict(list(sound(result.metrics).items())[:MAX_ENTRIES]),
            user_id=request.user_id,
        )
        place = registration.storage_path

        async def store() -> None:
            for file in checked.files:
                content = await asyncio.to_thread((output / file.name).read_bytes)
                await until_done(partial(self._objects.put, f"{place}/{file.name}", content, replace=False), WHO)

        async def discard() -> None:
            await until_done(partial(self._objects.delete, place), WHO)

        there = (await until_done(partial(self._store.get, ADAPTERS, [id_]), WHO)).get(id_)
        if there is not None and there.request.training_id == training.id:
            return id_
        try:
            await until_done(partial(self._register_adapter, registration, store, discard), WHO)
        except ConflictError as error:
            raise AttemptError(f"{error} Ask for the training again with another adapter_version.") from error
        return id_
