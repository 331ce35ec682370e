"""Has every dataset say which of its records were erased since it was built, and takes them out of what is stored."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from domain.curation import AnyItem, Compared, samples
from domain.datasets import DATASETS, Dataset, erasure_id
from domain.errors import DamagedError
from domain.events import Erased, Recorded
from domain.events.datasets import MAX_ERASED, MAX_ERASURES, DatasetBuilt, DatasetRecordsErased
from domain.events.jobs import JobDeleted
from domain.feedback import FEEDBACK
from domain.jobs import JOBS
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, Position, Query, ReadStore
from workers.dataset_items import items
from workers.datasets import RATERS
from workers.reactions import PATIENCE_SECONDS, Views
from workers.scratch import scratch

WHO: Final = "The erasure from datasets"
PAGE: Final = 100

logger: Final = logging.getLogger(__name__)


class ErasureFromDatasets:
    """What is erased after a dataset was built meets the dataset's list, and a dataset that is built what was erased
    meanwhile, whichever is on the log first.
    """

    name = "dataset-erasures"
    topics = (JOBS.name, FEEDBACK.name, DATASETS.name)

    def __init__(
        self, journal: Journal, store: ReadStore, objects: ObjectStore, views: Views, scratch: Path | None = None
    ) -> None:
        """`scratch` is a folder for temporary files."""
        self._journal = journal
        self._store = store
        self._objects = objects
        self._views = views
        self._scratch = scratch

    async def react(self, batch: Sequence[Recorded]) -> None:
        built = list({recorded.key for recorded in batch if isinstance(recorded.event, DatasetBuilt)})
        new = await self._store.get(DATASETS, built) if built else {}
        for dataset in new.values():
            if dataset.built is not None:
                await self._look(dataset)
        feedback = {recorded.key: recorded.position for recorded in batch if isinstance(recorded.event, Erased)}
        jobs = {recorded.key: recorded.position for recorded in batch if isinstance(recorded.event, JobDeleted)}
        if not feedback and not jobs:
            return
        last = None
        while page := await self._store.find(DATASETS, Query(equal={"status": "built"}, after=last, limit=PAGE)):
            for dataset in page:
                gone = _since(dataset, feedback), _since(dataset, jobs)
                if any(gone):
                    await self._take_out(dataset, *gone)
            last = (page[-1].created_at, page[-1].id)

    async def _look(self, dataset: Dataset) -> None:
        """Asks the views, a page of items at a time, what is gone."""
        feedback, jobs = set(dataset.erased_feedback), set(dataset.erased_jobs)
        try:
            async for page in items(self._objects, dataset):
                found = [item for item in page if not isinstance(item, str)]
                judged, made = feedback_ids(found), {job for item in found for job in _job_ids(item)}
                feedback |= judged - (await self._store.get(FEEDBACK, list(judged))).keys()
                owners = await self._store.get(JOBS, list(made))
                jobs |= {job.id for job in owners.values() if job.deleted_at}
        except DamagedError:
            return
        await self._take_out(dataset, feedback, jobs)

    async def _take_out(self, dataset: Dataset, feedback: AbstractSet[str], jobs: AbstractSet[str]) -> None:
        """Says what of it the dataset rests on, then removes that from its archives, and its list.

        The events come first: readers of the list leave out what they name. The list comes last: after a kill, what
        it still has is found again, and what the events name is taken out once more.
        """
        gone = await self._resting_on(dataset, feedback, jobs)
        if gone is None:
            # Nothing can be taken out, and whoever asks for the items is told.
            return
        # A process that named it may have been killed before it rewrote the list.
        is_named = not (feedback.isdisjoint(dataset.erased_feedback) and jobs.isdisjoint(dataset.erased_jobs))
        while dataset.built is not None and (is_named or any(gone)):
            without = replace(
                dataset,
                erased_feedback=tuple(sorted({*dataset.erased_feedback, *gone[0]})),
                erased_jobs=tuple(sorted({*dataset.erased_jobs, *gone[1]})),
            )
            with scratch(self._scratch), tempfile.TemporaryFile(dir=self._scratch) as file:
                left = await self._write(without, file)
                events = _events(dataset, sorted(gone[0]), sorted(gone[1]), left)
                for event in events:
                    await self._append(event)
                # Another process may have said something else under the same numbers, or have exported meanwhile.
                now = (await self._store.get(DATASETS, [dataset.id])).get(dataset.id, dataset)
                is_unnamed = any(gone) and not events
                await self._remove([dataset, now], now.erasures + 1 if is_unnamed else now.erasures)
                await until_done(partial(self._objects.put_file, dataset.built.items, file), WHO)
            if is_unnamed or (events and events[-1].number == MAX_ERASURES):
                logger.error("Dataset %s has named %d erasures and can name no more.", dataset.id, MAX_ERASURES)
                return
            dataset, is_named = now, False
            gone = gone[0].difference(dataset.erased_feedback), gone[1].difference(dataset.erased_jobs)

    async def _resting_on(
        self, dataset: Dataset, feedback: AbstractSet[str], jobs: AbstractSet[str]
    ) -> tuple[set[str], set[str]] | None:
        """None where the list is damaged."""
        found_feedback, found_jobs = set[str](), set[str]()
        try:
            async for page in items(self._objects, dataset):
                found = [item for item in page if not isinstance(item, str)]
                found_feedback |= feedback_ids(found).intersection(feedback)
                found_jobs |= {job for item in found for job in _job_ids(item)}.intersection(jobs)
        except DamagedError:
            return None
        return found_feedback, found_jobs

    async def _write(self, dataset: Dataset, file: BinaryIO) -> int:
        """How many items are left."""
        left = 0
        async for page in items(self._objects, dataset):
            for item in page:
                if not isinstance(item, str):
                    file.write(msgspec.json.encode(item, order="sorted") + b"\n")
                    left += 1
        return left

    async def _append(self, event: DatasetRecordsErased) -> None:
        """Until the views show it."""
        at = await until_done(partial(self._journal.append, event, event_id=erasure_id(event)), WHO)
        while not await self._views.wait(at, PATIENCE_SECONDS):
            pass

    async def _remove(self, states: Sequence[Dataset], erasures: int) -> None:
        """Its archives that were made when fewer erasures were known, and what it knows of listeners: perhaps of one
        who has nothing else in it.
        """
        for dataset in states:
            if dataset.built is not None:
                place = dataset.built.items.rpartition("/")[0]
                await until_done(partial(self._objects.delete, f"{place}/{RATERS}"), WHO)
            for export in dataset.exports:
                if export.made is not None and export.made.erasures < erasures:
                    await until_done(partial(self._objects.delete, export.made.archive), WHO)


def _since(dataset: Dataset, gone: dict[str, Position]) -> set[str]:
    """Those that were erased after the dataset had taken in their partition."""
    positions = dataset.built.positions if dataset.built else {}
    return {key for key, at in gone.items() if at.offset >= positions.get(f"{at.topic}/{at.partition}", 0)}


def feedback_ids(found: Iterable[AnyItem]) -> set[str]:
    """The judgements that are feedback: votes are never erased."""
    judgements = (judged for item in found for judged in item.judgements)
    return {judged.id for judged in judgements if not (isinstance(judged, Compared) and judged.is_vote)}


def _job_ids(item: AnyItem) -> set[str]:
    return {sample.job_id for sample in samples(item)}


def _events(dataset: Dataset, feedback: Sequence[str], jobs: Sequence[str], left: int) -> list[DatasetRecordsErased]:
    """As many as are needed and as there may be."""
    parts = enumerate(range(0, max(len(feedback), len(jobs)), MAX_ERASED), dataset.erasures + 1)
    return [
        DatasetRecordsErased(
            dataset_id=dataset.id,
            number=number,
            feedback_ids=tuple(feedback[at : at + MAX_ERASED]),
            job_ids=tuple(jobs[at : at + MAX_ERASED]),
            items_left=left,
        )
        for number, at in parts
        if number <= MAX_ERASURES
    ]
