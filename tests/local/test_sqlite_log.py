"""What is true of the event log because it is an SQLite file."""

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import apsw
import pytest

from domain.errors import ConflictError, UnavailableError, UncertainError
from domain.ports import Batch, Message, Position, Record, Topic
from infra.storage.sqlite import BUSY_SECONDS
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from tests.conditions import eventually
from tests.contract.conftest import PATIENCE, cut, full_disk

KEPT = Topic("kept")
HOURLY = Topic("hourly", retention_seconds=3600)
COMPACTED = Topic("compacted", compacted=True)
TOPICS = {topic.name: topic for topic in (KEPT, HOURLY, COMPACTED)}
SECRET = b"what-nobody-may-read-again"

# Appends to one key without end, and prints each number once it is durable.
WRITER = """
import asyncio, sys
from domain.ports import Message, Position, Topic
from infra.storage.sqlite import BUSY_SECONDS
from infra.storage.sqlite_log import SqliteLog

async def main(path, key, count):
    log = await SqliteLog.open(path, {"kept": Topic("kept")})
    for number in range(int(count)):
        await log.append([Message("kept", key, b"%d" % number, {})])
        print(number, flush=True)
    await log.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[SqliteLog]:
    log = await SqliteLog.open(path, TOPICS)
    yield log
    await log.close()


async def everything(log: SqliteLog, topic: Topic = KEPT) -> list[Record]:
    records: list[Record] = []
    while batch := await log.read(topic.name, 0, len(records) and records[-1].position.offset + 1):
        records += batch
    return records


def writer(path: Path, key: str, count: int) -> Awaitable[asyncio.subprocess.Process]:
    return asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), key, str(count), stdout=asyncio.subprocess.PIPE
    )


async def test_several_processes_share_a_log_and_one_follows_them_all(path: Path, log: SqliteLog) -> None:
    processes = [await writer(path, key, 100) for key in "abc"]
    seen: list[Record] = []
    async with asyncio.timeout(PATIENCE):
        async for batch in log.follow({("kept", 0): 0}):
            seen += batch.records
            if len(seen) >= 300:
                break
    for process in processes:
        await process.communicate()
        assert process.returncode == 0
    assert [record.position.offset for record in seen] == list(range(300))
    for key in "abc":
        assert [record.value for record in seen if record.key == key] == [b"%d" % number for number in range(100)]


async def test_followers_see_what_two_processes_append_in_turn_once_and_in_order(path: Path, log: SqliteLog) -> None:
    other = await SqliteLog.open(path, TOPICS)
    both = [asyncio.create_task(follow_until(each, 200)) for each in (log, other)]
    for number in range(200):
        writer = log if number % 7 < 4 else other
        await writer.append([Message("kept", str(number), b"", {"number": str(number)})])
    for records in await asyncio.gather(*both):
        assert [(each.position.offset, each.key, each.headers) for each in records] == [
            (number, str(number), {"number": str(number)}) for number in range(200)
        ]
    await other.close()


async def test_what_was_just_appended_is_followed_without_asking_the_file(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append([Message("kept", "0", b"", {})])
    following = asyncio.create_task(follow_until(log, 10))
    await asyncio.sleep(0.05)

    async def asked(_: object) -> None:
        pytest.fail("the file was asked")

    monkeypatch.setattr(log._readers, "run", asked)
    for number in range(1, 10):
        await log.append([Message("kept", str(number), b"", {})])
    assert [record.key for record in await following] == [str(number) for number in range(10)]
    monkeypatch.undo()


async def follow_until(log: SqliteLog, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE):
        async for batch in log.follow({("kept", 0): 0}):
            records += batch.records
            if len(records) >= count:
                break
    return records


async def test_every_acknowledged_append_outlives_a_kill(path: Path) -> None:
    process = await writer(path, "key", 1_000_000)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        acknowledged = [int(await process.stdout.readline()) for _ in range(200)]
    process.kill()
    acknowledged += [int(line) for line in (await process.communicate())[0].split(b"\n")[:-1]]
    log = await SqliteLog.open(path, TOPICS)
    records = await everything(log)
    await log.close()
    assert [int(record.value or b"") for record in records][: len(acknowledged)] == acknowledged
    assert len(records) <= len(acknowledged) + 1


async def test_a_full_disk_refuses_appends_whole_and_takes_them_again_when_it_has_space(log: SqliteLog) -> None:
    written: list[bytes] = []

    async def fill() -> None:
        for number in range(1_000):
            pair = [b"%d-%d" % (number, half) + b"x" * 5_000 for half in (1, 2)]
            await log.append([Message("kept", "key", value, {}) for value in pair])
            written.extend(pair)

    with full_disk(200_000):
        for _ in range(3):
            with pytest.raises(UnavailableError, match=r"Nothing was appended|is full"):
                await fill()
    await log.append([Message("kept", "key", b"after", {})])
    assert [record.value for record in await everything(log)] == [*written, b"after"]


async def test_a_full_disk_is_named(log: SqliteLog) -> None:
    assert log._write_connection is not None
    log._write_connection.pragma("max_page_count", log._write_connection.pragma("page_count") + 5)
    with pytest.raises(UnavailableError, match="disk is full"):
        await log.append([Message("kept", "key", b"x" * 100_000, {})])
    log._write_connection.pragma("max_page_count", 1 << 30)
    await log.append([Message("kept", "key", b"after", {})])
    assert [record.value for record in await everything(log)] == [b"after"]


async def test_a_lock_held_too_long_is_named_and_costs_one_append(path: Path, log: SqliteLog) -> None:
    assert log._write_connection is not None
    log._write_connection.set_busy_handler(None)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="Another process has held its lock"):
        await log.append([Message("kept", "key", b"1", {})])
    other.execute("COMMIT")
    other.close()
    await log.append([Message("kept", "key", b"2", {})])
    assert [record.value for record in await everything(log)] == [b"2"]


async def test_a_commit_that_fails_for_no_known_reason_leaves_the_outcome_open(log: SqliteLog) -> None:
    def fail() -> bool:
        raise RuntimeError("the commit was cut short")

    assert log._write_connection is not None
    log._write_connection.set_commit_hook(fail)
    with pytest.raises(UncertainError, match="not known"):
        await log.append([Message("kept", "key", b"1", {})])
    await log.append([Message("kept", "key", b"2", {})])


async def test_erased_bytes_are_in_no_file(path: Path, log: SqliteLog) -> None:
    other = await SqliteLog.open(path, TOPICS)
    await log.append([Message("compacted", "person", SECRET * 1_000, {"note": SECRET.decode()}) for _ in range(3)])
    await log.append([Message("compacted", "other", b"stays", {})])
    assert any(SECRET in file.read_bytes() for file in path.parent.iterdir())
    await log.append([Message("compacted", "person", None, {})])
    assert not any(SECRET in file.read_bytes() for file in path.parent.iterdir())
    assert [(r.key, r.value) for r in await everything(other, COMPACTED)] == [("other", b"stays"), ("person", None)]
    await other.close()


async def test_an_erasure_does_not_wait_for_a_long_read_and_is_finished_after_it(path: Path) -> None:
    log = await SqliteLog.open(path, TOPICS, sweep_seconds=0.05)
    await log.append([Message("compacted", "person", SECRET, {})])
    # A backup reads in this way.
    backup = apsw.Connection(str(path))
    backup.execute("BEGIN")
    backup.execute('SELECT * FROM "compacted/0"').fetchall()
    begun = time.monotonic()
    await log.append([Message("compacted", "person", None, {})])
    await log.append([Message("kept", "other", b"1", {})])
    assert time.monotonic() - begun < BUSY_SECONDS / 2
    backup.execute("COMMIT")
    backup.close()

    async def erased() -> bool:
        return not any(SECRET in file.read_bytes() for file in path.parent.iterdir())

    await eventually(erased)
    await log.close()


async def test_bytes_a_crash_left_behind_are_erased_at_the_next_start(path: Path, tmp_path: Path) -> None:
    log = await SqliteLog.open(path, TOPICS)
    await log.append([Message("compacted", "person", SECRET, {})])
    assert log._write_connection is not None
    with log._write_connection as connection:
        connection.execute('DELETE FROM "compacted/0"')
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, crashed)
    await log.close()
    assert any(SECRET in file.read_bytes() for file in crashed.iterdir())
    restarted = await SqliteLog.open(crashed / path.name, TOPICS)
    assert not any(SECRET in file.read_bytes() for file in crashed.iterdir())
    await restarted.close()


async def test_old_records_go_where_a_topic_has_a_retention_and_offsets_go_on(path: Path) -> None:
    now = 1_000_000.0
    log = await SqliteLog.open(path, TOPICS, sweep_seconds=0.01, clock=lambda: now)
    for topic in ("hourly", "kept"):
        await log.append([Message(topic, "key", b"old", {})])
    now += 3_000
    await log.append([Message("hourly", "key", b"young", {})])
    now += 700

    async def swept() -> bool:
        return [record.value for record in await everything(log, HOURLY)] == [b"young"]

    await eventually(swept)
    now += 10_000

    async def emptied() -> bool:
        return not await everything(log, HOURLY)

    await eventually(emptied)
    assert [record.value for record in await everything(log)] == [b"old"]
    [position] = await log.append([Message("hourly", "key", b"new", {})])
    assert position.offset == 2
    follower = log.follow({("hourly", 0): 0})
    batch = await anext(follower)
    assert ([record.value for record in batch.records], batch.reached) == ([b"new"], {("hourly", 0): 3})
    now += 10_000
    await eventually(emptied)
    assert await anext(log.follow({("hourly", 0): 0})) == Batch([], {("hourly", 0): 3})
    await log.close()


async def test_a_topic_keeps_the_partitions_that_its_file_began_with(path: Path) -> None:
    await (await SqliteLog.open(path, TOPICS)).close()
    log = await SqliteLog.open(path, {"kept": Topic("kept", partitions=5), "new": Topic("new", partitions=3)})
    assert {name: topic.partitions for name, topic in log.topics.items()} == {"kept": 1, "new": 3}
    for number in range(5):
        [position] = await log.append([Message("kept", f"key {number}", b"1", {})])
        assert position == Position("kept", 0, number)
    await log.close()


async def test_a_topic_that_is_kept_otherwise_is_refused(path: Path) -> None:
    await (await SqliteLog.open(path, TOPICS)).close()
    with pytest.raises(ConflictError, match="keeps 'kept' whole; asked for was compacted"):
        await SqliteLog.open(path, {"kept": Topic("kept", compacted=True)})


@pytest.mark.parametrize("content", [b"no database " * 500, b"SQLite format 3\0" + b"\xff" * 8_000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnavailableError, match="no SQLite database"):
        asyncio.run(SqliteLog.open(path, TOPICS))
    assert path.read_bytes() == content


async def test_a_damaged_log_is_refused_in_words(path: Path) -> None:
    await (await SqliteLog.open(path, TOPICS)).close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3_000)
    with pytest.raises(UnavailableError, match="damaged"):
        await SqliteLog.open(path, TOPICS)


async def test_a_read_store_is_not_taken_for_a_log(path: Path) -> None:
    await (await SqliteStore.open(path, [])).close()
    with pytest.raises(UnavailableError, match="another kind"):
        await SqliteLog.open(path, TOPICS)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="folder"):
        await SqliteLog.open(tmp_path / "file" / "log.sqlite", TOPICS)
    with pytest.raises(UnavailableError, match="folder"):
        await SqliteLog.open(tmp_path, TOPICS)


async def test_close_finishes_appends_ends_followers_and_leaves_one_file_and_no_thread(path: Path) -> None:
    log = await SqliteLog.open(path, TOPICS)

    async def follow() -> int:
        return sum([len(batch.records) async for batch in log.follow({("kept", 0): 0})])

    following = asyncio.create_task(follow())
    appending = [asyncio.ensure_future(log.append([Message("kept", "key", b"1", {})])) for _ in range(100)]
    await appending[0]
    await asyncio.sleep(0)
    late = asyncio.ensure_future(log.append([Message("kept", "key", b"2", {})]))
    await asyncio.sleep(0)
    await log.close()
    await log.close()
    assert len(await asyncio.gather(*appending, late)) == 101
    assert await following <= 101
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(path.name)]
    with pytest.raises(UnavailableError, match="closed"):
        await log.append([Message("kept", "key", b"3", {})])
    with pytest.raises(UnavailableError, match="closed"):
        await log.read("kept", 0, 0)
    assert [batch async for batch in log.follow({("kept", 0): 0})] == []


async def test_logs_opened_at_the_same_moment_make_one_file(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / str(number) / "events.db"
        opened = await asyncio.gather(*(SqliteLog.open(path, TOPICS) for _ in range(8)))
        placed = await asyncio.gather(*(log.append([Message("kept", "key", b"1", {})]) for log in opened))
        assert sorted(position.offset for [position] in placed) == list(range(8))
        for log in opened:
            await log.close()


async def test_a_follower_outlasts_a_file_that_cannot_be_opened_for_a_while(path: Path, log: SqliteLog) -> None:
    away = path.with_name("away")
    await log.append([Message("kept", "key", b"1", {})])
    follower = log.follow({("kept", 0): 0})
    assert [record.value for record in (await anext(follower)).records] == [b"1"]
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.to_thread(path.rename, away)
    await asyncio.to_thread(cut, log._readers, log._poll_connection)
    with pytest.raises(UnavailableError, match="folder"):
        await log.read("kept", 0, 0)
    await asyncio.to_thread(away.rename, path)
    await log.append([Message("kept", "key", b"2", {})])
    assert [record.value for record in (await waiting).records] == [b"2"]
