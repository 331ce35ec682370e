from msgspec import Struct

from domain.ports import Position


class Receipt(Struct, frozen=True):
    """What a command appended, and the `event_id` of its last event; None where there was nothing to say.

    The positions are then those of what it went by.
    """

    id: str
    positions: tuple[Position, ...] = ()
    event_id: str | None = None
