"""SQLite files as the event log and the read store share them: connections, transactions, erasing, errors."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeVar

import apsw

from domain.errors import UnavailableError

T = TypeVar("T")

BUSY_SECONDS: Final = 5
TRUNCATE_SECONDS: Final = 0.05
# Whoever writes waits for each checkpoint, and many pages change again and again.
CHECKPOINT_PAGES: Final = 4_000
DAMAGED: Final = (apsw.NotADBError, apsw.CorruptError)

logger: Final = logging.getLogger(__name__)


class Readers:
    """A few threads, each job of which has a read-only connection; a broken one is replaced."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self._path = path
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, f"{path.name} reader")
        self._connections: SimpleQueue[apsw.Connection | None] = SimpleQueue()
        for _ in range(threads):
            self._connections.put(None)
        self._closed = False

    async def run(self, job: Callable[[apsw.Connection], T]) -> T:
        """`job` may run twice. Raises UnavailableError when a fresh connection fails too."""
        if self._closed:
            raise UnavailableError(f"{self._path} is closed.")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._retry, job)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown)
        while not self._connections.empty():
            if (connection := self._connections.get()) is not None:
                connection.close()

    def _retry(self, job: Callable[[apsw.Connection], T]) -> T:
        try:
            return self._once(job)
        except apsw.Error:
            pass
        try:
            return self._once(job)
        except apsw.Error as error:
            raise UnavailableError(f"Reading failed: {advise(self._path, error)}") from error

    def _once(self, job: Callable[[apsw.Connection], T]) -> T:
        connection = self._connections.get()
        try:
            connection = connection or connect(self._path)
            return job(connection)
        except BaseException:
            connection = None
            raise
        finally:
            self._connections.put(connection)


def connect(path: Path, flags: int = apsw.SQLITE_OPEN_READONLY) -> apsw.Connection:
    """Waits up to five seconds for the locks of others."""
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_handler(_wait_for_lock)
    return connection


def _wait_for_lock(tries: int, seconds: float = BUSY_SECONDS) -> bool:
    # SQLite's own busy timeout, as apsw builds it, lets two threads of a process wait out its whole length.
    time.sleep(0.001)
    return tries < seconds * 1000


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(apsw.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def write_ahead(connection: apsw.Connection) -> None:
    """Changes the journal, which SQLite refuses at once, without waiting, when two connections begin it together."""
    for tries in itertools.count():
        try:
            connection.pragma("journal_mode", "WAL")
        except apsw.BusyError:
            if not _wait_for_lock(tries):
                raise
        else:
            return


def truncate_wal(connection: apsw.Connection) -> bool:
    """Deleted bytes live on in the write-ahead log until then; false while somebody else uses it."""
    # It keeps others from writing while it waits, and a backup reads for minutes.
    connection.set_busy_handler(lambda tries: _wait_for_lock(tries, TRUNCATE_SECONDS))
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.Error as error:
        logger.info("What was erased may still be in %s-wal; trying again soon: %s", connection.filename, error)
        return False
    finally:
        connection.set_busy_handler(_wait_for_lock)
    return True


def is_new(connection: apsw.Connection, application_id: int) -> bool:
    """Marks an empty database as ours. Raises UnavailableError for one that is anything else."""
    found = connection.pragma("application_id")
    if found == application_id:
        return False
    if found or connection.execute("SELECT count(*) FROM sqlite_schema").get:
        raise UnavailableError(
            f"{connection.filename} is a database of another kind (application id {found:#x}); it was left as it is. "
            "Choose another path."
        )
    connection.pragma("application_id", application_id)
    return True


def check(connection: apsw.Connection, pragma: str = "quick_check") -> None:
    """Raises apsw.CorruptError for damage anywhere in the file; `integrity_check` looks at its indexes as well."""
    if (found := connection.execute(f"PRAGMA {pragma}(1)").get) != "ok":
        raise apsw.CorruptError(found)


def opened_or_anew(path: Path, create: Callable[[], apsw.Connection], warning: str) -> apsw.Connection:
    """What `create` opens; of a damaged file, which may be lost, what it makes in its place. `warning` takes the path.

    Raises as `create` does.
    """
    try:
        return create()
    except DAMAGED:
        logger.warning(warning, path)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return create()


def advise(path: Path, error: Exception) -> str:
    match error:
        case apsw.FullError():
            advice = "The disk is full: free some space"
        case apsw.BusyError() | apsw.LockedError():
            advice = f"Another process has held its lock for {BUSY_SECONDS} seconds: try again"
        case apsw.NotADBError() | apsw.CorruptError():
            advice = "It is damaged, or no SQLite database at all: put a sound copy in its place"
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError() | OSError():
            advice = "See that its folder exists and that this user may write there"
        case apsw.IOError():
            advice = "The disk refused: look at its health and free space"
        case _:
            advice = "Try again"
    return f"{path}: {error}. {advice}."
