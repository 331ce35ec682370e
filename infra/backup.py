"""A copy of a studio's data folder, taken while the studio runs, and the way back.

It holds the event log, the audio, the adapters, the datasets and the samples of trainings that the log's events speak
of, the melodies that were uploaded, and the secret of blind trials: without that, trials would be shuffled anew. Views
and other formats are made anew.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw
import msgspec
from msgspec import Struct

from domain.adapters import ADAPTERS, Adapter
from domain.aggregates import AGGREGATES
from domain.datasets import DATASETS, Dataset
from domain.envelope import decode
from domain.errors import ConflictError, NotFoundError, UnavailableError
from domain.jobs import JOBS, Job, waveform
from domain.melodies import FOLDER as MELODIES
from domain.ports import SECRETS, check_key
from domain.trainings import TRAININGS, Training, sample_path
from infra.storage.sqlite import advise, connect
from infra.storage.sqlite_log import SqliteLog

EVENTS: Final = "events.db"
OBJECTS: Final = "objects"
# Written last: without it a backup is unfinished.
MARK: Final = "backup.json"
UNFINISHED: Final = ".unfinished"

Progress: TypeAlias = Callable[[int, int], object]


class Mark(Struct, frozen=True, kw_only=True):
    made_at: str
    events_sha256: str


class Kept(Struct, frozen=True):
    """What some files belong to. `files` are the keys, with the SHA-256 where the events tell it. The one of `changing`
    is replaced while the studio runs.
    """

    owner: str
    files: Mapping[str, str | None]
    changing: str | None = None


class Report(Struct, frozen=True, kw_only=True):
    """When the backup was made, how many samples it speaks of, and a sentence for each file that is not in it."""

    made_at: str
    samples: int
    faults: list[str]


def back_up(data: Path, target: Path, now: str, progress: Progress) -> Report:
    """Copies the studio of the folder `data`. Where both folders are on one file system, files are linked.

    `progress` is called with the number of samples that are done, and of all. Raises NotFoundError where there is no
    studio, ConflictError for a target that is not empty, and UnavailableError where the disk refuses.
    """
    if not (data / EVENTS).is_file():
        raise NotFoundError("studio in the folder", str(data))
    with _refusals(target):
        _begin(target, "Back up into an empty folder; delete what an interrupted backup left.")
        known: set[str] = set()
        while True:
            _copy_events(data / EVENTS, target / EVENTS)
            found = asyncio.run(_found(target / EVENTS))
            faults = _copy_files(found, data / OBJECTS, target / OBJECTS, progress, is_checked=False)
            for key in _unlogged(data / OBJECTS):
                _link(data / OBJECTS, target / OBJECTS, key)
            # A later copy of the events knows why audio was deleted, or a dataset's list replaced, in between.
            if known.issuperset(faults):
                break
            known.update(faults)
        _finish(target, found, now)
    return Report(made_at=now, samples=_samples(found), faults=faults)


def restore(source: Path, data: Path, progress: Progress) -> Report:
    """Puts a backup into the folder `data`. Audio that has not the SHA-256 of its event is left out.

    `progress` is called as by `back_up`. Raises NotFoundError for a folder without a finished backup, ConflictError
    for a data folder that is not empty and for damaged events, and UnavailableError where the disk refuses.
    """
    mark = _mark(source)
    unfinished = data / f"{EVENTS}{UNFINISHED}"
    with _refusals(data):
        _begin(data, "Restore into an empty folder: name another with --data, or empty it.")
        shutil.copyfile(source / EVENTS, unfinished)
        if _sha256(unfinished) != mark.events_sha256:
            unfinished.unlink()
            raise ConflictError(f"{source / EVENTS} is damaged: its SHA-256 is not that of {MARK}. Use another backup.")
        found = asyncio.run(_found(unfinished))
        faults = _copy_files(found, source / OBJECTS, data / OBJECTS, progress, is_checked=True)
        for key in _unlogged(source / OBJECTS):
            _link(source / OBJECTS, data / OBJECTS, key)
        # Last: a studio that is started too early must not find events without their audio.
        _put(unfinished, data / EVENTS)
    return Report(made_at=mark.made_at, samples=_samples(found), faults=faults)


async def _found(events: Path) -> list[Kept]:
    """The samples that a listener may have, the adapters, the lists and exports of datasets, and what trainings have
    changed, to be heard.
    """
    log = await SqliteLog.open(events)
    try:
        jobs: list[Job] = await _folded(log, JOBS.name)
        adapters: list[Adapter] = await _folded(log, ADAPTERS.name)
        datasets: list[Dataset] = await _folded(log, DATASETS.name)
        trainings: list[Training] = await _folded(log, TRAININGS.name)
    finally:
        await log.close()
    samples = [sample.event for job in jobs for sample in job.audible]
    return [
        *(
            Kept(f"sample {each.sample_id}", {each.storage_path: each.sha256, waveform(each.storage_path): None})
            for each in samples
        ),
        *(
            Kept(
                f"adapter {adapter.request.adapter_name} {adapter.request.adapter_version}",
                {f"{adapter.request.storage_path}/{file.name}": file.sha256 for file in adapter.request.files},
            )
            for adapter in adapters
        ),
        *(
            Kept(f"dataset {dataset.id}", _files(dataset), dataset.built.items)
            for dataset in datasets
            if dataset.built is not None
        ),
        *(Kept(f"training {training.id}", _heard(training)) for training in trainings if training.samples),
    ]


def _files(dataset: Dataset) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    if dataset.built is not None:
        # What was erased from it is in no backup either.
        found[dataset.built.items] = None if dataset.erasures else dataset.built.digest
    for export in dataset.exports:
        if export.made is not None and export.status == "exported":
            found[export.made.archive] = export.made.sha256
    return found


def _heard(training: Training) -> dict[str, str | None]:
    files = [file for sample in training.samples for file in (sample.before, sample.after)]
    return {sample_path(training.id, training.attempt, file.sha256): file.sha256 for file in files}


async def _folded(log: SqliteLog, topic: str) -> list[Any]:
    found: dict[str, Any] = {}
    for partition in await log.ends(topic):
        offset = 0
        while page := await log.read(topic, partition, offset):
            offset = page[-1].position.offset + 1
            for record in page:
                if state := AGGREGATES[topic].apply(found.get(record.key), decode(record)):
                    found[record.key] = state
    return list(found.values())


def _samples(found: Sequence[Kept]) -> int:
    return sum(kept.owner.startswith("sample ") for kept in found)


def _begin(folder: Path, advice: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConflictError(f"{folder} is not empty. {advice}")


def _copy_events(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        connection = connect(source)
        try:
            connection.execute("VACUUM INTO ?", (str(target),))
        finally:
            connection.close()
    except apsw.Error as error:
        raise UnavailableError(f"The event log cannot be copied: {advise(source, error)}") from error


def _copy_files(
    found: Sequence[Kept], source: Path, target: Path, progress: Progress, *, is_checked: bool
) -> list[str]:
    """A sentence for each file that is not there or, of those that are checked, damaged. A file that can change is
    always checked, and copied anew.
    """
    faults = []
    for done, kept in enumerate(found, 1):
        for key, sha256 in kept.files.items():
            is_changing = key == kept.changing
            if not _link(source, target, key, is_anew=is_changing):
                faults.append(f"A file of {kept.owner} is missing: {key}.")
            elif sha256 is not None and (is_checked or is_changing) and _sha256(target / key) != sha256:
                (target / key).unlink()
                faults.append(f"A file of {kept.owner} is damaged and was left out: {key}.")
        progress(done, len(found))
    return faults


def _link(source: Path, target: Path, key: str, *, is_anew: bool = False) -> bool:
    """Whether the object is there, and now in the target as well, `is_anew` in place of an earlier one. A file is never
    changed, at most replaced, so a link is a copy.
    """
    try:
        check_key(key)
    except ValueError:
        return False
    if not (source / key).exists():
        return False
    path = target / key
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_anew:
        path.unlink(missing_ok=True)
    try:
        os.link(source / key, path)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        try:
            shutil.copy(source / key, path)  # with its rights: other users cannot read a secret
        except FileNotFoundError:
            return False
    return True


def _unlogged(objects: Path) -> list[str]:
    """The keys of those that are there; what is being written has a name with a dot in front."""
    places = (objects / SECRETS, objects / MELODIES)
    found = (path for place in places for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [path.relative_to(objects).as_posix() for path in found]


def _finish(target: Path, found: Sequence[Kept], now: str) -> None:
    wanted = {target / OBJECTS / key for kept in found for key in kept.files} | {
        target / OBJECTS / key for key in _unlogged(target / OBJECTS)
    }
    for path in (target / OBJECTS).rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    mark = Mark(made_at=now, events_sha256=_sha256(target / EVENTS))
    unfinished = target / f"{MARK}{UNFINISHED}"
    unfinished.write_bytes(msgspec.json.encode(mark))
    _put(unfinished, target / MARK)


def _put(unfinished: Path, path: Path) -> None:
    """Gives the file its name when it, and all that was written before it, is on the disk."""
    os.sync()
    unfinished.replace(path)
    os.sync()


def _mark(source: Path) -> Mark:
    try:
        return msgspec.json.decode((source / MARK).read_bytes(), type=Mark)
    except (OSError, msgspec.MsgspecError):
        raise NotFoundError("finished backup in the folder", str(source)) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"Copying to {folder} failed: {error}. See to the disk's space and rights.") from error
