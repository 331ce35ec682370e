"""Reading one's own writes: `X-Event-Position` on answers, `If-Event-Position` on requests."""

from typing import Any, Final

from litestar import Request

from api.services import Services
from commands.receipt import Receipt
from domain.errors import Fault, InvalidError, UnavailableError
from domain.ports import Position

WAIT_SECONDS: Final = 2.0


async def await_position(request: Request[Any, Any, Any]) -> None:
    """Holds a read back until the views have folded the positions it names, comma-separated."""
    header = request.headers.get("if-event-position")
    if header is None:
        return
    services: Services = request.app.state.services
    try:
        positions = [Position.parse(text.strip()) for text in header.split(",")]
    except ValueError as error:
        raise InvalidError([Fault("", f"If-Event-Position: {error}.")]) from None
    topics = services.journal.log.topics
    for position in positions:
        if position.topic not in topics or position.partition >= topics[position.topic].partitions:
            raise InvalidError(
                [Fault("", f"If-Event-Position: there is no partition {position.topic}/{position.partition}.")]
            )
    if not await services.views.wait(positions, WAIT_SECONDS):
        raise UnavailableError(f"The views have not reached {header} within {WAIT_SECONDS:g} s; ask again.")


async def visible(services: Services, receipt: Receipt) -> bool:
    """Whether the views have folded what a command appended."""
    return receipt.position is None or await services.views.wait([receipt.position], WAIT_SECONDS)


def headers(position: Position | None) -> dict[str, str]:
    return {} if position is None else {"X-Event-Position": str(position)}
