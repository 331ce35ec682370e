"""How far the views have been folded, for those who wait for it."""

import asyncio
from collections.abc import Iterable, Mapping

from domain.frontier import Frontier
from domain.journal import until_done
from domain.ports import EventLog, Position, ReadStore, TopicPartition
from projections.project import FOLDS


class Folded:
    def __init__(self, log: EventLog, store: ReadStore) -> None:
        self._log = log
        self._store = store
        self._goal: dict[TopicPartition, int] = {}
        self._begun = asyncio.Event()
        self._frontier = Frontier()

    async def run(self) -> None:
        """Moves on with the log until cancelled."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether all that was on the log at the start has been folded: before, what exists may seem not to."""
        return self._begun.is_set() and all(self.offsets.get(key, 0) >= end for key, end in self._goal.items())

    @property
    def offsets(self) -> Mapping[TopicPartition, int]:
        """From where folding goes on in each partition, as far as is known."""
        return self._frontier.next

    async def goal(self) -> Mapping[TopicPartition, int]:
        """Where the log ended at the start, once `offsets` are known too."""
        await self._begun.wait()
        return self._goal

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether the views have folded all the positions within that time."""
        return await self._frontier.wait(positions, seconds)

    async def caught_up(self, seconds: float) -> bool:
        """Whether everything that is on the log now has been folded within that time."""
        ends = await self._ends()
        return await self.wait((Position(*partition, end - 1) for partition, end in ends.items()), seconds)

    async def _look(self) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        """The log's ends, which are the goal, and what the views have folded of them."""
        stored = await self._watermarks()
        self._goal = await until_done(self._ends, "The views")
        return self._goal, self._folded(stored)

    async def _stored(self) -> dict[TopicPartition, int]:
        return self._folded(await self._watermarks())

    async def _watermarks(self) -> Mapping[TopicPartition, int]:
        return await until_done(self._store.watermarks, "The views")

    def _folded(self, stored: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        return {partition: stored.get(partition, 0) for partition in self._goal}

    def _advance(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._frontier.advance(offsets)
        self._begun.set()

    async def _ends(self) -> dict[TopicPartition, int]:
        return {(topic, number): end for topic in FOLDS for number, end in (await self._log.ends(topic)).items()}
