"""Exports as folders, each file checked against the manifest."""

import asyncio
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from domain.dataset_card import FORMAT
from domain.datasets import DATASETS, Export
from domain.errors import ConflictError, DamagedError, NotFoundError
from domain.ports import ObjectStore, ReadStore
from workers.dataset_archive import Archive

MANIFEST: Final = "manifest.json"
CHUNK: Final = 1024 * 1024
AGAIN: Final = "Export it again."


class Manifest(Struct, frozen=True):
    format: str
    files: dict[str, str]


class BuiltDatasets:
    """What is left of a dataset, as a folder, whether or not anybody asked for an export of it."""

    def __init__(self, store: ReadStore, objects: ObjectStore) -> None:
        self._store = store
        self._objects = objects

    async def open(self, dataset_id: str, place: Path) -> Path:
        """The folder, below `place`: the same for the same dataset, until records of it are erased.

        Raises NotFoundError, ConflictError for a dataset that is not built, DamagedError where its list is gone or
        damaged, and UnavailableError also where the disk is full.
        """
        dataset = (await self._store.get(DATASETS, [dataset_id])).get(dataset_id)
        if dataset is None:
            raise NotFoundError("dataset", dataset_id)
        if dataset.built_at is None:
            raise ConflictError(f"Dataset {dataset_id} is {dataset.status}, so there is nothing in it yet.")
        kind, folder = dataset.request.kind, place / "dataset"
        export = Export(format=kind, status="requested", request_id=dataset_id, requested_at=dataset.built_at)
        with Archive(self._objects, dataset, export, place) as archive:
            await archive.write()
            await asyncio.to_thread(unpack, archive.file, folder)
        return folder


def unpack(archive: Path | BinaryIO, folder: Path) -> int:
    """How many files there are. Raises ConflictError for a folder that is not empty, and DamagedError for an archive
    that is not what its manifest says; then nothing is left in the folder's place.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is not empty. Name a folder that is not there yet.")
    unfinished = folder.with_name(f".{folder.name}.part")
    _remove(unfinished)
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = _manifest(zipped)
            for info in zipped.infolist():
                digest = _extract(zipped, info, unfinished)
                if info.filename != MANIFEST and wanted.files.get(info.filename) != digest:
                    raise DamagedError(f"{info.filename} of the archive is not what its manifest says. {AGAIN}")
            if missing := wanted.files.keys() - set(zipped.namelist()):
                raise DamagedError(f"The archive lacks {min(missing)}. {AGAIN}")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except zipfile.BadZipFile as error:
        raise DamagedError(f"The archive cannot be read: {error}. {AGAIN}") from None
    finally:
        _remove(unfinished)
    return len(wanted.files) + 1


def _manifest(zipped: zipfile.ZipFile) -> Manifest:
    try:
        found = msgspec.json.decode(zipped.read(MANIFEST), type=Manifest)
    except (KeyError, msgspec.MsgspecError) as error:
        raise DamagedError(f"The archive has no manifest that can be read: {error}. {AGAIN}") from None
    if found.format != FORMAT:
        raise DamagedError(f"The archive is of the format {found.format!r}; this version reads {FORMAT!r}. Upgrade it.")
    return found


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> str:
    """Its SHA-256. Raises DamagedError for a name that leads out of the folder."""
    parts = PurePosixPath(info.filename).parts
    if info.is_dir() or not parts or info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
        raise DamagedError(f"{info.filename!r} of the archive is no file of a dataset. {AGAIN}")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256()
    with zipped.open(info) as source, path.open("wb") as target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
