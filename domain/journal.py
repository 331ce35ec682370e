"""The log as everything else writes it: events in, positions out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, TypeVar

from domain.correlation import Correlation, Spans, current, untraced
from domain.envelope import decode, encode
from domain.errors import UnavailableError, UncertainError
from domain.events import Erased, Event, Recorded
from domain.events.progress import TOPIC as TELEMETRY
from domain.ports import Batch, EventLog, Position, TopicPartition

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


class Journal:
    """`now` gives ISO 8601 in UTC with microseconds; `new_id` gives ids that sort by time.

    What is appended belongs to the current correlation.
    """

    def __init__(
        self, log: EventLog, now: Callable[[], str], new_id: Callable[[], str], span: Spans = untraced
    ) -> None:
        self.log = log
        self.now = now
        self.new_id = new_id
        self.span = span

    async def append(self, *events: Event | Erased, event_id: str | None = None) -> list[Position]:
        """`event_id` is the last event's, for where a retry must be the same event. Raises as EventLog.append does."""
        time = self.now()
        ids = [*(self.new_id() for _ in events[1:]), event_id or self.new_id()]
        with self._appending(events[-1]):
            messages = [
                encode(event, event_id=ident, time=time, correlation=current())
                for event, ident in zip(events, ids, strict=True)
            ]
            return await self.log.append(messages)

    async def append_as(
        self, events: Sequence[tuple[str, Event | Erased]], causes: Sequence[Correlation | None] = ()
    ) -> list[Position]:
        """Each under its event's id, so that a retry appends the same events. Raises as EventLog.append does.

        Each has a time of its own: jobs of one time would run in the order of their ids. `causes` are what each
        belongs to, where that is not the current correlation.
        """
        return await self.log.append(
            [
                encode(event, event_id=ident, time=self.now(), correlation=cause)
                for (ident, event), cause in zip(events, causes or [current()] * len(events), strict=True)
            ]
        )

    def _appending(self, event: Event | Erased) -> AbstractContextManager[object]:
        # Nobody asked for heartbeats, and progress comes twice a second.
        if current() is None or event.topic == TELEMETRY.name:
            return nullcontext()
        return self.span(
            f"append {event.topic}", "producer", {"messaging.destination.name": event.topic, "text2song.key": event.key}
        )

    async def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[Batch[Recorded]]:
        """Raises UnknownVersionError at an event that a newer version wrote."""
        async for batch in self.log.follow(start):
            yield Batch([decode(record) for record in batch.records], batch.reached)
