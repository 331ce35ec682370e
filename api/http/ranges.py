"""Byte ranges and conditional requests (RFC 9110) for one immutable file."""

import re
from collections.abc import Mapping

from msgspec import Struct

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


class Slice(Struct, frozen=True):
    start: int
    length: int


class Unsatisfiable(Struct, frozen=True):
    """A well-formed range that begins after the end."""


def requested(headers: Mapping[str, str], size: int, etag: str) -> Slice | Unsatisfiable | None:
    """The part asked for; None means the whole, which is also the answer to a malformed or outdated range."""
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        return Slice(size - length, length) if length else Unsatisfiable()
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if start >= size:
        return Unsatisfiable()
    return Slice(start, end - start + 1) if start <= end else None


def unchanged(headers: Mapping[str, str], etag: str) -> bool:
    """Whether If-None-Match names the version at hand, so that 304 is the answer."""
    names = [name.strip().removeprefix("W/") for name in headers.get("if-none-match", "").split(",")]
    return etag in names or "*" in names
