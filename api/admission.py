"""What every request passes before its route."""

from typing import Any

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_415_UNSUPPORTED_MEDIA_TYPE

from api.services import Services
from domain.errors import Fault, InvalidError, UnavailableError
from domain.ports import Position
from projections.current import WAIT_SECONDS


async def admit(request: Request[Any, Any, Any]) -> None:
    """Holds a request back until its answer will show the positions that `If-Event-Position` names, comma-separated.

    Nothing is answered before the views have caught up with the log after a start: what exists would seem not to.
    """
    if request.url.path.startswith(("/health", "/schema", "/asyncapi.json")):
        return
    media_type = request.content_type[0]
    # A page of another site can make a browser post text here unasked, but JSON it cannot.
    if request.method == "POST" and media_type != "application/json":
        detail = f"The body is {media_type or 'of no type'}; send application/json."
        raise HTTPException(status_code=HTTP_415_UNSUPPORTED_MEDIA_TYPE, detail=detail)
    services: Services = request.app.state.services
    if not services.folded.ready:
        raise UnavailableError("The views are still being folded from the log; ask again soon.")
    if (header := request.headers.get("if-event-position")) is not None:
        positions = [_position(services, text.strip()) for text in header.split(",")]
        reader = services.tail if "current" in request.route_handler.opt else services.folded
        if not await reader.wait(positions, WAIT_SECONDS):
            raise UnavailableError(f"{header} has not been reached within {WAIT_SECONDS:g} s; ask again.")


def _position(services: Services, text: str) -> Position:
    try:
        position = Position.parse(text)
    except ValueError as error:
        raise InvalidError([Fault("", f"If-Event-Position: {error}.")]) from None
    topic = services.journal.log.topics.get(position.topic)
    if topic is None or position.partition >= topic.partitions:
        raise InvalidError([Fault("", f"If-Event-Position: there is no {position.topic}/{position.partition}.")])
    return position
