"""What every request passes before its route."""

from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_415_UNSUPPORTED_MEDIA_TYPE
from msgspec.structs import replace

from api.http import positions
from api.http.access import Demand, demand
from api.http.entrance import CALLER, STANDING
from api.http.faults import unknown_parameters
from api.http.limits import REFUSED, refusal
from api.http.methods import options
from api.http.refusals import UnauthorizedError
from api.http.services import SERVICES, Services, given
from domain.errors import InvalidError, UnavailableError

STARTING: Final = "The views are still being folded from the log; ask again soon."


async def admit(request: Request[Any, Any, Any]) -> Response[None] | None:
    """Answers OPTIONS. Refuses requests whose key does not allow them, and those of which there are too many.

    Holds a request back until its answer will show the positions that `If-Event-Position` names, comma-separated; 400
    where the log has no such record.

    After a start, requests are refused while what exists could seem not to: lists until the views have caught up with
    the log, and what goes by an id until the log has been read on from where the views are.
    """
    services = given(request)
    path = request.scope["path"]
    if request.method == "OPTIONS":
        return options(request)
    if path.startswith(("/health", "/schema", "/studio")):
        return None
    needed = demand(request.route_handler, request.method)
    if needed != "open":
        services = await _known(request, services, needed)
    if faults := unknown_parameters(request):
        raise InvalidError(faults)
    if path == "/asyncapi.json":
        return None
    # A page of another site can make a browser post text here unasked, but JSON it cannot.
    taken = request.route_handler.opt.get("media_types", ("application/json",))
    if request.method == "POST" and (media_type := request.content_type[0]) not in taken:
        detail = f"The body is {media_type or 'of no type'}; send {' or '.join(taken)}."
        raise HTTPException(status_code=HTTP_415_UNSUPPORTED_MEDIA_TYPE, detail=detail)
    is_current = "current" in request.route_handler.opt
    if not is_current and not services.folded.ready:
        raise UnavailableError(STARTING)
    if (header := request.headers.get(positions.HEADER)) is not None:
        await positions.show(services, header, is_current=is_current)
    return None


async def _known(request: Request[Any, Any, Any], services: Services, needed: Demand) -> Services:
    """The services of who asks. Raises UnauthorizedError, ForbiddenError and TooManyError."""
    if not services.tail.is_complete:
        # A key may stand in what was not read yet, or that it was revoked.
        raise UnavailableError(STARTING)
    address = (request.scope.get("client") or ("",))[0]
    try:
        caller = services.feed.keys.caller(request.scope["headers"])
    except UnauthorizedError:
        if (standing := await services.limiter.take(REFUSED, address)).remaining < 0:
            raise refusal(standing) from None
        raise
    state = request.scope["state"]
    state[CALLER] = caller
    policy = services.limiter.policy(request.route_handler, request.method, caller)
    if policy is not None:
        state[STANDING] = standing = await services.limiter.take(policy, caller.key_id or address)
        if standing.remaining < 0:
            state[STANDING] = replace(standing, remaining=0)
            raise refusal(standing)
    caller.check(needed)
    caller.check_test(request.path_params.get("ab_test_id"))
    state[SERVICES] = own = services.of(caller)
    return own
