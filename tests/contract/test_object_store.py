"""What every object store holds to, whichever adapter it is."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.errors import NotFoundError
from domain.ports import ObjectStore

DATA = os.urandom(200_000)
LARGE = 8 * 1024 * 1024 + 1


async def content(objects: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in objects.read(key, start, length)])


async def keys(objects: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in await objects.list(prefix)]


def on_one_object(objects: ObjectStore, key: str) -> Sequence[Awaitable[object]]:
    return objects.stat(key), anext(objects.read(key)), objects.delete(key)


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "many chunks"])
async def test_an_object_comes_back_as_it_was_put(objects: ObjectStore, data: bytes) -> None:
    info = await objects.put("samples/job/1/0.flac", data)
    assert (info.key, info.size) == ("samples/job/1/0.flac", len(data))
    assert await objects.stat("samples/job/1/0.flac") == info
    assert await content(objects, "samples/job/1/0.flac") == data


@pytest.mark.parametrize("size", [0, 200_000, LARGE], ids=["empty", "many chunks", "many parts"])
async def test_a_file_is_put_whole_wherever_it_was_read_to(objects: ObjectStore, size: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        info = await objects.put_file("lists/long", file)
        file.seek(0)
        whole = file.read()
        assert (info.key, info.size) == ("lists/long", size)
        assert await content(objects, "lists/long") == whole
        assert await objects.put_file("lists/long", file, replace=False) == info
        assert await keys(objects) == ["lists/long"]


@pytest.mark.parametrize(
    "key", ["a", "a b/c+d&e=f", "Grüße/日本語/🎵.flac", "a/.hidden/..x/y..", "%2e%2e/%2F", "~/$HOME"]
)
async def test_any_honest_name_is_a_key(objects: ObjectStore, key: str) -> None:
    await objects.put(key, b"1")
    assert await keys(objects) == [key]
    assert await content(objects, key) == b"1"
    assert await objects.delete(key) == 1


async def test_a_missing_object_is_not_found_before_the_first_chunk(objects: ObjectStore) -> None:
    await objects.put("folder/object", b"1")
    for key in ("missing", "folder", "folder/missing", "folder/object/below"):
        assert await objects.stat(key) is None
        with pytest.raises(NotFoundError, match=key):
            await anext(objects.read(key))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(DATA) + 10), length=st.none() | st.integers(0, len(DATA) + 10))
async def test_a_range_is_that_slice_of_the_bytes(objects: ObjectStore, start: int, length: int | None) -> None:
    if await objects.stat("song") is None:
        await objects.put("song", DATA)
    assert await content(objects, "song", start, length) == DATA[start:][:length]


async def test_the_etag_changes_whenever_the_bytes_do(objects: ObjectStore) -> None:
    etags = [(await objects.put("song", bytes([number]))).etag for number in range(50)]
    assert len(set(etags)) == 50
    info = await objects.stat("song")
    assert info is not None
    assert info.etag == etags[-1]


async def test_a_put_without_replace_stores_what_is_not_there(objects: ObjectStore) -> None:
    info = await objects.put("songs/new", DATA, replace=False)
    assert (info.key, info.size) == ("songs/new", len(DATA))
    assert await objects.stat("songs/new") == info
    assert await content(objects, "songs/new") == DATA


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
async def test_a_put_without_replace_leaves_what_is_there_and_tells_of_it(objects: ObjectStore, size: int) -> None:
    first = await objects.put("songs/old", DATA)
    assert await objects.put("songs/old", b"2" * size, replace=False) == first
    assert await objects.stat("songs/old") == first
    assert await content(objects, "songs/old") == DATA
    await objects.delete("songs")
    second = await objects.put("songs/old", b"2" * size, replace=False)
    assert (second.size, second.etag == first.etag) == (size, False)
    assert await keys(objects) == ["songs/old"]


@pytest.mark.parametrize(("writers", "size"), [(20, 1_000), (4, LARGE)], ids=["small", "large"])
async def test_of_many_puts_without_replace_one_wins_and_all_are_told_of_it(
    objects: ObjectStore, writers: int, size: int
) -> None:
    versions = [bytes([number]) * (size + number) for number in range(writers)]
    infos = await asyncio.gather(*(objects.put("songs/new", version, replace=False) for version in versions))
    (told,) = set(infos)
    assert await objects.stat("songs/new") == told
    assert await content(objects, "songs/new") == versions[told.size - size]
    assert await keys(objects) == ["songs/new"]


async def test_a_reader_sees_the_old_bytes_or_the_new_and_never_both(objects: ObjectStore) -> None:
    versions = [bytes([number]) * 150_000 for number in range(10)]
    await objects.put("song", versions[0])
    writing = asyncio.gather(*(objects.put("song", version) for version in versions))
    while not writing.done():
        assert await content(objects, "song") in versions
        info = await objects.stat("song")
        assert info is not None
        assert info.size == 150_000
    await writing
    assert await keys(objects) == ["song"]


async def test_a_reader_that_stops_early_leaves_the_object_as_it_is(objects: ObjectStore) -> None:
    await objects.put("song", DATA)
    async for chunk in objects.read("song"):
        assert DATA.startswith(chunk)
        break
    reading = asyncio.create_task(content(objects, "song"))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await content(objects, "song") == DATA


async def test_a_list_is_of_the_object_and_of_all_below_it_by_key(objects: ObjectStore) -> None:
    for key in ("b", "a/c/2", "a/c/1", "a/cd", "a/c-1"):
        await objects.put(key, b"1")
    assert await keys(objects) == sorted(["b", "a/c/2", "a/c/1", "a/cd", "a/c-1"])
    assert await keys(objects, "a/c") == ["a/c/1", "a/c/2"]
    assert await keys(objects, "a/cd") == ["a/cd"]
    assert await keys(objects, "a/x") == []


async def test_delete_removes_an_object_and_all_below_it_and_nothing_beside(objects: ObjectStore) -> None:
    for key in ("a/b/1", "a/b/c/2", "a/bc", "a/b.flac", "d"):
        await objects.put(key, b"1")
    assert await objects.delete("a/b") == 2
    assert await keys(objects) == ["a/b.flac", "a/bc", "d"]
    assert await objects.delete("a/b") == 0
    assert await objects.delete("d") == 1
    assert await objects.delete("a") == 2
    assert await keys(objects) == []


async def test_puts_and_deletes_of_one_folder_do_not_disturb_each_other(objects: ObjectStore) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(10):
            await objects.put(f"shared/{number}/song", b"1")
            assert await objects.delete(f"shared/{number}") == 1

    await asyncio.gather(*(come_and_go(number) for number in range(4)))
    assert await keys(objects) == []


@pytest.mark.parametrize(
    "key", ["/", "/etc/passwd", "..", "a/../../b", "a/..", "./a", "a//b", "a/", "a\\b", "..\\a", "a\0b", "x" * 2_000]
)
async def test_a_key_that_climbs_or_is_no_path_is_refused(objects: ObjectStore, key: str) -> None:
    await objects.put("a/b", b"1")
    for attempt in (objects.put(key, b"2"), objects.list(key), *on_one_object(objects, key)):
        with pytest.raises(ValueError, match="is no object key"):
            await attempt
    assert await keys(objects) == ["a/b"]


async def test_only_a_list_may_be_of_everything(objects: ObjectStore) -> None:
    await objects.put("a/b", b"1")
    for attempt in (objects.put("", b"2"), *on_one_object(objects, "")):
        with pytest.raises(ValueError, match="is no object key"):
            await attempt
    assert await keys(objects, "") == ["a/b"]


@pytest.mark.parametrize(("start", "length"), [(-1, None), (0, -1)])
async def test_a_negative_range_is_refused(objects: ObjectStore, start: int, length: int | None) -> None:
    await objects.put("song", b"123")
    with pytest.raises(ValueError, match="negative"):
        await content(objects, "song", start, length)
