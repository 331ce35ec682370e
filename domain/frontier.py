import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

from domain.ports import Position, TopicPartition, after


class Frontier:
    """How far a reader of the log has come, for those who wait for it; `next` has the offset to go on from.

    `wanted` is set while anyone waits.
    """

    def __init__(self) -> None:
        self.next: dict[TopicPartition, int] = {}
        self.wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._waiting: dict[asyncio.Future[None], Mapping[TopicPartition, int]] = {}

    def advance(self, ends: Mapping[TopicPartition, int]) -> None:
        self.next |= ends
        self._moved.set()
        self._moved = asyncio.Event()
        # Only those are woken that have waited for this: there may be one for each request in flight.
        for future in [future for future, wanted in self._waiting.items() if self._has(wanted)]:
            del self._waiting[future]
            if not future.done():
                future.set_result(None)
        self._note()

    async def moved(self) -> None:
        await self._moved.wait()

    def has_reached(self, positions: Iterable[Position]) -> bool:
        """Whether every one of the positions has been read; offset -1 asks only that reading has begun."""
        return self._has(after(positions))

    async def reached(self, positions: Iterable[Position]) -> None:
        if self._has(wanted := after(positions)):
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = wanted
        self._note()
        try:
            await future
        finally:
            self._waiting.pop(future, None)
            self._note()

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether all the positions have been read within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self.reached(positions)
        except TimeoutError:
            return False
        return True

    async def rest(self, seconds: float) -> None:
        """Until anyone waits, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wanted.wait()

    def _note(self) -> None:
        if self._waiting:
            self.wanted.set()
        else:
            self.wanted.clear()

    def _has(self, wanted: Mapping[TopicPartition, int]) -> bool:
        return all(self.next.get(partition, -1) >= end for partition, end in wanted.items())
