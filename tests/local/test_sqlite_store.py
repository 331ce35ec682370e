"""What is true of the read store because it is an SQLite file."""

import itertools
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import Struct

from domain.errors import UnavailableError
from domain.ports import Query, View
from infra.storage import sqlite, sqlite_store
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from tests.contract.conftest import full_disk


class Song(Struct, frozen=True):
    id: str
    position: int = 1
    created_at: str = "2026-01-01"
    genre: str = "rock"
    text: str = ""


class LongerSong(Song, frozen=True):
    length: float = 0.0


def view(name: str = "songs", document: type[Song] = Song, filters: tuple[str, ...] = ("genre", "text")) -> View[Any]:
    return View(name, document, lambda song: {"genre": song.genre, "text": song.text}, filters)


SONGS = view()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def filled(path: Path) -> None:
    store = await SqliteStore.open(path, [SONGS])
    await store.save([(SONGS, Song("a"))], {("jobs", 0): 5})
    await store.close()


def overwrite(path: Path, offset: int, damage: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(damage)


@pytest.mark.parametrize("equal", [{}, {"genre": "rock"}, {"text": "x"}, {"genre": "rock", "text": "x"}])
async def test_every_list_walks_an_index(path: Path, equal: dict[str, str]) -> None:
    store = await SqliteStore.open(path, [SONGS])
    await store.save([(SONGS, Song(f"{number}")) for number in range(100)], {})
    connection = apsw.Connection(str(path))
    afters, hidden = (None, ("2026", "5")), (False, True)
    for start, end, after, hide in itertools.product((None, "2025"), (None, "2027"), afters, hidden):
        query = Query(equal=equal, start=start, end=end, after=after, hidden=hide, offset=2)
        sql, values = store._tables["songs"].listing(query)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert len(plan) == 1
        assert "USING INDEX list_songs_" in plan[0]
        assert plan[0].startswith("SEARCH")
    connection.close()
    await store.close()


@pytest.mark.parametrize(
    "views",
    [[], [view("tunes")], [SONGS, view("tunes")], [view(filters=("genre",))], [view(document=LongerSong)]],
    ids=["none", "another", "one more", "fewer filters", "another document"],
)
async def test_a_file_of_other_views_starts_again_from_nothing(path: Path, views: list[View[Any]]) -> None:
    await filled(path)
    store = await SqliteStore.open(path, views)
    assert await store.watermarks() == {}
    for each in views:
        assert [document async for document in store.scan(each)] == []
    await store.close()


async def test_a_file_of_another_schema_version_starts_again_from_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path)
    monkeypatch.setattr(sqlite_store, "SCHEMA", sqlite_store.SCHEMA + 1)
    store = await SqliteStore.open(path, [SONGS])
    assert await store.watermarks() == {}
    assert await store.get(SONGS, ["a"]) == {}
    await store.close()


async def test_a_damaged_file_is_replaced_and_said_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for offset, damage in ((0, b"no database " * 500), (100, b"\xff" * 3_000), (3 * 4096, b"\xff" * 4096)):
        await filled(path)
        overwrite(path, offset, damage)
        store = await SqliteStore.open(path, [SONGS])
        assert await store.watermarks() == {}
        await store.save([(SONGS, Song("a"))], {("jobs", 0): 5})
        await store.close()
        assert "damaged" in caplog.text
        caplog.clear()


async def test_others_may_write_while_a_file_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(connection: apsw.Connection) -> None:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        sqlite.check(connection)
        other.execute("COMMIT")
        other.close()

    await filled(path)
    monkeypatch.setattr(sqlite_store, "check", check)
    store = await SqliteStore.open(path, [SONGS])
    assert await store.watermarks() == {("jobs", 0): 5}
    await store.close()


async def test_an_event_log_is_never_emptied(path: Path) -> None:
    await (await SqliteLog.open(path)).close()
    with pytest.raises(UnavailableError, match="another kind"):
        await SqliteStore.open(path, [SONGS])
    await (await SqliteLog.open(path)).close()


async def test_a_database_of_someone_else_is_never_emptied(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(UnavailableError, match="another kind"):
        await SqliteStore.open(path, [SONGS])


async def test_reads_do_not_wait_for_a_writer(path: Path) -> None:
    await filled(path)
    store = await SqliteStore.open(path, [SONGS])
    writer = apsw.Connection(str(path))
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM view_songs")
    assert await store.find(SONGS, Query()) == [Song("a")]
    writer.execute("ROLLBACK")
    writer.close()
    await store.close()


async def test_a_full_disk_saves_nothing_and_goes_on_when_it_has_space(path: Path) -> None:
    store = await SqliteStore.open(path, [SONGS])
    large = [(SONGS, Song(f"{number}", text="x" * 10_000)) for number in range(100)]
    with full_disk(300_000), pytest.raises(UnavailableError, match="nothing was"):
        await store.save(large, {("jobs", 0): 100})
    assert await store.watermarks() == {}
    assert await store.count(SONGS, Query()) == 0
    await store.save(large, {("jobs", 0): 100})
    assert await store.count(SONGS, Query()) == 100
    await store.close()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="folder"):
        await SqliteStore.open(tmp_path / "file" / "store.sqlite", [SONGS])


async def test_close_leaves_one_file_and_no_thread(path: Path) -> None:
    await filled(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(path.name)]
    store = await SqliteStore.open(path, [SONGS])
    await store.close()
    await store.close()
    with pytest.raises(UnavailableError, match="closed"):
        await store.find(SONGS, Query())
    with pytest.raises(UnavailableError, match="closed"):
        await store.save([], {})
