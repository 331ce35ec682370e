"""Exports of datasets out of the object store, unpacked for training."""

import asyncio
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from domain.errors import DamagedError, NotFoundError
from domain.ports import ObjectStore

MOST_FILES: Final = 1_000_000
MOST_BYTES: Final = 100_000_000_000


class StoredDatasets:
    """Takes the newest zip below `datasets/{dataset_id}`."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def open(self, dataset_id: str, place: Path) -> Path:
        """The unpacked folder, below `place`. Raises NotFoundError, and DamagedError for what is no sound zip."""
        stored = [each for each in await self._objects.list(f"datasets/{dataset_id}") if each.key.endswith(".zip")]
        if not stored:
            raise NotFoundError("export of the dataset", dataset_id)
        packed, folder = place / "dataset.zip", place / "dataset"
        with await asyncio.to_thread(packed.open, "wb") as file:
            async for chunk in self._objects.read(stored[-1].key):
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(unpack, packed, folder)
        packed.unlink()
        return folder


def unpack(packed: Path, folder: Path) -> None:
    """Raises DamagedError for what is no sound zip, or would leave the folder or fill the disk."""
    try:
        with zipfile.ZipFile(packed) as archive:
            found = archive.infolist()
            if len(found) > MOST_FILES or sum(each.file_size for each in found) > MOST_BYTES:
                raise DamagedError("The dataset's zip has too much in it. Export the dataset again.")
            for each in found:
                path = PurePosixPath(each.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in each.filename:
                    raise DamagedError(f"The dataset's zip has {each.filename[:80]!r}, which leads out of its folder.")
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise DamagedError(f"The dataset's zip cannot be unpacked: {error}. Export the dataset again.") from error
