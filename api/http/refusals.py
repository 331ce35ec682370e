"""Requests that are refused whatever they ask for: of whom they come, how many there are, what they wait for."""

from collections.abc import Mapping
from typing import Final

from litestar.exceptions import HTTPException
from litestar.status_codes import (
    HTTP_400_BAD_REQUEST,
    HTTP_401_UNAUTHORIZED,
    HTTP_403_FORBIDDEN,
    HTTP_429_TOO_MANY_REQUESTS,
)

CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="text2song"'}


class Refusal(HTTPException):
    """`code` is for programs."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail=detail, headers=dict(headers or {}))
        self.code = code


class UnauthorizedError(Refusal):
    status_code = HTTP_401_UNAUTHORIZED

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail, CHALLENGE)


class ForbiddenError(Refusal):
    status_code = HTTP_403_FORBIDDEN


class TooManyError(Refusal):
    status_code = HTTP_429_TOO_MANY_REQUESTS

    def __init__(self, code: str, detail: str, retry_after: int) -> None:
        super().__init__(code, detail, {"Retry-After": str(max(1, retry_after))})


class UnknownPositionError(Refusal):
    """A request waits for what the log does not have: it may have been another log that the client was told of."""

    status_code = HTTP_400_BAD_REQUEST

    def __init__(self, detail: str) -> None:
        super().__init__("unknown_position", detail)
