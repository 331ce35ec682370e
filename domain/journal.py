"""The log as everything else writes it: events in, positions out."""

from collections.abc import AsyncIterator, Callable, Mapping

from domain.events import Event, Recorded, decode, encode
from domain.ports import EventLog, Position, TopicPartition


class Journal:
    """`now` gives ISO 8601 in UTC with microseconds; `new_id` gives ids that sort by time."""

    def __init__(self, log: EventLog, now: Callable[[], str], new_id: Callable[[], str]) -> None:
        self.log = log
        self.now = now
        self.new_id = new_id

    async def append(
        self, *events: Event, event_id: str | None = None, cause: Recorded | None = None
    ) -> list[Position]:
        """`event_id` is the last event's, for where a retry must be the same event. Raises as EventLog.append does."""
        time = self.now()
        ids = [*(self.new_id() for _ in events[1:]), event_id or self.new_id()]
        messages = [
            encode(event, event_id=ident, time=time, cause=cause) for event, ident in zip(events, ids, strict=True)
        ]
        return await self.log.append(messages)

    async def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[list[Recorded]]:
        """Raises UnknownVersionError at an event that a newer version wrote."""
        async for batch in self.log.follow(start):
            yield [decode(record) for record in batch]
