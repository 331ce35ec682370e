"""Lists: `limit` and `offset`, and an opaque cursor that stays exact while new items arrive."""

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Final, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from domain.errors import Fault, InvalidError
from domain.events import timestamp
from domain.ports import D, Document, Query, Reader, Scalar, View

MAX_LIMIT: Final = 200
MAX_OFFSET: Final = 1_000_000
# In a query a + that is not written %2B arrives as a space.
SPACED_OFFSET: Final = re.compile(r"(:[0-9.,]+) ([0-9]{2}:?[0-9]{2})$")
T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """`total` counts all matches; `next_cursor` is null on the last page."""

    items: list[T]
    total: int
    limit: int
    offset: int
    next_cursor: str | None


def query(
    limit: int,
    offset: int,
    cursor: str | None,
    *,
    equal: Mapping[str, Scalar | None] | None = None,
    among: Mapping[str, Sequence[Scalar]] | None = None,
    start: str | None = None,
    end: str | None = None,
) -> Query:
    """What a list is asked for; filters that are None do not narrow it. Raises InvalidError."""
    limit, offset = bounds(limit, offset)
    return Query(
        equal={name: value for name, value in (equal or {}).items() if value is not None},
        among=among or {},
        start=start,
        end=end,
        after=_after(cursor),
        offset=offset,
        limit=limit,
    )


def bounds(limit: int, offset: int) -> tuple[int, int]:
    """Both, as they are. Raises InvalidError."""
    faults = []
    if not 1 <= limit <= MAX_LIMIT:
        faults.append(Fault("/limit", f"limit is {limit}; ask for 1 to {MAX_LIMIT} items."))
    if not 0 <= offset <= MAX_OFFSET:
        detail = f"offset is {offset}; it goes from 0 to {MAX_OFFSET:,}. Go further with next_cursor."
        faults.append(Fault("/offset", detail))
    if faults:
        raise InvalidError(faults)
    return limit, offset


async def page(
    views: Reader,
    view: View[D],
    asked: Query,
    body: Callable[[D], T],
    total: Callable[[], Awaitable[int]] | None = None,
) -> Page[T]:
    """`total` counts the matches where counting them in the view would take too long."""

    async def bodies(documents: Sequence[D]) -> list[T]:
        return [body(document) for document in documents]

    return await page_of(views, view, asked, bodies, total)


async def page_of(
    views: Reader,
    view: View[D],
    asked: Query,
    bodies: Callable[[Sequence[D]], Awaitable[list[T]]],
    total: Callable[[], Awaitable[int]] | None = None,
) -> Page[T]:
    """As `page`, where the bodies are made together, and some may be left out."""
    found = await views.find(view, replace(asked, limit=asked.limit + 1))
    shown = found[: asked.limit]
    return Page(
        items=await bodies(shown),
        total=await (total() if total else views.count(view, asked)),
        limit=asked.limit,
        offset=asked.offset,
        next_cursor=_cursor(shown[-1]) if len(found) > len(shown) else None,
    )


def _cursor(last: Document) -> str:
    return urlsafe_b64encode(f"{last.created_at}|{last.id}".encode()).decode()


def _after(text: str | None) -> tuple[str, str] | None:
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
        parsed = datetime.fromisoformat(SPACED_OFFSET.sub(r"\1+\2", text).upper())
        if len(text) <= len("2026-01-31"):
            parsed = datetime.combine(parsed.date(), time.max if end else time.min)
        return timestamp(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        detail = f"{name} is {text!r}; write a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z."
        raise InvalidError([Fault(f"/{name}", detail)]) from None
