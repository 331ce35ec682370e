"""A ZIP archive as a stream: files stand in it as they are, and its size is known before the first byte."""

import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

VERSION: Final = 20
NAMES_ARE_UTF8: Final = 0x0800
STORED: Final = 0
LOCAL: Final = struct.Struct("<4s5H3I2H")
CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
END: Final = struct.Struct("<4s4H2IH")
MAX_SIZE: Final = 2**32 - 1
FIRST_YEAR, LAST_YEAR = 1980, 2107


class Entry(Struct, frozen=True):
    """`read` gives the file's `size` bytes, the same ones at each call."""

    name: str
    size: int
    modified: datetime
    read: Callable[[], AsyncIterator[bytes]]


def size(entries: Sequence[Entry]) -> int:
    """In bytes. Raises ValueError for 4 GiB and more, which would take another format."""
    headers = sum(LOCAL.size + CENTRAL.size + 2 * len(entry.name.encode()) for entry in entries)
    total = headers + sum(entry.size for entry in entries) + END.size
    if total > MAX_SIZE:
        raise ValueError(f"The archive would have {total:,} bytes; a ZIP file has at most {MAX_SIZE:,}.")
    return total


async def stream(entries: Sequence[Entry]) -> AsyncIterator[bytes]:
    """Each file is read twice: its checksum stands before it, so that readers of streams can check it too.

    Raises ValueError for a file that has another size than its entry says.
    """
    directory, offset = [], 0
    for entry in entries:
        name, checksum, length = entry.name.encode(), 0, 0
        async for chunk in entry.read():
            checksum, length = zlib.crc32(chunk, checksum), length + len(chunk)
        if length != entry.size:
            raise ValueError(f"{entry.name} has {length:,} bytes instead of {entry.size:,}.")
        at = entry.modified
        year = min(max(at.year, FIRST_YEAR), LAST_YEAR)
        moment = at.hour << 11 | at.minute << 5 | at.second // 2, year - FIRST_YEAR << 9 | at.month << 5 | at.day
        facts = VERSION, NAMES_ARE_UTF8, STORED, *moment, checksum, length, length, len(name), 0
        yield LOCAL.pack(b"PK\3\4", *facts) + name
        async for chunk in entry.read():
            yield chunk
        directory.append(CENTRAL.pack(b"PK\1\2", VERSION, *facts, 0, 0, 0, 0, offset) + name)
        offset += LOCAL.size + len(name) + length
    listing = b"".join(directory)
    yield listing + END.pack(b"PK\5\6", 0, 0, len(directory), len(directory), len(listing), offset, 0)
