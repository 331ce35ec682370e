"""Where a command's events stand, which routes wait for what, and the positions that a client asks for."""

import asyncio
from contextlib import suppress
from typing import Final

from api.http.refusals import UnknownPositionError
from api.http.services import Services
from domain.aggregates import AGGREGATES
from domain.errors import Fault, InvalidError, UnavailableError
from domain.ports import EventLog, Position
from projections.freshness.current import WAIT_SECONDS

# Marks routes that read documents by id alone, which are never behind the log's tail; the others wait for the views.
CURRENT: Final = {"current": True}
HEADER: Final = "If-Event-Position"
ADVICE: Final = "Send an answer's X-Event-Position."
# Views that keep up have shown a new record by then, and nobody has to ask the log how far it goes.
SOON_SECONDS: Final = 0.2
ASKED_SECONDS: Final = 0.5


def headers(*positions: Position) -> dict[str, str]:
    return {"X-Event-Position": ", ".join(map(str, positions))} if positions else {}


async def show(services: Services, header: str, *, is_current: bool) -> None:
    """Returns once an answer shows all the positions of the header.

    Raises InvalidError where one can be of no record, UnknownPositionError where one is of none, and UnavailableError
    where one has not been reached in time.
    """
    positions = [_position(services, text.strip()) for text in header.split(",")]
    reader = services.tail if is_current else services.folded
    if not await reader.wait(positions, SOON_SECONDS):
        await _check(services.journal.log, [each for each in positions if not services.tail.has([each])])
        if not await reader.wait(positions, WAIT_SECONDS - SOON_SECONDS):
            raise UnavailableError(f"{header} has not been reached within {WAIT_SECONDS:g} s; ask again.")
    # What the answer derives from the views, such as counters, waits for them too.
    services.views.expect([], positions)


async def _check(log: EventLog, positions: list[Position]) -> None:
    """Raises UnknownPositionError where the log, which may be away, says that one of the positions is after its end."""
    ends: dict[str, dict[int, int]] = {}
    with suppress(UnavailableError, TimeoutError):
        async with asyncio.timeout(ASKED_SECONDS):
            for topic in {position.topic for position in positions}:
                ends[topic] = await log.ends(topic)
    for position in positions:
        end = ends.get(position.topic, {}).get(position.partition)
        if end is not None and position.offset >= end:
            following = Position(position.topic, position.partition, end)
            detail = f"{HEADER}: there is no {position} on the log; the next there will be {following}. {ADVICE}"
            raise UnknownPositionError(detail)


def _position(services: Services, text: str) -> Position:
    try:
        position = Position.parse(text)
    except ValueError as error:
        raise InvalidError([Fault("", f"{HEADER}: {error}.")]) from None
    topic = services.journal.log.topics.get(position.topic)
    if topic is not None and topic.name not in AGGREGATES:
        detail = f"{HEADER}: the views hold nothing of {topic.name}, only of {', '.join(AGGREGATES)}."
        raise InvalidError([Fault("", f"{detail} {ADVICE}")])
    if topic is None or position.partition >= topic.partitions:
        raise InvalidError([Fault("", f"{HEADER}: there is no {position.topic}/{position.partition}.")])
    return position
