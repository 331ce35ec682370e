"""A sample's files: its master, and the other formats, made when first asked for and kept while there is room."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Final
from weakref import WeakValueDictionary

from domain.errors import DamagedError, NotFoundError, UnavailableError
from domain.events.jobs import Format
from domain.jobs import folder, renditions
from domain.ports import ObjectInfo, ObjectStore
from projections.audio import AudioSample
from workers.mastering import transcode
from workers.matching import matched

AT_ONCE: Final = 2
CHECKED: Final = 10_000
# Several processes may share the place: each looks at what is there whenever it has added this share of the limit.
SHARE: Final = 8

logger: Final = logging.getLogger(__name__)


class AudioFile:
    """`etag` changes whenever the bytes do. A file makes no room for others while anyone has it in hand."""

    def __init__(self, size: int, etag: str, source: Callable[[int, int], AsyncIterator[bytes]]) -> None:
        self.size = size
        self.etag = etag
        self._source = source

    async def read(self, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """That many bytes from an offset on, by default all."""
        async for chunk in self._source(start, self.size if length is None else length):
            yield chunk


class Renditions:
    """At most about `limit` bytes of formats other than the masters' are kept; the least recently used make room."""

    def __init__(self, objects: ObjectStore, limit: int) -> None:
        self.objects = objects
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Of its own, as every file operation waits for a thread of the common one.
        self._executor = ThreadPoolExecutor(AT_ONCE, "renditions")
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._checked: dict[str, None] = {}
        self._kept = _Kept(objects, limit)
        self.limit = limit
        self.hits = self.misses = 0

    async def get(self, sample: AudioSample, output_format: Format) -> AudioFile:
        """Raises NotFoundError when the master is gone, and DamagedError when it is not what was stored."""
        if output_format == "flac":
            return await self._master(sample)
        inside = sample.storage_path.removeprefix(folder(sample.job_id)).removesuffix("flac")
        key = f"{renditions(sample.job_id)}{inside}{output_format}"
        [file] = await self._files([sample], [key], lambda flac: [transcode(flac, output_format)])
        return file

    async def get_matched(self, one: AudioSample, other: AudioSample, name: str) -> tuple[AudioFile, AudioFile]:
        """The two sides of a blind trial, kept under a name that nobody can guess, each beside its own job's formats.

        Raises as `get` does.
        """
        keys = [f"{renditions(sample.job_id)}/{name}.wav" for sample in (one, other)]
        first, second = await self._files([one, other], keys, matched)
        return first, second

    async def _files(
        self, samples: Sequence[AudioSample], keys: Sequence[str], make: Callable[..., Sequence[bytes]]
    ) -> list[AudioFile]:
        """What `make` makes of the samples' masters, under those keys."""
        async with self._locks.setdefault(keys[0], asyncio.Lock()):
            stored = [info for key in keys if (info := await self.objects.stat(key))]
            if len(stored) == len(keys):
                self.hits += 1
                return [self._kept.use(info) for info in stored]
            self.misses += 1
            async with self._turns:
                masters = [await self._bytes(sample) for sample in samples]
                made = await asyncio.get_running_loop().run_in_executor(self._executor, make, *masters)
            return [await self._keep(*each) for each in zip(samples, keys, made, strict=True)]

    @property
    def known_bytes(self) -> int:
        """Of what this process knows to be kept."""
        return self._kept.bytes

    async def _keep(self, sample: AudioSample, key: str, made: bytes) -> AudioFile:
        try:
            # Another process may have made it meanwhile, with other bytes, and a client may have begun to load those.
            stored = await self.objects.put(key, made, replace=False)
        except UnavailableError as error:
            logger.warning("A rendition is sent without being kept: %s", error)
            return _unkept(made)
        if await self.objects.stat(sample.storage_path) is None:
            # The job was cancelled or purged meanwhile, and nobody will look into its folder again.
            await self.objects.delete(key)
            raise NotFoundError("audio file", sample.storage_path)
        return await self._kept.add(stored)

    async def _master(self, sample: AudioSample) -> AudioFile:
        stored = await self.objects.stat(sample.storage_path)
        if stored is None:
            raise NotFoundError("audio file", sample.storage_path)
        if stored.etag not in self._checked:
            await self._check(sample)
            self._checked[stored.etag] = None
            if len(self._checked) > CHECKED:
                del self._checked[next(iter(self._checked))]
        return AudioFile(stored.size, sample.sha256, partial(self.objects.read, stored.key))

    async def _bytes(self, sample: AudioSample) -> bytes:
        chunks: list[bytes] = []
        await self._check(sample, chunks.append)
        return b"".join(chunks)

    async def _check(self, sample: AudioSample, keep: Callable[[bytes], None] = lambda _: None) -> None:
        """Without a long file in memory, unless somebody keeps its chunks."""
        size, digest = 0, sha256()
        try:
            async for chunk in self.objects.read(sample.storage_path):
                size += len(chunk)
                digest.update(chunk)
                keep(chunk)
        except NotFoundError:
            raise NotFoundError("audio file", sample.storage_path) from None
        if (size, digest.hexdigest()) != (sample.size, sample.sha256):
            raise DamagedError(
                f"The audio file {sample.storage_path!r} is damaged: it has {size:,} bytes, and {sample.size:,} "
                f"with the SHA-256 {sample.sha256} were stored. Put a sound copy in its place, or make the sample "
                f"again with seed {sample.generation_params.seed}."
            )


class _Kept:
    """What is kept of renditions, the least recently used first."""

    def __init__(self, objects: ObjectStore, limit: int) -> None:
        self._objects = objects
        self._limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._in_hand: WeakValueDictionary[str, AudioFile] = WeakValueDictionary()
        self._unseen = limit
        self._evicting = asyncio.Lock()

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def use(self, info: ObjectInfo) -> AudioFile:
        self._sizes[info.key] = info.size
        self._sizes.move_to_end(info.key)
        file = self._in_hand.get(info.key)
        if file is None or file.etag != info.etag:
            file = self._in_hand[info.key] = AudioFile(info.size, info.etag, partial(self._objects.read, info.key))
        return file

    async def add(self, info: ObjectInfo) -> AudioFile:
        file = self.use(info)
        self._unseen += info.size
        async with self._evicting:
            if self._unseen * SHARE > self._limit:
                self._unseen = 0
                there = {info.key: info.size for info in await self._objects.list(renditions("").rstrip("/"))}
                known = {key: there[key] for key in self._sizes if key in there}
                self._sizes = OrderedDict({key: size for key, size in there.items() if key not in known} | known)
            for oldest in [key for key in self._sizes if key not in self._in_hand]:
                if self.bytes <= self._limit:
                    break
                if oldest not in self._in_hand:
                    await self._objects.delete(oldest)
                    self._sizes.pop(oldest, None)
        return file


def _unkept(made: bytes) -> AudioFile:
    async def read(start: int, length: int) -> AsyncIterator[bytes]:
        yield made[start : start + length]

    return AudioFile(len(made), sha256(made).hexdigest(), read)
