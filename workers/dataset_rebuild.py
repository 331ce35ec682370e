"""A dataset built once more from the log up to the same positions, to see that it comes out the same."""

from pathlib import Path

from msgspec import Struct

from domain.aggregates import AGGREGATES
from domain.datasets import DATASETS, Dataset
from domain.envelope import decode
from domain.errors import ConflictError, NotFoundError
from domain.feedback import FEEDBACK
from domain.journal import Journal
from domain.ports import ObjectStore, ReadStore
from workers.dataset_erasures import feedback_ids
from workers.dataset_items import decoded, items
from workers.dataset_replay import Summary
from workers.datasets import replayed


class Rebuilt(Struct, frozen=True, kw_only=True):
    """`same` says whether the list has the digest that it was built with. If not, the judgements that the log has no
    longer are `erased`, or `revised` by whoever gave them; `same_items` of `summary.count` items are as they were.
    """

    summary: Summary
    same: bool
    erased: tuple[str, ...] = ()
    deleted_jobs: tuple[str, ...] = ()
    revised: tuple[str, ...] = ()
    same_items: int


async def rebuild(
    journal: Journal, store: ReadStore, objects: ObjectStore, dataset: Dataset, scratch: Path | None = None
) -> Rebuilt:
    """Raises ConflictError for a dataset that is not built, DamagedError where its list is not as it was stored, and
    UnknownVersionError at an event of a newer version.
    """
    if dataset.built is None:
        raise ConflictError(f"Dataset {dataset.id} is {dataset.status}; only one that was built can be built again.")
    async with replayed(journal, dataset.request, scratch, dict(dataset.built.positions)) as made:
        summary = made.summary
        if summary.digest == dataset.built.digest:
            return Rebuilt(summary=summary, same=True, same_items=summary.count)
        made.file.seek(0)
        now = set[str]()
        rows = set[object]()
        for line in made.file:
            item = decoded(line, "of the rebuild")
            rows.add(hash(item))
            now |= feedback_ids([item])
    missing, same_items = set[str](), 0
    async for page in items(objects, dataset):
        found = [item for item in page if not isinstance(item, str)]
        missing |= feedback_ids(found) - now
        same_items += sum(hash(item) in rows for item in found)
    stored = await store.get(FEEDBACK, list(missing)) if missing else {}
    return Rebuilt(
        summary=summary,
        same=False,
        erased=tuple(sorted({*dataset.erased_feedback, *missing} - stored.keys())),
        deleted_jobs=dataset.erased_jobs,
        revised=tuple(sorted(stored)),
        same_items=same_items,
    )


async def find(journal: Journal, dataset_id: str) -> Dataset:
    """As the log says, whether or not anybody folds the views. Raises NotFoundError."""
    found: Dataset | None = None
    for partition in await journal.log.ends(DATASETS.name):
        offset = 0
        while page := await journal.log.read(DATASETS.name, partition, offset):
            offset = page[-1].position.offset + 1
            for record in page:
                if record.key == dataset_id:
                    found = AGGREGATES[DATASETS.name].apply(found, decode(record))
    if found is None:
        raise NotFoundError("dataset", dataset_id)
    return found
