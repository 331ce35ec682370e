"""What is on the log and may not be in the views yet, as one process follows it."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from domain.events import Recorded, SampleGenerated
from domain.journal import Frontier
from domain.ports import Position, TopicPartition, after
from projections.folded import Folded

FORGET_SECONDS: Final = 1.0
LIMIT: Final = 20_000


class Held:
    """Records by topic and key, oldest first."""

    def __init__(self, records: Iterable[Recorded] = ()) -> None:
        self.count = 0
        self._by_key: dict[tuple[str, str], list[Recorded]] = {}
        self._jobs: dict[str, str] = {}
        self.add(records)

    def add(self, records: Iterable[Recorded]) -> None:
        for recorded in records:
            self.count += 1
            self._by_key.setdefault((recorded.position.topic, recorded.key), []).append(recorded)
            if isinstance(recorded.event, SampleGenerated):
                self._jobs[recorded.event.sample_id] = recorded.key

    def of(self, topic: str, key: str) -> Sequence[Recorded]:
        return self._by_key.get((topic, key), ())

    def job_of(self, sample_id: str) -> str | None:
        """The job of a sample that one of the records speaks of."""
        return self._jobs.get(sample_id)

    def since(self, folded: Mapping[TopicPartition, int]) -> "Held":
        """Those that are not folded. Whoever reads this one goes on with it as it is."""
        return Held(
            recorded
            for records in self._by_key.values()
            for recorded in records
            if recorded.position.offset >= folded.get((recorded.position.topic, recorded.position.partition), 0)
        )


class Tail:
    """`held` has every record that was not folded when the views were last asked.

    With `limit` records it takes no more until some are.
    """

    def __init__(self, folded: Folded, limit: int = LIMIT) -> None:
        self.held = Held()
        self._folded = folded
        self._limit = limit
        self._frontier = Frontier()
        self._forgot = time.monotonic()

    async def begin(self) -> Mapping[TopicPartition, int]:
        """Where to follow the log from: what lies before is in the views by the time that they are ready."""
        start = await self._folded.goal()
        await self._frontier.advance(start)
        return start

    async def take(self, batch: Sequence[Recorded]) -> None:
        self.held.add(batch)
        await self._frontier.advance(after(recorded.position for recorded in batch))
        if self.held.count >= self._limit or time.monotonic() - self._forgot > FORGET_SECONDS:
            self._forget()
        while self.held.count >= self._limit:
            await asyncio.sleep(FORGET_SECONDS)
            self._forget()

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether all the positions have come within that time."""
        return await self._frontier.reaches(positions, seconds)

    def _forget(self) -> None:
        self.held = self.held.since(self._folded.offsets)
        self._forgot = time.monotonic()
