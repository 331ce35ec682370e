"""Batch in, views out: the same for every host."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from domain.aggregates import AGGREGATES, slices
from domain.envelope import decode
from domain.errors import ConflictError
from domain.events import MAX_ID, Recorded, Undecodable
from domain.ports import Batch, Changes, EventLog, Reader, ReadStore, Record, TopicPartition, View, after
from projections.dead_letters import DeadLetters

# Hosts rest after a small batch, so that the next one is larger: a batch costs more than its events do.
SMALL_BATCH: Final = 100
REST_SECONDS: Final = 0.02


class Fold(Protocol):
    async def __call__(self, store: Reader, batch: Sequence[Recorded]) -> Changes:
        """Folds records of one topic in the order of each partition. Folding them again changes nothing."""


_MODULES: Final = slices("projections")
FOLDS: Final[Mapping[str, Fold]] = {topic: module.fold for topic, module in _MODULES.items()}
FOLDED_FROM: Final[Mapping[str, tuple[View[Any], ...]]] = {topic: module.VIEWS for topic, module in _MODULES.items()}
VIEWS: Final = tuple(view for views in FOLDED_FROM.values() for view in views)


async def project(
    log: EventLog,
    store: ReadStore,
    records: Sequence[Record],
    reached: Mapping[TopicPartition, int] | None = None,
    dead_letters: DeadLetters | None = None,
) -> None:
    """Folds and saves one batch; folding it again changes nothing.

    `reached` are the offsets from which to go on, by default those behind the records: behind them there may be
    offsets without a record. `dead_letters` knows from one batch to the next which records are buried.

    Raises UnavailableError or UncertainError where trying again helps, and UnknownVersionError, after which nobody may
    read on.
    """
    store = store.pinned()
    batch = [decode(record) for record in records]
    if dead := [
        (record, recorded.event.error)
        for record, recorded in zip(records, batch, strict=True)
        if isinstance(recorded.event, Undecodable) and not AGGREGATES[recorded.position.topic].topic.compacted
    ]:
        await (dead_letters or DeadLetters(log)).bury(dead)
    by_topic: defaultdict[str, list[Recorded]] = defaultdict(list)
    for recorded in batch:
        # No aggregate has such a key, and a store that is asked for some of a megabyte refuses the batch.
        if len(recorded.key) > MAX_ID:
            continue
        by_topic[recorded.position.topic].append(recorded)
    changes = [await fold(store, by_topic[topic]) for topic, fold in FOLDS.items() if topic in by_topic]
    await store.save(
        [saved for each in changes for saved in each.saved],
        after(record.position for record in records) if reached is None else reached,
        [erased for each in changes for erased in each.erased],
    )


def page_before(page: Sequence[Record], partition: TopicPartition, goal: int) -> Batch[Record]:
    """What a page that was read from one partition holds before an offset.

    Where nothing more can stand before the offset, it is reached.
    """
    records = [record for record in page if record.position.offset < goal]
    is_all = not records or len(records) < len(page)
    return Batch(records, {partition: goal if is_all else records[-1].position.offset + 1})


def check_views(ends: Mapping[TopicPartition, int], folded: Mapping[TopicPartition, int]) -> None:
    """Raises ConflictError for views of another log.

    `ends` have to be read after `folded`: both move on, and views that were asked last would seem to be ahead.
    """
    for (topic, partition), end in ends.items():
        if folded.get((topic, partition), 0) > end:
            raise ConflictError(
                f"The views have folded more of {topic} than the log holds: it was replaced or cut. "
                "Put the right log back, or delete the views (views.db in the data folder, or the database in MongoDB) "
                "to fold this one."
            )
