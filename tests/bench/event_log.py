"""The SQLite event log: appends a second beside group commits by hand, and how soon a follower sees one."""

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import apsw
import msgspec

from domain.ports import Message, Topic
from infra.storage.sqlite_log import SqliteLog

TOPICS: Final = {"jobs": Topic("jobs", partitions=4)}
VALUE: Final = b"x" * 600
HEADERS: Final = {
    "ce_specversion": "1.0",
    "ce_id": "0198c0de-0000-7000-8000-000000000000",
    "ce_source": "/text2song",
    "ce_type": "text2song.job.submitted.v1",
    "ce_time": "2026-01-01T00:00:00.000000Z",
    "content-type": "application/json",
}
CALLERS: Final = (1, 16, 64)
ROUNDS: Final = 5
SECONDS: Final = 0.7
SAMPLES: Final = 300


def raw(path: Path, rows: int) -> float:
    """Rows a second from a plain thread that commits ready-made rows, so many to a transaction."""
    rates: list[float] = []

    def work() -> None:
        connection = apsw.Connection(str(path))
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        connection.execute("CREATE TABLE records (offset INTEGER PRIMARY KEY, key, value, headers, appended_at)")
        group = [(f"key-{row}", VALUE, msgspec.json.encode(HEADERS), time.time()) for row in range(rows)]
        done, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO records VALUES (NULL, ?, ?, ?, ?)", group)
            connection.execute("COMMIT")
            done += rows
        rates.append(done / elapsed)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return rates[0]


async def bare(path: Path, callers: int) -> float:
    """Appends of the same records a second by the same callers, over the barest queue and thread that group commits.

    No topics, no offsets by partition, no limits, no followers, no other process.
    """
    loop = asyncio.get_running_loop()
    waiting: SimpleQueue[list[tuple[str, bytes, bytes, asyncio.Future[None]]] | None] = SimpleQueue()
    pending: list[tuple[str, bytes, bytes, asyncio.Future[None]]] = []

    def settle(group: list[tuple[str, bytes, bytes, asyncio.Future[None]]]) -> None:
        for *_, done in group:
            done.set_result(None)

    def work() -> None:
        connection = apsw.Connection(str(path))
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        connection.execute("CREATE TABLE records (offset INTEGER PRIMARY KEY, key, value, headers)")
        while (group := waiting.get()) is not None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO records VALUES (NULL, ?, ?, ?)", [row[:3] for row in group])
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(settle, group)
        connection.close()

    def hand_over() -> None:
        waiting.put(pending.copy())
        pending.clear()

    async def append(key: str, value: bytes) -> None:
        if not pending:
            loop.call_soon(hand_over)
        done = loop.create_future()
        pending.append((key, value, msgspec.json.encode(HEADERS), done))
        await done

    thread = threading.Thread(target=work)
    thread.start()
    rate = await race(callers, append)
    waiting.put(None)
    await asyncio.to_thread(thread.join)
    return rate


async def race(callers: int, append: Callable[[str, bytes], Awaitable[object]]) -> float:
    """Appends a second by concurrent callers on one event loop, each waiting for its own before the next."""
    done, start = 0, time.perf_counter()

    async def call(caller: int) -> None:
        nonlocal done
        while time.perf_counter() - start < SECONDS:
            await append(f"key-{caller}", VALUE)
            done += 1

    await asyncio.gather(*(call(caller) for caller in range(callers)))
    return done / (time.perf_counter() - start)


async def log(path: Path, callers: int) -> float:
    opened = await SqliteLog.open(path, TOPICS)
    rate = await race(callers, lambda key, value: opened.append([Message("jobs", key, value, HEADERS)]))
    await opened.close()
    return rate


async def stamp(opened: SqliteLog) -> None:
    for _ in range(SAMPLES):
        await opened.append([Message("jobs", "key", b"%d" % time.monotonic_ns(), {})])
        await asyncio.sleep(0.005)


async def stamp_file(path: str) -> None:
    opened = await SqliteLog.open(path, TOPICS)
    await stamp(opened)
    await opened.close()


async def visibility(path: Path, write: Callable[[SqliteLog, Path], Awaitable[object]]) -> list[float]:
    """Milliseconds from the call of each append to its record in a follower's hands."""
    opened = await SqliteLog.open(path, TOPICS)
    delays: list[float] = []
    writing = asyncio.ensure_future(write(opened, path))
    async with asyncio.timeout(30):
        async for batch in opened.follow({("jobs", number): 0 for number in range(opened.topics["jobs"].partitions)}):
            delays += ((time.monotonic_ns() - int(record.value or b"")) / 1e6 for record in batch.records)
            if len(delays) >= SAMPLES:
                break
    await writing
    await opened.close()
    return delays


async def by_this_process(opened: SqliteLog, _: Path) -> None:
    await stamp(opened)


async def by_another(_: SqliteLog, path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(path))
    await process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates: dict[int, list[tuple[float, float, float]]] = {callers: [] for callers in CALLERS}
        for round_ in range(ROUNDS):
            for callers, rows in rates.items():
                here = folder / f"{callers}-{round_}"
                ours = asyncio.run(log(here.with_suffix(".log"), callers))
                by_hand = asyncio.run(bare(here.with_suffix(".bare"), callers))
                rows.append((ours, by_hand, raw(here.with_suffix(".raw"), callers)))
        print("callers   appends/s   bare group commit/s   ratio   ready-made rows/s   ratio")
        for callers, rows in rates.items():
            ours, by_hand, ready = (statistics.median(side) for side in zip(*rows, strict=True))
            to_bare = statistics.median(row[0] / row[1] for row in rows)
            to_ready = statistics.median(row[0] / row[2] for row in rows)
            print(f"{callers:7}   {ours:9,.0f}   {by_hand:19,.0f}   {to_bare:5.0%}   {ready:17,.0f}   {to_ready:5.0%}")
        for writer, write in (("this process", by_this_process), ("another process", by_another)):
            delays = statistics.quantiles(asyncio.run(visibility(folder / writer, write)), n=100)
            print(f"an append by {writer} is seen after {delays[49]:.2f} ms (p50), {delays[98]:.2f} ms (p99)")


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(stamp_file(sys.argv[1]))
    else:
        main()
