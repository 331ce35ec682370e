"""Batch in, views out: the same for every host."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from domain.errors import ConflictError, TooLargeError
from domain.events import Undecodable, decode
from domain.jobs import JOBS
from domain.ports import EventLog, Message, ReadStore, Record, TopicPartition, View, after
from domain.prompts import PROMPTS
from projections import jobs, prompts
from projections.audio import AUDIO
from projections.jobs import STATS

FOLDS: Final = {"prompts": prompts.fold, "jobs": jobs.fold}
FOLDED_FROM: Final[Mapping[str, tuple[View[Any], ...]]] = {"prompts": (PROMPTS,), "jobs": (JOBS, AUDIO, STATS)}
VIEWS: Final = tuple(view for views in FOLDED_FROM.values() for view in views)
MAX_ERROR: Final = 500


async def project(log: EventLog, store: ReadStore, records: Sequence[Record]) -> None:
    """Folds and saves one batch; folding it again changes nothing.

    Raises UnavailableError or UncertainError where trying again helps, and UnknownVersionError, after which nobody may
    read on.
    """
    store = store.pinned()
    batch = [decode(record) for record in records]
    if dead := [
        (record, recorded.event.error)
        for record, recorded in zip(records, batch, strict=True)
        if isinstance(recorded.event, Undecodable)
    ]:
        await _bury(log, dead)
    documents = [
        document
        for topic, fold in FOLDS.items()
        if (events := [recorded for recorded in batch if recorded.position.topic == topic])
        for document in await fold(store, events)
    ]
    await store.save(documents, after(record.position for record in records))


def check_views(ends: Mapping[TopicPartition, int], folded: Mapping[TopicPartition, int]) -> None:
    """Raises ConflictError for views of another log."""
    for (topic, partition), end in ends.items():
        if folded.get((topic, partition), 0) > end:
            raise ConflictError(
                f"The views have folded more of {topic} than the log holds: it was replaced or cut. "
                "Put the right log back, or delete the views (views.db in the data folder, or the database in MongoDB) "
                "to fold this one."
            )


async def _bury(log: EventLog, dead: Sequence[tuple[Record, str]]) -> None:
    """Keeps the original bytes on the dead-letter topic, once: a rebuild reads the same records again."""
    buried: set[str] = set()
    for partition in await log.ends("deadletter"):
        offset = 0
        while page := await log.read("deadletter", partition, offset):
            buried |= {record.key for record in page}
            offset = page[-1].position.offset + 1
    for record, error in dead:
        if (key := str(record.position)) in buried:
            continue
        headers = {**record.headers, "deadletter_key": record.key, "deadletter_error": error[:MAX_ERROR]}
        try:
            await log.append([Message("deadletter", key, record.value or b"", headers)])
        except TooLargeError:
            # Too large to stand twice with its reason; the source keeps the bytes.
            headers = {"deadletter_key": record.key, "deadletter_error": headers["deadletter_error"]}
            await log.append([Message("deadletter", key, b"", headers)])
