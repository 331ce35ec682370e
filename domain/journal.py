"""The log as everything else writes it: events in, positions out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from domain.errors import UnavailableError, UncertainError
from domain.events import Event, Recorded, decode, encode
from domain.ports import EventLog, Position, TopicPartition, after

T = TypeVar("T")

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 5.0

logger = logging.getLogger(__name__)


async def until_done(call: Callable[[], Awaitable[T]], who: str) -> T:
    """Repeats a call that is safe to repeat until the log, the store or the objects take it."""
    wait = FIRST_WAIT
    while True:
        try:
            return await call()
        except (UnavailableError, UncertainError) as error:
            logger.warning("%s waits: %s Trying again in %.1f s.", who, error, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)


class Frontier:
    """How far a reader of the log has come, for those who wait for it; `next` has the offset to go on from."""

    def __init__(self) -> None:
        self.next: dict[TopicPartition, int] = {}
        self._moved = asyncio.Condition()

    async def advance(self, ends: Mapping[TopicPartition, int]) -> None:
        async with self._moved:
            self.next |= ends
            self._moved.notify_all()

    async def moved(self) -> None:
        async with self._moved:
            await self._moved.wait()

    async def reached(self, positions: Iterable[Position]) -> None:
        """Returns once every one of the positions has been read; offset -1 asks only that reading has begun."""
        wanted = after(positions)
        async with self._moved:
            await self._moved.wait_for(lambda: all(self.next.get(key, -1) >= end for key, end in wanted.items()))

    async def reaches(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether all the positions have been read within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self.reached(positions)
        except TimeoutError:
            return False
        return True


class Journal:
    """`now` gives ISO 8601 in UTC with microseconds; `new_id` gives ids that sort by time."""

    def __init__(self, log: EventLog, now: Callable[[], str], new_id: Callable[[], str]) -> None:
        self.log = log
        self.now = now
        self.new_id = new_id

    async def append(self, *events: Event, event_id: str | None = None) -> list[Position]:
        """`event_id` is the last event's, for where a retry must be the same event. Raises as EventLog.append does."""
        time = self.now()
        ids = [*(self.new_id() for _ in events[1:]), event_id or self.new_id()]
        messages = [encode(event, event_id=ident, time=time) for event, ident in zip(events, ids, strict=True)]
        return await self.log.append(messages)

    async def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[list[Recorded]]:
        """Raises UnknownVersionError at an event that a newer version wrote."""
        async for batch in self.log.follow(start):
            yield [decode(record) for record in batch]
