"""A built dataset's list as it lies in the object store, a page of items at a time."""

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Final

import msgspec

from domain.curation import AnyItem, without
from domain.datasets import Dataset
from domain.errors import ConflictError, DamagedError, NotFoundError
from domain.events.datasets import Reason
from domain.ports import ObjectStore

PAGE: Final = 500


async def lines(objects: ObjectStore, key: str, start: int = 0) -> AsyncIterator[list[bytes]]:
    """The lines from an offset in bytes on, each with its end, a few at once. Raises DamagedError where it is gone."""
    rest, page = b"", list[bytes]()
    try:
        async for chunk in objects.read(key, start):
            *whole, rest = (rest + chunk).split(b"\n")
            page += [line + b"\n" for line in whole]
            if len(page) >= PAGE:
                yield page
                page = []
    except NotFoundError as error:
        raise DamagedError(f"The list {key!r} is gone from the object store. Put it back, or build another.") from error
    if rest:
        raise DamagedError(f"The list {key!r} breaks off in a line. Put a sound copy back, or build another dataset.")
    if page:
        yield page


async def items(objects: ObjectStore, dataset: Dataset) -> AsyncIterator[list[AnyItem | Reason]]:
    """What is left of the items, and of each that is gone, why. Raises DamagedError, ConflictError for one unbuilt."""
    if dataset.built is None:
        raise ConflictError(f"Dataset {dataset.id} is {dataset.status} and has no items.")
    feedback, jobs = frozenset(dataset.erased_feedback), frozenset(dataset.erased_jobs)
    digest = sha256()
    async for page in lines(objects, dataset.built.items):
        found: list[AnyItem | Reason] = []
        for line in page:
            digest.update(line)
            item = decoded(line, dataset.built.items)
            found.append(without(item, feedback, jobs, dataset.request.filters) if dataset.erased else item)
        yield found
    if not dataset.erased and digest.hexdigest() != dataset.built.digest:
        raise DamagedError(
            f"The list {dataset.built.items!r} is damaged: its SHA-256 is {digest.hexdigest()}, and that of what was "
            f"stored {dataset.built.digest}. Put a sound copy back, or build another dataset."
        )


def decoded(line: bytes, key: str) -> AnyItem:
    """Raises DamagedError."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise DamagedError(
            f"The list {key!r} is damaged: {error}. Put a sound copy back, or build another dataset."
        ) from None


_decoder: Final[msgspec.json.Decoder[AnyItem]] = msgspec.json.Decoder(AnyItem)
