"""Reading one's own writes: where a command's event stands, and whether the views show it."""

from typing import Final

from api.services import Services
from commands.receipt import Receipt
from domain.ports import Position

# Marks routes that read documents by id alone, which are never behind the log's tail; the others wait for the views.
CURRENT: Final = {"current": True}


async def visible(services: Services, receipt: Receipt) -> bool:
    """Whether documents show what a command appended."""
    return receipt.position is None or await services.store.settled(receipt.position)


def headers(position: Position | None) -> dict[str, str]:
    return {} if position is None else {"X-Event-Position": str(position)}
