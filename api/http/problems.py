"""Problem details (RFC 9457) for everything that goes wrong."""

import logging
from http import HTTPStatus
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import UNSET, Struct, UnsetType
from uuid_utils import uuid7

from api.http.faults import validation_faults
from api.http.refusals import Refusal
from domain.errors import (
    ConflictError,
    DamagedError,
    FailedError,
    Fault,
    InvalidError,
    KeyReusedError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
    UncertainError,
)

logger = logging.getLogger(__name__)

MAX_BODY: Final = 1_000_000
RETRY_AFTER: Final = "1"
STATUS: Final[dict[type[Exception], tuple[HTTPStatus, str]]] = {
    InvalidError: (HTTPStatus.BAD_REQUEST, "invalid_request"),
    NotFoundError: (HTTPStatus.NOT_FOUND, "not_found"),
    ConflictError: (HTTPStatus.CONFLICT, "conflict"),
    KeyReusedError: (HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
    DamagedError: (HTTPStatus.GONE, "damaged"),
    TooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large"),
    FailedError: (HTTPStatus.INTERNAL_SERVER_ERROR, "generation_failed"),
    UnavailableError: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    UncertainError: (HTTPStatus.SERVICE_UNAVAILABLE, "outcome_unknown"),
    UnicodeDecodeError: (HTTPStatus.BAD_REQUEST, "malformed_request"),
    RecursionError: (HTTPStatus.BAD_REQUEST, "malformed_request"),
}


class Problem(Struct, frozen=True, kw_only=True):
    """`code` is for programs, `detail` for people; `errors` points into the request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[Fault] | UnsetType = UNSET


def problem_response(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    status, code, detail, faults, headers = _describe(request, error)
    problem = Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request.headers.get("x-request-id", "")[:100] or str(uuid7()),
        errors=faults or UNSET,
    )
    headers["X-Request-ID"] = problem.request_id
    expected = isinstance(error, (FailedError, UnavailableError, UncertainError)) or "client disconnected" in str(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not expected:
        logger.error("%s %s failed (%s).", request.method, request.url.path, problem.request_id, exc_info=error)
    return Response(problem, status_code=status, media_type="application/problem+json", headers=headers)


def _describe(
    request: Request[Any, Any, Any], error: Exception
) -> tuple[HTTPStatus, str, str, list[Fault], dict[str, str]]:
    match error:
        case InvalidError():
            return *STATUS[InvalidError], str(error), list(error.faults), {}
        case ValidationException():
            return _describe(request, InvalidError(validation_faults(request, error)))
        case HTTPException():
            status = HTTPStatus(error.status_code)
            code = error.code if isinstance(error, Refusal) else status.name.lower()
            headers = dict(error.headers or {})
            if "GET" in (methods := headers.get("allow", "").split(", ")):
                headers["allow"] = ", ".join([*methods, "HEAD"])
            return status, code, _explain(status, error.detail), [], headers
    for kind, (status, code) in STATUS.items():
        if isinstance(error, kind):
            wait = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
            return status, code, str(error), [], wait
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return status, "internal_error", "The studio made a mistake; its log says more under this request_id.", [], {}


def _explain(status: HTTPStatus, detail: str) -> str:
    match status:
        case HTTPStatus.BAD_REQUEST if "JSON is malformed" in detail or "was truncated" in detail:
            return f"{detail}. Send one JSON object in UTF-8; NaN and Infinity are not JSON."
        case HTTPStatus.NOT_FOUND:
            return "There is nothing at this address; /schema lists what there is."
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "This address does not answer to that method; /schema lists what it answers to."
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return f"The body is over the limit of {MAX_BODY:,} bytes."
    return detail
