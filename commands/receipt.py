from msgspec import Struct

from domain.ports import Position


class Receipt(Struct, frozen=True):
    """What a command appended: `event_id` and `position` of its last event, both None when there was nothing to say."""

    id: str
    position: Position | None = None
    event_id: str | None = None
