"""Objects as files below one folder."""

import asyncio
import errno
import fcntl
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Self

from domain.errors import NotFoundError, UnavailableError
from domain.ports import SECRETS, ObjectInfo, check_key

CHUNK: Final = 64 * 1024
TEMPORARY: Final = ".put-"
STALE_SECONDS: Final = 24 * 3600.0
TRIES: Final = 20
NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class FileObjects:
    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    async def open(cls, root: str | Path) -> Self:
        """Makes the folder, and clears away what puts that never ended left in it over a day ago."""
        return cls(await asyncio.to_thread(_prepare, Path(root)))

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        return await asyncio.to_thread(self._put, key, lambda file: file.write(data), replace)

    async def put_file(self, key: str, file: BinaryIO, *, replace: bool = True) -> ObjectInfo:
        return await asyncio.to_thread(self._put, key, partial(_copy, file), replace)

    async def stat(self, key: str) -> ObjectInfo | None:
        return await asyncio.to_thread(self._stat, key)

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        # Not closed by hand: the thread of a cancelled reader may still be inside, and closes the file on its way out.
        chunks = self._chunks(key, start, sys.maxsize if length is None else length)
        while chunk := await asyncio.to_thread(next, chunks, b""):
            yield chunk

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return await asyncio.to_thread(lambda: sorted(self._infos(prefix), key=lambda info: info.key))

    async def delete(self, prefix: str) -> int:
        return await asyncio.to_thread(self._delete, prefix)

    async def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        path = self._root
        for segment in check_key(key):
            if segment.startswith(TEMPORARY):
                raise ValueError(f"{key!r} is no object key: {segment!r} cannot be a part of one.")
            path /= segment
            if path.is_symlink():
                raise ValueError(f"{key!r} is no object key: {segment!r} is a link, and links are not followed.")
        return path

    def _stat(self, key: str) -> ObjectInfo | None:
        with _refusals(key):
            return self._info(self._path(key))

    def _info(self, path: Path) -> ObjectInfo | None:
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(path.relative_to(self._root).as_posix(), status.st_size, _etag(status))

    def _put(self, key: str, write: Callable[[BinaryIO], object], replace: bool) -> ObjectInfo:
        with _refusals(key):
            path = self._path(key)
            temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            for _ in range(TRIES):
                # A delete may take the empty folder away again before there is a file in it.
                with suppress(FileNotFoundError):
                    _make_folder(path.parent)
                    file = _new(temporary, 0o600 if key.startswith(SECRETS) else 0o666)
                    break
            else:
                raise UnavailableError(f"The folder of {key!r} keeps being deleted. Try again.")
            try:
                with file:
                    write(file)
                    file.flush()
                    # The file system's own clock ticks in milliseconds, and two puts in one tick would share an etag.
                    os.utime(file.fileno(), ns=(now := time.time_ns(), now))
                    os.fsync(file.fileno())
                    status = os.fstat(file.fileno())
                if replace:
                    temporary.replace(path)
                elif there := self._link(temporary, path):
                    return there
            finally:
                temporary.unlink(missing_ok=True)
                # Nothing is left here after a failure, or when a delete came while the temporary file held the folder.
                self._prune(path.parent)
        return ObjectInfo(key, status.st_size, _etag(status))

    def _link(self, temporary: Path, path: Path) -> ObjectInfo | None:
        """Gives the file its name, or returns the object that has it. Raises FileExistsError when a folder has it."""
        for left in reversed(range(TRIES)):
            try:
                self._name(temporary, path)
            except FileExistsError:
                if there := self._info(path):
                    return there
                # An object that was deleted in between has left its name free; a folder has not.
                if not left:
                    raise
            else:
                break
        return None

    def _name(self, temporary: Path, path: Path) -> None:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # exFAT, for one, has no links. A rename would replace a file, so those who look first take turns.
            with _locked(self._root):
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
                temporary.rename(path)

    def _chunks(self, key: str, start: int, left: int) -> Iterator[bytes]:
        if start < 0 or left < 0:
            raise ValueError(f"Bytes {start}+{left} of {key!r} cannot be read: neither may be negative.")
        with _refusals(key):
            try:
                file = self._path(key).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError("object", key) from None
            with file:
                file.seek(start)
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk

    def _infos(self, prefix: str) -> Iterator[ObjectInfo]:
        with _refusals(prefix):
            for path in _files(self._path(prefix) if prefix else self._root):
                if (info := self._info(path)) is not None:
                    yield info

    def _delete(self, prefix: str) -> int:
        count = 0
        with _refusals(prefix):
            base = self._path(prefix)
            for path in _files(base):
                if self._info(path) is not None:
                    with suppress(FileNotFoundError):
                        path.unlink()
                        count += 1
            for folder, _, _ in os.walk(base, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
            self._prune(base.parent)
        return count

    def _prune(self, folder: Path) -> None:
        """Removes empty folders from this one up, and makes sure of the names in the first that stays."""
        with suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent
        _sync(folder)


def _prepare(root: Path) -> Path:
    with _refusals(str(root)):
        root.mkdir(parents=True, exist_ok=True)
        # Other processes may remove folders meanwhile, over which a walk passes and a glob stumbles.
        for folder, _, names in os.walk(root):
            for path in (Path(folder, name) for name in names if name.startswith(TEMPORARY)):
                with suppress(FileNotFoundError):
                    if path.lstat().st_mtime < time.time() - STALE_SECONDS:
                        path.unlink()
        return root.resolve()


def _new(path: Path, mode: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def _files(base: Path) -> Iterator[Path]:
    """Raises OSError where a folder cannot be read: what is in it would seem not to be there."""
    yield base
    for folder, _, names in os.walk(base, onerror=_unless_gone):
        yield from (Path(folder, name) for name in names if not name.startswith(TEMPORARY))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Among threads and processes; the lock of one that dies is let go."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{key!r} would make one name both an object and a folder of objects.") from error
    except OSError as error:
        raise UnavailableError(
            f"{key!r} was refused: {error}. See to the disk's space and rights, then repeat."
        ) from error
