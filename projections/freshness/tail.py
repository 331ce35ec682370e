"""The records that the views may still lack, as one process follows the log."""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from domain.envelope import decode
from domain.events import Recorded
from domain.events.ab_tests import ABVoteCast
from domain.events.jobs import SampleGenerated
from domain.frontier import Frontier
from domain.ports import Batch, EventLog, Position, TopicPartition, after
from projections.freshness.folded import Folded

FORGET_SECONDS: Final = 1.0
LIMIT: Final = 5_000
PARTS: Final = "parts of "  # before the topic: what is looked up by the id of a part of an aggregate


class Held:
    """Records by topic and key, oldest first."""

    def __init__(self, records: Iterable[Recorded] = ()) -> None:
        self.count = 0
        self._by_key: dict[tuple[str, str], list[Recorded]] = {}
        self._owners: dict[tuple[str, str], str] = {}
        self.add(records)

    def __iter__(self) -> Iterator[Recorded]:
        for records in self._by_key.values():
            yield from records

    def add(self, records: Iterable[Recorded]) -> None:
        for recorded in records:
            self.count += 1
            self._by_key.setdefault((recorded.position.topic, recorded.key), []).append(recorded)
            if (part := _part(recorded)) is not None:
                self._owners[recorded.position.topic, part] = recorded.key

    def of(self, topic: str, key: str) -> Sequence[Recorded]:
        return self._by_key.get((topic, key), ())

    def owner(self, topic: str, part: str) -> str | None:
        return self._owners.get((topic, part))


class Places:
    """Where records stand, by a hash of topic and key, and of topic and part: 24 bytes each."""

    def __init__(self, records: Iterable[Recorded]) -> None:
        self.ends = after(recorded.position for recorded in records)
        self._partitions = list(self.ends)
        entries = sorted(self._entries(records))
        self._hashes = array("q", (entry[0] for entry in entries))
        self._numbers = array("q", (entry[1] for entry in entries))
        self._offsets = array("q", (entry[2] for entry in entries))

    def find(self, topic: str, key: str) -> Iterator[Position]:
        """In the order of each partition, and now and then one of another key too many."""
        wanted = hash((topic, key))
        for at in range(bisect_left(self._hashes, wanted), len(self._hashes)):
            if self._hashes[at] != wanted:
                return
            yield Position(*self._partitions[self._numbers[at]], self._offsets[at])

    def _entries(self, records: Iterable[Recorded]) -> Iterator[tuple[int, int, int]]:
        numbers = {partition: number for number, partition in enumerate(self._partitions)}
        for recorded in records:
            at = recorded.position
            place = numbers[at.topic, at.partition], at.offset
            yield hash((at.topic, recorded.key)), *place
            if (part := _part(recorded)) is not None:
                yield hash((PARTS + at.topic, part)), *place


class Unfolded:
    """The latest records themselves, and of those before them, where on the log they stand."""

    def __init__(self, log: EventLog, held: Held, older: Sequence[Places] = ()) -> None:
        self.held = held
        self.older = older
        self._log = log

    def has(self, topic: str, key: str) -> bool:
        """Whether there are any, without a look at the log: now and then of a key that has none."""
        return bool(self.held.of(topic, key)) or any(any(places.find(topic, key)) for places in self.older)

    async def of(self, topic: str, key: str) -> Sequence[Recorded]:
        """Oldest first. Raises UnavailableError where the log has to be read and is away."""
        # Before the log is read: what comes from here on is after what is there now.
        held = tuple(self.held.of(topic, key))
        read = await self._read(topic, key)
        return [recorded for recorded in read if recorded.key == key] + list(held)

    async def owner(self, topic: str, part: str) -> str | None:
        """The job of a sample, or the A/B test of a vote, that one of the records speaks of. Raises as `of` does."""
        if (key := self.held.owner(topic, part)) is not None:
            return key
        for recorded in await self._read(PARTS + topic, part):
            if _part(recorded) == part:
                return recorded.key
        return None

    def since(self, folded: Mapping[TopicPartition, int]) -> "Unfolded":
        """A copy with those that are not folded yet; readers keep the one they have."""
        lacking = Held(record for record in self.held if _end(folded, record.position) <= record.position.offset)
        older = [places for places in self.older if any(folded.get(at, 0) < end for at, end in places.ends.items())]
        return Unfolded(self._log, lacking, older)

    def compact(self) -> "Unfolded":
        """A copy that knows of all records only where they stand."""
        return Unfolded(self._log, Held(), [*self.older, Places(list(self.held))])

    async def _read(self, topic: str, key: str) -> list[Recorded]:
        positions = [position for places in self.older for position in places.find(topic, key)]
        if not positions:
            return []
        pages = await asyncio.gather(*(self._log.read(at.topic, at.partition, at.offset, 1) for at in positions))
        # A topic that erases may have erased it.
        found = {record.position: record for page in pages for record in page}
        return [decode(found[at]) for at in positions if at in found]


class Tail:
    """`unfolded` has every record that was not folded when the views were last asked; `limit` of them are held."""

    def __init__(self, log: EventLog, folded: Folded, limit: int = LIMIT) -> None:
        self.unfolded = Unfolded(log, Held())
        self._folded = folded
        self._limit = limit
        self._frontier = Frontier()
        self._start: Mapping[TopicPartition, int] | None = None
        self._goal: Mapping[TopicPartition, int] = {}
        self._forgot = time.monotonic()

    async def begin(self) -> Mapping[TopicPartition, int]:
        """Where to follow the log from: what lies before is in the views."""
        self._goal = await self._folded.goal()
        self._start = {at: self._folded.offsets.get(at, 0) for at in self._goal}
        self._frontier.advance(self._start)
        return self._start

    async def begun(self) -> None:
        """Returns once it has all that was on the log at the start."""
        await self._frontier.reached(Position(*at, end - 1) for at, end in self._goal.items())

    @property
    def is_complete(self) -> bool:
        """Whether the views and the tail together have all that was on the log at the start; before, what exists may
        seem not to.
        """
        if self._start is None or any(self._frontier.next[at] < end for at, end in self._goal.items()):
            return False
        # Views that were emptied have to come back to where the tail begins.
        return all(self._folded.offsets.get(at, 0) >= start for at, start in self._start.items())

    def take(self, batch: Batch[Recorded]) -> None:
        self.unfolded.held.add(batch.records)
        self._frontier.advance(batch.reached)
        if self.unfolded.held.count >= self._limit or time.monotonic() - self._forgot > FORGET_SECONDS:
            self.unfolded = self.unfolded.since(self._folded.offsets)
            self._forgot = time.monotonic()
            # Most of them stay: the views are behind, and may stay so.
            if self.unfolded.held.count >= self._limit / 2:
                self.unfolded = self.unfolded.compact()

    async def rest(self, seconds: float) -> None:
        """Until anyone waits for what has not come, at most so long."""
        await self._frontier.rest(seconds)

    def has(self, positions: Iterable[Position]) -> bool:
        return self._frontier.has_reached(positions)

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether all the positions have come within that time."""
        return await self._frontier.wait(positions, seconds)


def _part(recorded: Recorded) -> str | None:
    """The id of a part of the aggregate that has a document of its own."""
    match recorded.event:
        case SampleGenerated(sample_id=part) | ABVoteCast(vote_id=part):
            return part
    return None


def _end(folded: Mapping[TopicPartition, int], position: Position) -> int:
    return folded.get((position.topic, position.partition), 0)
