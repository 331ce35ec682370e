"""Reading one's own writes: where a command's event stands, and whether the views show it."""

from typing import Final

from api.services import Services
from commands.receipt import Receipt
from domain.ports import Position

WAIT_SECONDS: Final = 2.0


async def visible(services: Services, receipt: Receipt) -> bool:
    """Whether the views have folded what a command appended."""
    return receipt.position is None or await services.views.wait([receipt.position], WAIT_SECONDS)


def headers(position: Position | None) -> dict[str, str]:
    return {} if position is None else {"X-Event-Position": str(position)}
