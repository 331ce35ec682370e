"""An export on this machine: unpacked into a folder, each file checked against the manifest."""

import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec
from msgspec import Struct

from domain.dataset_card import FORMAT
from infra.cli.client import ClientError

MANIFEST: Final = "manifest.json"
CHUNK: Final = 1024 * 1024
AGAIN: Final = "Export it again."


class Manifest(Struct, frozen=True):
    format: str
    files: dict[str, str]


def unpack(archive: Path, folder: Path) -> int:
    """How many files there are. Raises ClientError for a folder that is not empty, and for an archive that is not what
    its manifest says; then nothing is left in the folder's place.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClientError(f"{folder} is not empty. Name a folder that is not there yet.")
    unfinished = folder.with_name(f".{folder.name}.part")
    _remove(unfinished)
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = _manifest(zipped)
            for info in zipped.infolist():
                digest = _extract(zipped, info, unfinished)
                if info.filename != MANIFEST and wanted.files.get(info.filename) != digest:
                    raise ClientError(f"{info.filename} of the archive is not what its manifest says. {AGAIN}")
            if missing := wanted.files.keys() - set(zipped.namelist()):
                raise ClientError(f"The archive lacks {min(missing)}. {AGAIN}")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except zipfile.BadZipFile as error:
        raise ClientError(f"The archive cannot be read: {error}. {AGAIN}") from None
    finally:
        _remove(unfinished)
    return len(wanted.files) + 1


def _manifest(zipped: zipfile.ZipFile) -> Manifest:
    try:
        found = msgspec.json.decode(zipped.read(MANIFEST), type=Manifest)
    except (KeyError, msgspec.MsgspecError) as error:
        raise ClientError(f"The archive has no manifest that can be read: {error}. {AGAIN}") from None
    if found.format != FORMAT:
        raise ClientError(f"The archive is of the format {found.format!r}; this version reads {FORMAT!r}. Upgrade it.")
    return found


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> str:
    """Its SHA-256. Raises ClientError for a name that leads out of the folder."""
    parts = PurePosixPath(info.filename).parts
    if info.is_dir() or not parts or info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
        raise ClientError(f"{info.filename!r} of the archive is no file of a dataset. {AGAIN}")
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
