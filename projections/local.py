"""The projections' host on one machine: a task that follows the log."""

import asyncio
import logging
from collections.abc import Iterable

from domain.errors import UnavailableError
from domain.ports import EventLog, Position, ReadStore, Record, TopicPartition
from projections.project import FOLDS, project

logger = logging.getLogger(__name__)


class LocalHost:
    def __init__(self, log: EventLog, store: ReadStore) -> None:
        self._log = log
        self._store = store
        self._next: dict[TopicPartition, int] = {}
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Until cancelled. Raises on a bug or an event of a newer version: the views stay as they were."""
        stored = await self._store.watermarks()
        partitions = [(topic, number) for topic in FOLDS for number in range(self._log.topics[topic].partitions)]
        await self._advance({partition: stored.get(partition, 0) for partition in partitions})
        async for records in self._log.follow(self._next):
            await self._project(records)
            await self._advance({(at.topic, at.partition): at.offset + 1 for at in (r.position for r in records)})

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether the views have folded all the positions within that time."""
        wanted = [(position.topic, position.partition, position.offset) for position in positions]
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(
                    lambda: all(self._next.get((topic, number), 0) > offset for topic, number, offset in wanted)
                )
        except TimeoutError:
            return False
        return True

    async def caught_up(self, seconds: float) -> bool:
        """Whether everything that is on the log now has been folded within that time."""
        ends = {topic: await self._log.ends(topic) for topic in FOLDS}
        last = (Position(topic, number, end - 1) for topic, parts in ends.items() for number, end in parts.items())
        return await self.wait((position for position in last if position.offset >= 0), seconds)

    async def _project(self, records: list[Record]) -> None:
        delay = 0.05
        while True:
            try:
                return await project(self._log, self._store, records)
            except UnavailableError as error:
                logger.warning("The views wait: %s Trying again in %.1f s.", error, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _advance(self, ends: dict[TopicPartition, int]) -> None:
        async with self._moved:
            self._next |= ends
            self._moved.notify_all()
