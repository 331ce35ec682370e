import io
import zipfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http import archive
from api.http.archive import Entry

MOMENT = datetime(2026, 1, 31, 12, 30, 58, tzinfo=UTC)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


def entry(name: str, data: bytes, modified: datetime = MOMENT) -> Entry:
    return Entry(name, len(data), modified, partial(chunks, data))


@given(st.dictionaries(st.text(st.characters(categories=["L", "N"]), min_size=1), st.binary(), max_size=16))
async def test_any_reader_finds_the_files_as_they_were(files: dict[str, bytes]) -> None:
    entries = [entry(name, data) for name, data in files.items()]
    written = b"".join([part async for part in archive.stream(entries)])
    assert len(written) == archive.size(entries)
    with zipfile.ZipFile(io.BytesIO(written)) as found:
        assert {info.filename: found.read(info) for info in found.infolist()} == files
        assert all(info.date_time == (2026, 1, 31, 12, 30, 58) for info in found.infolist())
        # A reader of streams needs sizes and checksums in front of the files.
        assert not any(info.flag_bits & 0x08 for info in found.infolist())


@pytest.mark.parametrize(("year", "written"), [(1, 1980), (9999, 2107)])
async def test_a_time_that_the_format_cannot_say_is_the_nearest_one(year: int, written: int) -> None:
    stored = [part async for part in archive.stream([entry("a", b"1", MOMENT.replace(year=year))])]
    with zipfile.ZipFile(io.BytesIO(b"".join(stored))) as found:
        assert found.infolist()[0].date_time[0] == written


def nothing() -> AsyncIterator[bytes]:
    return chunks(b"")


@pytest.mark.parametrize(
    ("read", "words"),
    [(nothing, "a has 0 bytes instead of 2."), (partial(chunks, b"1234"), "a has 4 bytes instead of 2.")],
)
async def test_a_file_of_another_size_ends_the_stream(read: Callable[[], AsyncIterator[bytes]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _ = [part async for part in archive.stream([Entry("a", 2, MOMENT, read)])]


def test_more_than_the_format_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would have 4,294,967,396 bytes; a ZIP file has at most 4,294,967,295"):
        archive.size([Entry("a", 2**32, MOMENT, nothing)])
