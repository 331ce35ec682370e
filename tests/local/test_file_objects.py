"""What is true of the object store because it is a folder."""

import asyncio
import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from domain.errors import UnavailableError
from domain.ports import ObjectInfo
from infra.storage.file_objects import FileObjects
from tests.contract.conftest import full_disk, too_many_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


@pytest.mark.parametrize("replace", [True, False])
async def test_a_full_disk_keeps_the_old_object_and_leaves_nothing_of_the_new(root: Path, replace: bool) -> None:
    objects = await FileObjects.open(root)
    await objects.put("songs/old", b"old")
    with full_disk(100_000):
        for key in ("songs/old", "songs/new", "empty/folders/new"):
            with pytest.raises(UnavailableError, match="space"):
                await objects.put(key, b"x" * 200_000, replace=replace)
    assert files(root) == ["songs", "songs/old"]
    assert (root / "songs/old").read_bytes() == b"old"
    await objects.put("songs/new", b"x" * 200_000)


async def test_a_process_that_can_open_no_file_is_told_so_and_not_that_nothing_is_there(root: Path) -> None:
    objects = await FileObjects.open(root)
    await objects.put("songs/old", b"old")
    with too_many_files():
        for attempt in (anext(objects.read("songs/old")), objects.list(""), objects.delete("songs")):
            with pytest.raises(UnavailableError, match="Too many open files"):
                await attempt
    assert [info.key for info in await objects.list("songs")] == ["songs/old"]


async def test_a_look_at_an_object_that_the_disk_refuses_can_be_repeated(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = await FileObjects.open(root)
    await objects.put("songs/old", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", failing_disk)
        for attempt in (objects.stat("songs/old"), objects.list("songs")):
            with pytest.raises(UnavailableError, match="Input/output error"):
                await attempt
    assert await objects.stat("songs/old")


def failing_disk(path: Path) -> os.stat_result:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


async def test_a_put_without_replace_leaves_one_file(root: Path) -> None:
    objects = await FileObjects.open(root)
    for _ in range(2):
        await objects.put("songs/new", b"1", replace=False)
        assert files(root) == ["songs", "songs/new"]
        assert (root / "songs/new").stat().st_nlink == 1


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def _without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on exFAT and on some network drives."""

    def refused(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.usefixtures("_without_links")
async def test_without_hard_links_the_first_put_of_several_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [await FileObjects.open(root) for _ in range(2)]
    lexists, together = os.path.lexists, threading.Barrier(4)

    def looked(path: Path) -> bool:
        found = lexists(path)
        # All would have looked by then, were it not for the lock.
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)
        return found

    monkeypatch.setattr(os.path, "lexists", looked)
    contents = [b"1", b"22", b"333", b"4444"]
    puts = [stores[len(each) % 2].put("songs/new", each, replace=False) for each in contents]
    [info] = set(await asyncio.gather(*puts))
    assert info == await stores[0].stat("songs/new")
    assert (root / "songs/new").read_bytes() == contents[info.size - 1]
    assert files(root) == ["songs", "songs/new"]
    with pytest.raises(ValueError, match="both an object and a folder"):
        await stores[0].put("songs", b"1", replace=False)
    assert files(root) == ["songs", "songs/new"]


class VanishingObjects(FileObjects):
    """The first object that is looked at has just been deleted by another."""

    deletes = 1

    def _info(self, path: Path) -> ObjectInfo | None:
        if self.deletes:
            self.deletes -= 1
            path.unlink()
        return super()._info(path)


async def test_a_put_without_replace_is_made_when_what_was_there_is_deleted_meanwhile(root: Path) -> None:
    objects = await VanishingObjects.open(root)
    await objects.put("songs/new", b"old")
    info = await objects.put("songs/new", b"1", replace=False)
    assert (info.size, (root / "songs/new").read_bytes()) == (1, b"1")
    assert files(root) == ["songs", "songs/new"]


async def test_a_put_that_never_ended_is_swept_once_it_is_old(root: Path) -> None:
    objects = await FileObjects.open(root)
    await objects.put("songs/kept", b"1")
    old, young = root / "songs/.put-old", root / "songs/.put-young"
    for path in (old, young):
        path.write_bytes(b"half")
    days_ago = time.time() - 2 * 24 * 3600
    for path in (old, root / "songs/kept"):
        os.utime(path, (days_ago, days_ago))
    objects = await FileObjects.open(root)
    assert files(root) == ["songs", "songs/.put-young", "songs/kept"]
    assert [info.key for info in await objects.list("")] == ["songs/kept"]


async def test_a_key_cannot_name_an_unfinished_put(root: Path) -> None:
    objects = await FileObjects.open(root)
    for key in (".put-1", "a/.put-1", ".put-1/a"):
        with pytest.raises(ValueError, match="is no object key"):
            await objects.put(key, b"1")


async def test_links_are_neither_followed_nor_listed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    objects = await FileObjects.open(root)
    await objects.put("songs/mine", b"1")
    (root / "folder").symlink_to(outside)
    (root / "songs/file").symlink_to(outside / "secret")
    for key in ("folder", "folder/secret", "songs/file"):
        for attempt in (
            objects.put(key, b"2"),
            objects.stat(key),
            anext(objects.read(key)),
            objects.list(key),
            objects.delete(key),
        ):
            with pytest.raises(ValueError, match="link"):
                await attempt
    assert [info.key for info in await objects.list("")] == ["songs/mine"]
    assert await objects.delete("songs") == 1
    assert (outside / "secret").read_bytes() == b"secret"


async def test_delete_leaves_no_empty_folder(root: Path) -> None:
    objects = await FileObjects.open(root)
    for key in ("a/b/c/d/1", "a/b/c/2", "a/3"):
        await objects.put(key, b"1")
    await objects.delete("a/b/c")
    assert files(root) == ["a", "a/3"]
    await objects.delete("a/3")
    assert files(root) == []


@pytest.mark.parametrize("replace", [True, False])
async def test_one_name_is_not_both_an_object_and_a_folder(root: Path, replace: bool) -> None:
    objects = await FileObjects.open(root)
    await objects.put("a/b", b"1")
    for key in ("a", "a/b/c"):
        with pytest.raises(ValueError, match="both an object and a folder"):
            await objects.put(key, b"2", replace=replace)
    assert files(root) == ["a", "a/b"]


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((UnavailableError, ValueError), match="file"):
        await FileObjects.open(tmp_path / "file" / "objects")


async def test_other_users_cannot_read_secrets(root: Path) -> None:
    objects = await FileObjects.open(root)
    for _ in range(2):
        await objects.put("secrets/trials", b"1", replace=False)
        assert (root / "secrets/trials").stat().st_mode & 0o777 == 0o600
    await objects.put("secrets/trials", b"2")
    assert (root / "secrets/trials").stat().st_mode & 0o777 == 0o600
