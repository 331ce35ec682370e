"""Vorbis comments of FLAC and Ogg files, of which libsndfile writes only those that it has a name for."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

COMMENT_BLOCK: Final = 4
LAST_BLOCK: Final = 0x80
SEGMENT: Final = 255  # bytes, of which a page has up to as many segments
HEAD: Final = struct.Struct("<4sBBqIII")
CONTINUED: Final = 1
CRC_AT: Final = 22
PACKET: Final = b"\x03vorbis"
REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read(flac: bytes, name: str) -> str | None:
    """The first comment of a FLAC file by that name."""
    for kind, start, end in _blocks(flac):
        if kind == COMMENT_BLOCK:
            for comment in _comments(flac[start:end])[1]:
                key, _, value = comment.partition(b"=")
                if key.upper() == name.encode():
                    return value.decode()
    return None


def add(data: bytes, name: str, value: str) -> bytes:
    """The FLAC or Ogg Vorbis file with one more comment."""
    comment = f"{name}={value}".encode()
    return _added_to_ogg(data, comment) if data.startswith(b"OggS") else _added_to_flac(data, comment)


def _added_to_flac(data: bytes, comment: bytes) -> bytes:
    for kind, start, end in _blocks(data):
        if kind == COMMENT_BLOCK:
            block = _with(data[start:end], comment)
            return data[: start - 3] + len(block).to_bytes(3, "big") + block + data[end:]
    raise ValueError("The FLAC file has no block of comments.")


def _blocks(flac: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each block of metadata, its kind and where its content begins and ends."""
    end, is_last = 4, False
    while not is_last:
        start = end + 4
        is_last = bool(flac[end] & LAST_BLOCK)
        kind, end = flac[end] & ~LAST_BLOCK, start + int.from_bytes(flac[end + 1 : start], "big")
        yield kind, start, end


def _comments(block: bytes) -> tuple[bytes, list[bytes]]:
    """The name of the encoder, and the comments."""

    def text(at: int) -> tuple[bytes, int]:
        (length,) = struct.unpack_from("<I", block, at)
        return block[at + 4 : at + 4 + length], at + 4 + length

    vendor, at = text(0)
    (count,) = struct.unpack_from("<I", block, at)
    comments, at = [], at + 4
    for _ in range(count):
        comment, at = text(at)
        comments.append(comment)
    return vendor, comments


def _with(block: bytes, comment: bytes) -> bytes:
    vendor, comments = _comments(block)
    texts = [vendor, *comments, comment]
    first, *rest = [struct.pack("<I", len(text)) + text for text in texts]
    return first + struct.pack("<I", len(rest)) + b"".join(rest)


class _Page(Struct, frozen=True):
    flags: int
    granule: int
    serial: int
    lacing: bytes
    body: bytes


def _added_to_ogg(data: bytes, comment: bytes) -> bytes:
    """The comments are the second packet, which shares its pages with the third; sound begins on a page of its own."""
    first, *pages = _pages(data)
    packets: list[bytes] = []
    begun, used = b"", 0
    while len(packets) < 2:
        page, at = pages[used], 0
        for length in page.lacing:
            begun, at = begun + page.body[at : at + length], at + length
            if length < SEGMENT:
                packets, begun = [*packets, begun], b""
        used += 1
    # A bit ends the comments, that their length cannot be mistaken.
    packets[0] = PACKET + _with(packets[0][len(PACKET) : -1], comment) + b"\x01"
    written = [first, *_paged(packets, pages[0]), *pages[used:]]
    return b"".join(_bytes(page, number) for number, page in enumerate(written))


def _pages(data: bytes) -> Iterator[_Page]:
    at = 0
    while at < len(data):
        _, _, flags, granule, serial, _, _ = HEAD.unpack_from(data, at)
        at += HEAD.size + 1
        lacing = data[at : at + data[at - 1]]
        at += len(lacing)
        yield _Page(flags, granule, serial, lacing, data[at : at + sum(lacing)])
        at += sum(lacing)


def _paged(packets: Sequence[bytes], like: _Page) -> Iterator[_Page]:
    """A packet ends with a segment that is not full, so that one more, with nothing in it, may have to."""
    lacing = b"".join(bytes([SEGMENT]) * (len(each) // SEGMENT) + bytes([len(each) % SEGMENT]) for each in packets)
    body = b"".join(packets)
    is_continued = False
    for start in range(0, len(lacing), SEGMENT):
        part = lacing[start : start + SEGMENT]
        flags = CONTINUED if is_continued else 0
        # On a page where no packet ends, no position is told.
        granule = 0 if min(part) < SEGMENT else -1
        yield replace(like, flags=flags, granule=granule, lacing=part, body=body[: sum(part)])
        body, is_continued = body[sum(part) :], part[-1] == SEGMENT


def _bytes(page: _Page, number: int) -> bytes:
    head = HEAD.pack(b"OggS", 0, page.flags, page.granule, page.serial, number, 0)
    whole = head + bytes([len(page.lacing)]) + page.lacing + page.body
    return whole[:CRC_AT] + _checksum(whole).to_bytes(4, "little") + whole[CRC_AT + 4 :]


def _checksum(data: bytes) -> int:
    """CRC-32 as zlib's, but with the bits in the other order, and neither begun nor ended with ones."""
    ones = 0xFFFFFFFF
    return int(f"{zlib.crc32(data.translate(REVERSED), ones) ^ ones:032b}"[::-1], 2)
