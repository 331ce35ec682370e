"""The views as a process that follows the log answers from them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from domain.ab_tests import AB_TESTS, AB_VOTES, counted
from domain.aggregates import AGGREGATES
from domain.errors import UnavailableError
from domain.jobs import JOBS, Job
from domain.ports import D, Position, Query, ReadStore, TopicPartition, View
from projections.audio import AUDIO, documents
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail, Unfolded
from projections.project import FOLDED_FROM

WAIT_SECONDS: Final = 2.0
DERIVED: Final = {
    view.name: topic
    for topic, views in FOLDED_FROM.items()
    for view in views
    if view.name not in {*AGGREGATES, AUDIO.name, AB_VOTES.name}
}


class CurrentViews:
    """A document that is asked for by id is as new as the log's tail: the stored one, and the events it lacks.

    Of what this process has appended, a document waits until the tail has it, and a list until the views show it, as it
    does for what a document has shown.
    """

    def __init__(self, store: ReadStore, tail: Tail, folded: Folded) -> None:
        self._store = store
        self._tail = tail
        self._folded = folded
        self._appended: dict[str, tuple[Position, ...]] = {}
        self._unlisted: dict[TopicPartition, Position] = {}

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        """Raises UnavailableError rather than to leave out what this process has appended.

        Documents that are derived, such as counters, are those of the views, as lists are.
        """
        if view.name in DERIVED:
            await self._catch_up(DERIVED[view.name])
            return await self._store.get(view, ids)
        late = [position for id_ in ids for position in self._appended.get(id_, ())]
        if late and not await self._tail.wait(late, WAIT_SECONDS):
            raise UnavailableError(f"{late[0]} was appended and has not been read back from the log; ask again.")
        # Before the store is asked: what is folded, and so forgotten, from here on is in its answer.
        unfolded = self._tail.unfolded
        parts = {AUDIO.name: self._samples, AB_VOTES.name: self._votes}
        if of_parts := parts.get(view.name):
            return await of_parts(unfolded, ids)
        return await self._evolved(unfolded, view, ids)

    async def find(self, view: View[D], query: Query) -> list[D]:
        await self._catch_up()
        return await self._store.find(view, query)

    async def count(self, view: View[D], query: Query) -> int:
        await self._catch_up()
        return await self._store.count(view, query)

    def expect(self, keys: Sequence[str], positions: Sequence[Position]) -> None:
        """Says what this process has appended about the aggregates of those keys."""
        while self._appended and self._tail.has(self._appended[oldest := next(iter(self._appended))]):
            del self._appended[oldest]
        for key in keys:
            self._appended[key] = (*self._appended.pop(key, ()), *positions)
        self._unlist(positions)

    def _unlist(self, positions: Iterable[Position]) -> None:
        for position in positions:
            partition = position.topic, position.partition
            self._unlisted[partition] = max(position, self._unlisted.get(partition, position))

    async def show(self, positions: Iterable[Position]) -> bool:
        """Whether documents include the events at those positions within a short time."""
        return await self._tail.wait(positions, WAIT_SECONDS)

    async def _catch_up(self, topic: str | None = None) -> None:
        """Waits once: after one timeout, a list that is behind is better than none."""
        unlisted = {at: position for at, position in self._unlisted.items() if topic in {None, position.topic}}
        if unlisted:
            await self._folded.wait(unlisted.values(), WAIT_SECONDS)
        for partition, position in unlisted.items():
            if self._unlisted.get(partition) == position:
                del self._unlisted[partition]

    async def _evolved(self, unfolded: Unfolded, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        stored, aggregate = await self._store.get(view, ids), AGGREGATES[view.name]
        found: dict[str, D] = {}
        for id_ in ids:
            document: Any = stored.get(id_)
            for recorded in await unfolded.of(view.name, id_):
                document = aggregate.apply(document, recorded)
                self._unlist([recorded.position])
            if document is not None:
                found[id_] = document
        return found

    async def _samples(self, unfolded: Unfolded, ids: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = dict(await self._store.get(AUDIO, ids))
        owners = {job_id for id_ in ids if (job_id := await self._owner(unfolded, found, id_)) is not None}
        changed = [job_id for job_id in owners if unfolded.has(JOBS.name, job_id)]
        owned: dict[str, Job] = await self._evolved(unfolded, JOBS, changed)
        now = {sample.id: sample for job in owned.values() for sample in documents(job)}
        return found | {id_: now[id_] for id_ in ids if id_ in now}

    async def _votes(self, unfolded: Unfolded, ids: Sequence[str]) -> dict[str, Any]:
        owners = {owner for id_ in ids if (owner := await unfolded.owner(AB_TESTS.name, id_)) is not None}
        # Tests before votes: of a test that is folded further meanwhile, the votes are saved already.
        tests = await self._store.get(AB_TESTS, list(owners))
        found: dict[str, Any] = dict(await self._store.get(AB_VOTES, ids))
        for owner in owners:
            test = tests.get(owner)
            for recorded in await unfolded.of(AB_TESTS.name, owner):
                vote = counted(test, recorded)
                if vote is not None and vote.id in ids:
                    found.setdefault(vote.id, vote)
                test = AGGREGATES[AB_TESTS.name].apply(test, recorded)
                self._unlist([recorded.position])
        return found

    async def _owner(self, unfolded: Unfolded, found: dict[str, Any], sample_id: str) -> str | None:
        return found[sample_id].job_id if sample_id in found else await unfolded.owner(JOBS.name, sample_id)
