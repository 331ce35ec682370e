"""The projections' host on one machine: a task that follows the log."""

import asyncio
from collections.abc import Iterable
from functools import partial

from domain.journal import Frontier, until_done
from domain.ports import EventLog, Position, ReadStore, TopicPartition, after
from projections.project import FOLDS, check_views, project


class LocalHost:
    def __init__(self, log: EventLog, store: ReadStore) -> None:
        self._log = log
        self._store = store
        self._goal: dict[TopicPartition, int] | None = None
        self._frontier = Frontier()

    async def run(self) -> None:
        """Until cancelled. Raises ConflictError for views of another log, and at an event of a newer version."""
        self._goal = await until_done(self._ends, "The views' host")
        stored = await until_done(self._store.watermarks, "The views' host")
        check_views(self._goal, stored)
        await self._frontier.advance({partition: stored.get(partition, 0) for partition in self._goal})
        async for records in self._log.follow(self._frontier.next):
            await until_done(partial(project, self._log, self._store, records), "The views' host")
            await self._frontier.advance(after(record.position for record in records))

    @property
    def ready(self) -> bool:
        """Whether all that was on the log at the start has been folded: before, what exists may seem not to."""
        return self._goal is not None and all(self._frontier.next.get(key, 0) >= end for key, end in self._goal.items())

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether the views have folded all the positions within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._frontier.reached(positions)
        except TimeoutError:
            return False
        return True

    async def caught_up(self, seconds: float) -> bool:
        """Whether everything that is on the log now has been folded within that time."""
        ends = await self._ends()
        return await self.wait((Position(*partition, end - 1) for partition, end in ends.items()), seconds)

    async def _ends(self) -> dict[TopicPartition, int]:
        return {(topic, number): end for topic in FOLDS for number, end in (await self._log.ends(topic)).items()}
