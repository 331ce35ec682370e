"""Numbers that processes count together."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import uuid4

import apsw
import pymongo
import pytest

from domain.errors import UnavailableError
from domain.ports import Counters
from infra.storage.mongo_counters import MongoCounters
from infra.storage.sqlite_counters import SqliteCounters
from infra.storage.sqlite_store import SqliteStore
from tests.servers import servers

Opening: TypeAlias = Callable[[], Awaitable[Counters]]
LATER: Final = 3_600.0


@pytest.fixture(params=["sqlite", "mongo"])
async def opening(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opening]:
    """Each call is one more process's."""
    opened: list[Counters] = []
    database = f"test-{uuid4().hex}"
    is_mongo = request.param == "mongo"
    uri = servers().addresses.mongo if is_mongo else ""

    async def open_counters() -> Counters:
        found: Counters = (
            await MongoCounters.open(uri, database) if is_mongo else await SqliteCounters.open(tmp_path / "c.db")
        )
        opened.append(found)
        return found

    yield open_counters
    for each in opened:
        await each.close()
    if is_mongo:
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            client.drop_database(database)


async def test_what_processes_add_at_once_is_one_sum(opening: Opening) -> None:
    first, second = await opening(), await opening()
    until = time.time() + LATER
    sums = await asyncio.gather(*(each.add("x", 2, until) for each in (first, second) for _ in range(20)))
    assert sorted(sums) == list(range(2, 82, 2))
    assert await second.add("y", 1, until) == 1


async def test_names_may_be_any_text(opening: Opening) -> None:
    counters = await opening()
    for name in ("read/::1/60", "$where", "a.b", "'; DROP TABLE counters", "ü" * 200):
        assert await counters.add(name, 1, time.time() + LATER) == 1
        assert await counters.add(name, 1, time.time() + LATER) == 2


async def test_a_count_stays_while_it_is_needed(opening: Opening) -> None:
    counters = await opening()
    assert await counters.add("x", 1, time.time() + LATER) == 1
    await counters.close()
    again = await opening()
    assert await again.add("x", 1, time.time() + LATER) == 2


async def test_closed_counters_say_so(opening: Opening) -> None:
    counters = await opening()
    await counters.close()
    with pytest.raises(UnavailableError, match=re.compile("closed|does not answer")):
        await counters.add("x", 1, time.time() + LATER)


async def test_a_database_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await (await SqliteStore.open(path, [])).close()
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match=r"c\.db .* another kind"):
        await SqliteCounters.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("offset", "damage"), [(0, bytes(4096)), (100, b"\xff" * 3_000), (4096, b"\xff" * 8192)])
async def test_a_damaged_file_is_replaced_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: int, damage: bytes
) -> None:
    path = tmp_path / "c.db"
    counters = await SqliteCounters.open(path)
    await counters.add("x", 5, time.time() + LATER)
    await counters.close()
    overwrite(path, offset, damage)
    counters = await SqliteCounters.open(path)
    assert "damaged" in caplog.text
    assert await counters.add("x", 1, time.time() + LATER) == 1
    await counters.close()


async def test_processes_that_meet_damage_while_they_count_go_on_in_one_new_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    first, second = await SqliteCounters.open(path), await SqliteCounters.open(path)
    for counters in (first, second):
        await counters.add("x", 5, time.time() + LATER)
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    overwrite(path, 4096, b"\xff" * 8192)
    assert await first.add("x", 1, time.time() + LATER) == 1
    assert await second.add("x", 1, time.time() + LATER) == 2
    for counters in (first, second):
        await counters.close()


def overwrite(path: Path, offset: int, damage: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(damage)
