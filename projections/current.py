"""The views as a process that follows the log answers from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from domain import jobs, prompts
from domain.jobs import JOBS, Job
from domain.ports import D, Position, Query, ReadStore, TopicPartition, View
from domain.prompts import PROMPTS
from projections.audio import AUDIO, samples
from projections.folded import Folded
from projections.tail import Held, Tail

WAIT_SECONDS: Final = 2.0
EVOLVE: Final[Mapping[str, Callable[..., Any]]] = {JOBS.name: jobs.evolve, PROMPTS.name: prompts.evolve}


class CurrentViews:
    """A document that is asked for by id is as new as the log's tail: the stored one, and the events it lacks.

    Lists are the store's, and wait for what `settled` has been told of since the list before.
    """

    def __init__(self, store: ReadStore, tail: Tail, folded: Folded) -> None:
        self._store = store
        self._tail = tail
        self._folded = folded
        self._told: dict[TopicPartition, Position] = {}

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        # Before the store is asked: what is folded, and so forgotten, from here on is in its answer.
        held = self._tail.held
        found: dict[str, Any] = (
            await self._samples(held, ids) if view.name == AUDIO.name else await self._evolved(held, view, ids)
        )
        return found

    async def find(self, view: View[D], query: Query) -> list[D]:
        await self._show_told()
        return await self._store.find(view, query)

    async def count(self, view: View[D], query: Query) -> int:
        await self._show_told()
        return await self._store.count(view, query)

    async def settled(self, positions: Iterable[Position]) -> bool:
        """Whether documents show within a short time what was appended there."""
        told = list(positions)
        for position in told:
            partition = position.topic, position.partition
            self._told[partition] = max(position, self._told.get(partition, position))
        return await self._tail.wait(told, WAIT_SECONDS)

    async def _show_told(self) -> None:
        """Waits once: a list that is behind is better than none."""
        told = dict(self._told)
        if told:
            await self._folded.wait(told.values(), WAIT_SECONDS)
        for partition, position in told.items():
            if self._told.get(partition) == position:
                del self._told[partition]

    async def _evolved(self, held: Held, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        found, evolve = await self._store.get(view, ids), EVOLVE[view.name]
        for id_ in ids:
            for recorded in held.of(view.name, id_):
                if (document := evolve(found.get(id_), recorded)) is not None:
                    found[id_] = document
        return found

    async def _samples(self, held: Held, ids: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = dict(await self._store.get(AUDIO, ids))
        owners = {found[id_].job_id if id_ in found else held.job_of(id_) for id_ in ids}
        changed = [job_id for job_id in owners if job_id is not None and held.of(JOBS.name, job_id)]
        owned: dict[str, Job] = await self._evolved(held, JOBS, changed)
        now = {sample.id: sample for job in owned.values() for sample in samples(job)}
        return found | {id_: now[id_] for id_ in ids if id_ in now}
