"""Temporary files, whose faults are the machine's: never those of the dataset or training that needs them."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from domain.errors import UnavailableError

LOCK: Final = ".lock"
LEAST_FREE: Final = 50_000_000
DISK: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})


class ScratchError(UnavailableError):
    """The disk refuses, so that waiting for a server would be in vain."""


@contextmanager
def scratch(folder: Path | None) -> Iterator[None]:
    """Makes the folder, None for the system's own. Raises ScratchError in place of what a full or missing disk raises,
    here and inside.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        # A wait that took too long is an OSError too, without a number, and not the disk's fault.
        if isinstance(error, TimeoutError) and error.errno is None:
            raise
        raise _unavailable(folder, error) from error
    except sqlite3.OperationalError as error:
        # The low byte is the kind of error, the rest its variety.
        if error.sqlite_errorcode & 0xFF not in DISK:
            raise
        raise _unavailable(folder, error) from error


def check(folder: Path | None) -> None:
    """Raises ScratchError where there is no room for temporary files."""
    if folder is None:
        return
    with scratch(folder):
        free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise ScratchError(f"{folder} has {free:,} bytes left and needs {LEAST_FREE:,}. Make room there.")


def take(parent: Path) -> tuple[Path, int]:
    """A folder that no other process uses, as long as its lock is open."""
    for number in count():
        folder = parent / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := _locked(folder)) is not None:
            return folder, lock
    raise AssertionError


@contextmanager
def taken(parent: Path) -> Iterator[Path]:
    """Such a folder; `sweep` leaves it alone inside."""
    folder, lock = take(parent)
    try:
        yield folder
    finally:
        os.close(lock)


def sweep(parent: Path) -> None:
    """Empties the folders that were taken by processes which are gone."""
    for folder in parent.iterdir():
        if folder.name.isdecimal() and (lock := _locked(folder)) is not None:
            try:
                for left in folder.iterdir():
                    if left.name != LOCK:
                        shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int | None:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _unavailable(folder: Path | None, error: Exception) -> ScratchError:
    place = folder or "The system's folder for temporary files"
    return ScratchError(f"{place} cannot be written to: {error}. Make room there, or mend the folder.")
