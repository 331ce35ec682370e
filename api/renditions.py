"""The formats a master is offered in, made when first asked for and kept beside it."""

import asyncio
from weakref import WeakValueDictionary

from domain.errors import NotFoundError
from domain.events import Format
from domain.ports import ObjectInfo, ObjectStore
from workers.audio import transcode


class Renditions:
    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, master: str, output_format: Format) -> ObjectInfo:
        """Where the master at that key is stored as `output_format`. Raises NotFoundError when the master is gone."""
        key = f"{master.removesuffix('flac')}{output_format}"
        async with self._locks.setdefault(key, asyncio.Lock()):
            if stored := await self._objects.stat(key):
                return stored
            if output_format == "flac":
                raise NotFoundError("audio file", key)
            flac = b"".join([chunk async for chunk in self._objects.read(master)])
            made = await asyncio.to_thread(transcode, flac, output_format)
            # Another process may have made it meanwhile, with other bytes, and a client may have begun to load those.
            stored = await self._objects.put(key, made, replace=False)
            if await self._objects.stat(master) is None:
                # The job was cancelled meanwhile, and nobody will look into its folder again.
                await self._objects.delete(key)
                raise NotFoundError("audio file", key)
            return stored
