"""Reading one's own writes: where a command's events stand, and whether documents show them."""

from typing import Final

from api.services import Services
from commands.receipt import Receipt
from domain.ports import Position

# Marks routes that read documents by id alone, which are never behind the log's tail; the others wait for the views.
CURRENT: Final = {"current": True}


async def visible(services: Services, receipt: Receipt) -> bool:
    """Whether documents show what a command appended."""
    return await services.views.settled(receipt.positions)


def headers(*positions: Position) -> dict[str, str]:
    return {"X-Event-Position": ", ".join(map(str, positions))} if positions else {}
