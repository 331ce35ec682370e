"""Records of one partition, for vectors: well-formed ones, and those that a stranger might write."""

from typing import Any

from msgspec.structs import replace

from domain.envelope import encode
from domain.events import Erased, Event
from domain.ports import Position, Record


def record(offset: int, event: Event | Erased, **changes: Any) -> Record:
    """`changes` are fields of the record, such as `value`."""
    message = encode(event, event_id=f"event-{offset}", time=f"2026-01-31T12:00:{offset:02}.000000Z")
    place = Position(event.topic, 0, offset)
    return replace(Record(place, message.key, message.value, message.headers), **changes)


def log(*events: Event | bytes | None, name: Event) -> list[Record]:
    """One record after the other; bytes and None stand as the values of what calls itself a `name`."""
    return [
        record(offset, event) if isinstance(event, Event) else record(offset, name, value=event)
        for offset, event in enumerate(events)
    ]


def headed(original: Record, **changes: str | None) -> Record:
    """With other headers; None takes one away."""
    headers = {**original.headers, **changes}
    return replace(original, headers={name: value for name, value in headers.items() if value is not None})


def encoded(event: Event) -> bytes:
    return encode(event, event_id="", time="").value or b""
