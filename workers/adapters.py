"""Adapters' files on a worker's own disk: fetched once, checked, and given up when others need the room."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from functools import partial
from hashlib import file_digest
from itertools import count
from pathlib import Path
from typing import Final

from domain.errors import DamagedError, NotFoundError
from domain.events.adapters import AdapterFile
from domain.events.jobs import AdapterSnapshot
from domain.journal import until_done
from domain.lora import CONFIG, MAX_CONFIG, MAX_PREFERENCE, MAX_WEIGHTS, PREFERENCE, WEIGHTS
from domain.ports import ObjectStore
from workers.adapter_files import listing_digest
from workers.scratch import LOCK, check, scratch, take

LIMIT: Final = 4 * MAX_WEIGHTS
FILES: Final = {CONFIG: MAX_CONFIG, WEIGHTS: MAX_WEIGHTS}
# The adapter's own SHA-256 says whether it has them.
OPTIONAL: Final = dict.fromkeys(PREFERENCE, MAX_PREFERENCE)
WHO: Final = "The cache of adapters"
UNFINISHED: Final = ".part"


class AdapterFiles:
    """Folders of adapters by their SHA-256, about `limit` bytes together; the least recently used make room."""

    def __init__(self, objects: ObjectStore, parent: Path, limit: int = LIMIT) -> None:
        """Each process has a folder of its own below `parent`, and a later start finds again what is in it."""
        self._objects = objects
        self._parent = parent
        self._limit = limit
        self._folder: Path | None = None
        self._lock: int | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._checked: set[str] = set()
        self._users: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._opening = asyncio.Lock()
        self._numbers = count()

    @contextlib.asynccontextmanager
    async def use(self, adapter: AdapterSnapshot) -> AsyncIterator[Path]:
        """The adapter's folder, which stays as long as it is used. Waits out outages of the object store.

        Raises NotFoundError for a file that is gone, DamagedError for files that are not those registered, and
        UnavailableError where the disk refuses.
        """
        digest = adapter.sha256
        if digest is None:
            raise DamagedError("it was asked for without a SHA-256, so its files cannot be checked")
        self._users[digest] = self._users.get(digest, 0) + 1
        try:
            async with self._opening:
                with scratch(None):
                    folder = await asyncio.to_thread(self._open)
            with scratch(folder):
                async with self._turns.setdefault(digest, asyncio.Lock()):
                    if digest not in self._checked:
                        self._sizes[digest] = await self._fetch(adapter.storage_path, folder / digest)
                        self._checked.add(digest)
                    self._sizes.move_to_end(digest)
                await self._make_room(folder)
            yield folder / digest
        finally:
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]
                self._turns.pop(digest, None)

    def check(self) -> None:
        """Raises UnavailableError where its disk has no room."""
        check(self._folder)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> Path:
        if self._folder is None:
            try:
                self._folder, self._lock = take(self._parent)
            except OSError:
                self._folder, self._lock = take(Path(tempfile.mkdtemp(prefix="text2song-adapters-")))
            there = [path for path in self._folder.iterdir() if path.name != LOCK]
            for path in sorted(there, key=lambda path: path.stat().st_mtime):
                if path.name.endswith(UNFINISHED) or not path.is_dir():
                    _remove(path)
                else:
                    self._sizes[path.name] = sum(file.stat().st_size for file in path.iterdir())
        return self._folder

    async def _fetch(self, source: str, path: Path) -> int:
        """The size of the files once they are at the path, which has their SHA-256 as its name."""
        # One that the disk does not give back is fetched anew.
        with contextlib.suppress(OSError):
            if (size := await asyncio.to_thread(_size, path, path.name)) is not None:
                return size
        part = path.with_name(path.name + UNFINISHED)
        try:
            await until_done(partial(self._copy, source, part), WHO)
            if (size := await asyncio.to_thread(_size, part, path.name)) is None:
                await until_done(partial(self._copy_optional, source, part), WHO)
                size = await asyncio.to_thread(_size, part, path.name)
            if size is None:
                raise DamagedError(
                    f"its files below {source!r} are damaged: their SHA-256 is not {path.name}. "
                    "Put sound copies in their place"
                )
            await asyncio.to_thread(_name, part, path)
        finally:
            await asyncio.to_thread(_remove, part)
        return size

    async def _copy(self, source: str, part: Path) -> None:
        await asyncio.to_thread(part.mkdir, exist_ok=True)
        for name, limit in FILES.items():
            await self._copy_file(f"{source}/{name}", part / name, limit)

    async def _copy_optional(self, source: str, part: Path) -> None:
        for name, limit in OPTIONAL.items():
            try:
                await self._copy_file(f"{source}/{name}", part / name, limit)
            except NotFoundError:
                await asyncio.to_thread((part / name).unlink, missing_ok=True)

    async def _copy_file(self, key: str, path: Path, limit: int) -> None:
        size = 0
        with await asyncio.to_thread(path.open, "wb") as file:
            async for chunk in self._objects.read(key):
                size += len(chunk)
                if size > limit:
                    raise DamagedError(f"{key} has more bytes than the limit of {limit:,}")
                await asyncio.to_thread(file.write, chunk)

    async def _make_room(self, folder: Path) -> None:
        for digest in [digest for digest in self._sizes if digest not in self._users]:
            if sum(self._sizes.values()) <= self._limit:
                break
            # Somebody may have begun to use it, or removed it, while another one was being removed.
            if digest in self._users or digest not in self._sizes:
                continue
            del self._sizes[digest]
            self._checked.discard(digest)
            # It gives up its name at once, so that nobody begins to use it while it goes.
            gone = folder / f"{digest}.{next(self._numbers)}{UNFINISHED}"
            with contextlib.suppress(FileNotFoundError):
                (folder / digest).rename(gone)
            await asyncio.to_thread(_remove, gone)


def _size(folder: Path, digest: str) -> int | None:
    """Of all files together, None unless they are there and have that digest. Raises OSError where the disk refuses."""
    files = []
    for name in (*FILES, *OPTIONAL):
        try:
            with (folder / name).open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
                files.append(AdapterFile(name=name, size=file.tell(), sha256=found))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if name in FILES:
                return None
    return sum(file.size for file in files) if listing_digest(files) == digest else None


def _name(part: Path, path: Path) -> None:
    _remove(path)
    part.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
