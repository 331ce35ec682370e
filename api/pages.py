"""Lists: `limit` and `offset`, and an opaque cursor that stays exact while new items arrive."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import Final, Generic, TypeVar

from msgspec import Struct

from domain.errors import Fault, InvalidError
from domain.events import timestamp
from domain.ports import Document

MAX_LIMIT: Final = 200
MAX_OFFSET: Final = 1_000_000
T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """`total` counts all matches; `next_cursor` is null on the last page."""

    items: list[T]
    total: int
    limit: int
    offset: int
    next_cursor: str | None


def check(limit: int, offset: int) -> None:
    faults = []
    if not 1 <= limit <= MAX_LIMIT:
        faults.append(Fault("/limit", f"limit is {limit}; ask for 1 to {MAX_LIMIT} items."))
    if not 0 <= offset <= MAX_OFFSET:
        detail = f"offset is {offset}; it goes from 0 to {MAX_OFFSET:,}. Go further with next_cursor."
        faults.append(Fault("/offset", detail))
    if faults:
        raise InvalidError(faults)


def cursor(found: Sequence[Document], limit: int) -> str | None:
    """For a page asked for with one item more than `limit`."""
    if len(found) <= limit:
        return None
    last = found[limit - 1]
    return urlsafe_b64encode(f"{last.created_at}|{last.id}".encode()).decode()


def after(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    try:
        created_at, _, ident = urlsafe_b64decode(text.encode()).decode().partition("|")
        timestamp(datetime.fromisoformat(created_at))
    except (ValueError, OverflowError, binascii.Error):
        raise InvalidError(
            [Fault("/cursor", f"{text!r} is not a cursor; use next_cursor of the page before.")]
        ) from None
    return created_at, ident


def moment(name: str, text: str | None, *, end: bool = False) -> str | None:
    """A query's date or time as the log writes times; a date alone is its first moment, or with `end` its last."""
    if text is None:
        return None
    try:
        parsed = datetime.fromisoformat(text)
        if len(text) <= len("2026-01-31"):
            parsed = datetime.combine(parsed.date(), time.max if end else time.min)
        return timestamp(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        detail = f"{name} is {text!r}; write a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z."
        raise InvalidError([Fault(f"/{name}", detail)]) from None
