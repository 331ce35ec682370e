"""Pages of a dataset's list, which lies in the object store: a cursor is a place in it."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from itertools import islice

from msgspec import Struct

from domain.curation import BadItem, PairItem, SampleItem, without
from domain.datasets import Dataset
from domain.errors import DamagedError, Fault, InvalidError
from domain.ports import ObjectStore
from workers.dataset_items import decoded, lines


class Items(Struct, frozen=True, kw_only=True):
    """`total` counts all items; `next_cursor` is null on the last page."""

    items: list[SampleItem | PairItem | BadItem]
    total: int
    limit: int
    offset: int
    next_cursor: str | None


async def page_of_items(objects: ObjectStore, dataset: Dataset, bounds: tuple[int, int], cursor: str | None) -> Items:
    """`bounds` are limit and offset. Raises InvalidError for a cursor of another list, or of the list before records
    were erased from it.
    """
    limit, offset = bounds
    built = dataset.built
    assert built is not None  # noqa: S101 -- the caller has looked
    stored = await objects.stat(built.items)
    if stored is None:
        raise DamagedError(f"The list {built.items!r} is gone from the object store. Put it back, or build another.")
    at = _place(cursor, stored.etag, stored.size)
    found: list[SampleItem | PairItem | BadItem] = []
    to_skip = offset
    async for page in lines(objects, built.items, at):
        skipped = min(to_skip, len(page))
        to_skip -= skipped
        at += sum(map(len, page[:skipped]))
        for line in islice(page, skipped, None):
            if len(found) == limit:
                break
            at += len(line)
            item = decoded(line, built.items)
            left = without(item, dataset.erased_feedback, dataset.erased_jobs, dataset.request.filters)
            if not isinstance(left, str):
                found.append(left)
        if len(found) == limit:
            break
    return Items(
        items=found,
        total=dataset.sample_count or 0,
        limit=limit,
        offset=offset,
        next_cursor=_cursor(at, stored.etag) if at < stored.size else None,
    )


def _cursor(at: int, etag: str) -> str:
    return urlsafe_b64encode(f"{at}|{etag}".encode()).decode()


def _place(cursor: str | None, etag: str, size: int) -> int:
    if cursor is None:
        return 0
    try:
        at, _, of = urlsafe_b64decode(cursor.encode()).decode().partition("|")
        place = int(at)
    except (ValueError, binascii.Error):
        place, of = -1, ""
    if not 0 <= place <= size:
        raise InvalidError([Fault("/cursor", f"{cursor!r} is not a cursor; use next_cursor of the page before.")])
    if of != etag:
        detail = "The list has changed since that page, as records were erased; begin again without a cursor."
        raise InvalidError([Fault("/cursor", detail)])
    return place
