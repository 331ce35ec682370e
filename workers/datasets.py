"""What a worker does with a dataset: replays the log up to where it stands now, stores the list of items, reports."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import msgspec

from domain import datasets
from domain.attempts import MAX_LOST
from domain.datasets import DATASETS, Dataset
from domain.errors import UnavailableError, UnknownVersionError
from domain.events import Event, Recorded
from domain.events.datasets import DatasetBuilt, DatasetCreated, DatasetFailed
from domain.events.progress import WorkerAlive
from domain.feedback import FEEDBACK
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, ReadStore, TopicPartition
from domain.raters import Raters
from workers.claims import Claims
from workers.dataset_replay import TOPICS, Replay, Summary
from workers.scratch import check, scratch
from workers.trade import BrokenError, Run
from workers.uploads import finished

REMEMBERED: Final = 1_000
RATERS: Final = "raters.jsonl"
T = TypeVar("T")


def worker(
    journal: Journal,
    store: ReadStore,
    objects: ObjectStore,
    scratch: Path | None = None,
    *,
    lease: float = 6.0,
    backoff: float = 1.0,
) -> Claims[Dataset]:
    """One that builds datasets. `scratch` is a folder for its temporary files; times are in seconds, as in Claims."""
    return Claims(journal, store, Building(journal, objects, scratch), lease=lease, backoff=backoff)


class Replayed:
    """A dataset made of the log up to `positions`: its list in `file`, what it counts, and its listeners."""

    def __init__(self, positions: dict[str, int], summary: Summary, raters: Raters, file: BinaryIO) -> None:
        self.positions = positions
        self.summary = summary
        self.raters = raters
        self.file = file


class Building:
    view = DATASETS
    span = "build dataset"

    def __init__(self, journal: Journal, objects: ObjectStore, scratch: Path | None = None) -> None:
        self._journal = journal
        self._objects = objects
        self._scratch = scratch
        self._outdated: UnknownVersionError | None = None
        self._made: dict[str, str] = {}

    def alive(self, worker_id: str, state: str) -> WorkerAlive:
        """It has no model, so that nobody takes it for one that generates."""
        return WorkerAlive(worker_id=worker_id, model_id="", state=state)

    def job_id(self, dataset: Dataset) -> str | None:  # noqa: ARG002
        return None

    def urgency(self, dataset: Dataset) -> Any:
        return dataset.created_at, dataset.id

    def size(self, dataset: Dataset) -> int:  # noqa: ARG002 -- one is built after the other
        return 1

    def is_able(self, dataset: Dataset) -> bool:  # noqa: ARG002
        return True

    def start(self, dataset: Dataset, worker_id: str) -> Event:
        return datasets.start(dataset, worker_id)

    def release(self, dataset: Dataset, now: str, why: str) -> Event:
        return datasets.release(dataset, now, why)

    def give_up(self, dataset: Dataset) -> Event | None:
        if dataset.lost < MAX_LOST:
            return None
        error = f"Its worker vanished {MAX_LOST} times in a row. See that it has memory and disk enough."
        return DatasetFailed(dataset_id=dataset.id, attempt=dataset.attempt, error=error)

    def fail(self, dataset: Dataset, error: str, retry_at: str | None) -> Event:
        return datasets.report_failure(dataset, error, retry_at)

    async def perform(self, run: Run[Dataset]) -> Event:
        dataset = run.claimed
        place = f"{datasets.folder(dataset.id)}/{dataset.attempt}-{dataset.position}"
        try:
            async with replayed(self._journal, dataset.request, self._scratch) as made:
                summary = made.summary
                # The digest is the name, so that whoever has the one can check the other.
                key = f"{place}/{summary.digest}.jsonl"
                await _until_done(partial(finished, partial(self._objects.put_file, key, made.file, replace=False)))
                listed = await asyncio.to_thread(_listed, made.raters)
                await _until_done(partial(finished, partial(self._objects.put, f"{place}/{RATERS}", listed)))
        except UnknownVersionError as error:
            self._outdated = error
            raise
        except UnavailableError as error:
            raise BrokenError(str(error)) from error
        # An attempt is tidied up before its event is appended, and perhaps before one that was appended is folded.
        self._made[dataset.id] = place
        if len(self._made) > REMEMBERED:
            del self._made[next(iter(self._made))]
        return DatasetBuilt(
            dataset_id=dataset.id,
            attempt=dataset.attempt,
            items=key,
            size=summary.size,
            digest=summary.digest,
            sample_count=summary.count,
            positions=made.positions,
            splits=summary.splits,
            agreement=summary.agreement,
            judgements=summary.judgements,
            left_out=summary.left_out,
        )

    async def check(self) -> None:
        """What a newer version wrote, no attempt of this one can read."""
        if self._outdated is not None:
            raise BrokenError(str(self._outdated))
        try:
            await asyncio.to_thread(check, self._scratch)
        except UnavailableError as error:
            raise BrokenError(str(error)) from error

    async def tidy(self, dataset: Dataset, attempt: int) -> None:
        kept = {self._made.get(dataset.id), dataset.built and dataset.built.items.rpartition("/")[0]}
        for stored in await _until_done(partial(self._objects.list, datasets.folder(dataset.id))):
            place, _, _ = stored.key.rpartition("/")
            made_by = place.rpartition("/")[2].partition("-")[0]
            if made_by.isdecimal() and int(made_by) <= attempt and place not in kept:
                await _until_done(partial(self._objects.delete, stored.key))

    async def cancel(self, dataset: Dataset, worker_id: str) -> Event:
        raise NotImplementedError  # no dataset is ever stopping


@asynccontextmanager
async def replayed(
    journal: Journal,
    request: DatasetCreated,
    folder: Path | None,
    positions: dict[str, int] | None = None,
) -> AsyncIterator[Replayed]:
    """Up to where the log stands now, or to the positions. What is erased by now is not in it in either case.

    Its temporary files are in the folder. Raises UnknownVersionError at an event of a newer version, and
    UnavailableError where the disk is full.
    """
    ends = await _ends(journal, TOPICS)
    goal = ends if positions is None else {at: min(end, positions.get(_place(at), 0)) for at, end in ends.items()}
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1, "datasets")

    async def in_thread(call: Callable[[], T]) -> T:
        return await loop.run_in_executor(executor, call)

    with ExitStack() as stack:
        stack.callback(executor.shutdown, wait=False)
        stack.enter_context(scratch(folder))
        replay = await in_thread(partial(_begun, folder))
        try:
            await _follow(journal, dict.fromkeys(goal, 0), goal, lambda found: in_thread(partial(replay.take, found)))
            # A log in a file forgets erased records at once, and Kafka in a while: here they are gone from both alike.
            now = await _ends(journal, (FEEDBACK.name,))
            begin = {at: goal[at] for at in now}
            await _follow(journal, begin, now, lambda found: in_thread(partial(replay.erase, found)))
            with tempfile.TemporaryFile(dir=folder) as file:
                summary = await in_thread(lambda: replay.write(request, file))
                yield Replayed({_place(at): end for at, end in sorted(goal.items())}, summary, replay.raters, file)
        finally:
            # A thread that still writes is waited for, or the file would be closed under it.
            await asyncio.shield(in_thread(replay.close))


def _begun(folder: Path | None) -> Replay:
    """Its file has lost its name when this returns."""
    if folder is None:
        return Replay()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="replay-") as file:
        return Replay(file.name)


async def _follow(
    journal: Journal,
    start: dict[TopicPartition, int],
    goal: dict[TopicPartition, int],
    take: Callable[[Sequence[Recorded]], Any],
) -> None:
    """Hands on what stands before the goal."""
    at = {each: offset for each, offset in start.items() if offset < goal[each]}
    if not at:
        return
    following: Any = journal.follow(dict(at))
    async with aclosing(following) as batches:
        async for batch in batches:
            records = [
                recorded
                for recorded in batch.records
                if recorded.position.offset < goal[recorded.position.topic, recorded.position.partition]
            ]
            if records:
                await take(records)
            at |= batch.reached
            if all(offset >= goal[each] for each, offset in at.items()):
                return


async def _ends(journal: Journal, topics: Sequence[str]) -> dict[TopicPartition, int]:
    found: dict[TopicPartition, int] = {}
    # Judgements before jobs, which come last in the list: what was judged is there.
    for topic in topics:
        ends = await _until_done(partial(journal.log.ends, topic))
        found |= {(topic, number): end for number, end in ends.items()}
    return found


def _place(at: TopicPartition) -> str:
    return f"{at[0]}/{at[1]}"


def _listed(raters: Raters) -> bytes:
    """A line of JSON a listener, by name."""
    rows = [
        {"user_id": user, **msgspec.to_builtins(rater), "reliability": round(rater.reliability, 4)}
        for user, rater in sorted(raters.known.items())
    ]
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


async def _until_done(call: Callable[[], Any]) -> Any:
    return await until_done(call, "The building of datasets")
