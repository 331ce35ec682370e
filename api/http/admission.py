"""What every request passes before its route."""

from typing import Any

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_415_UNSUPPORTED_MEDIA_TYPE

from api.http.faults import unknown_parameters
from api.http.services import Services
from domain.aggregates import AGGREGATES
from domain.errors import Fault, InvalidError, UnavailableError
from domain.ports import Position
from projections.freshness.current import WAIT_SECONDS


async def admit(request: Request[Any, Any, Any]) -> None:
    """Holds a request back until its answer will show the positions that `If-Event-Position` names, comma-separated.

    After a start, requests are refused while what exists could seem not to: lists until the views have caught up with
    the log, and what goes by an id until the log has been read on from where the views are.
    """
    path = request.scope["path"]
    if request.method == "OPTIONS" or path.startswith(("/health", "/schema")):
        return
    if faults := unknown_parameters(request):
        raise InvalidError(faults)
    if path == "/asyncapi.json":
        return
    # A page of another site can make a browser post text here unasked, but JSON it cannot.
    taken = request.route_handler.opt.get("media_types", ("application/json",))
    if request.method == "POST" and (media_type := request.content_type[0]) not in taken:
        detail = f"The body is {media_type or 'of no type'}; send {' or '.join(taken)}."
        raise HTTPException(status_code=HTTP_415_UNSUPPORTED_MEDIA_TYPE, detail=detail)
    services: Services = request.app.state.services
    is_current = "current" in request.route_handler.opt
    if not (services.tail.is_complete if is_current else services.folded.ready):
        raise UnavailableError("The views are still being folded from the log; ask again soon.")
    if (header := request.headers.get("if-event-position")) is not None:
        positions = [_position(services, text.strip()) for text in header.split(",")]
        reader = services.tail if is_current else services.folded
        if not await reader.wait(positions, WAIT_SECONDS):
            raise UnavailableError(f"{header} has not been reached within {WAIT_SECONDS:g} s; ask again.")
        # What the answer derives from the views, such as counters, waits for them too.
        services.views.expect([], positions)


def _position(services: Services, text: str) -> Position:
    try:
        position = Position.parse(text)
    except ValueError as error:
        raise InvalidError([Fault("", f"If-Event-Position: {error}.")]) from None
    topic = services.journal.log.topics.get(position.topic)
    if topic is not None and topic.name not in AGGREGATES:
        detail = f"If-Event-Position: the views hold nothing of {topic.name}, only of {', '.join(AGGREGATES)}."
        raise InvalidError([Fault("", f"{detail} Send an answer's X-Event-Position.")])
    if topic is None or position.partition >= topic.partitions:
        raise InvalidError([Fault("", f"If-Event-Position: there is no {position.topic}/{position.partition}.")])
    return position
