"""Records that are no events are kept once, at a cost that does not grow with those kept before."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.ports import Message, Record
from infra.storage.sqlite_log import SqliteLog
from projections.dead_letters import DeadLetters
from tests.audit import records


class CountingLog(SqliteLog):
    """Counts the dead letters that are read."""

    letters = 0

    async def read(self, topic: str, partition: int, offset: int, limit: int = 500) -> list[Record]:
        page = await super().read(topic, partition, offset, limit)
        self.letters += len(page) if topic == "deadletter" else 0
        return page


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[CountingLog]:
    opened = await CountingLog.open(tmp_path / "events.db")
    yield opened
    await opened.close()


async def damaged(log: SqliteLog, count: int) -> list[tuple[Record, str]]:
    await log.append([Message("jobs", f"job-{number}", b"{", {}) for number in range(count)])
    return [(record, "truncated") for record in await records(log, "jobs")]


async def buried(log: SqliteLog) -> list[str]:
    return [record.key for record in await records(log, "deadletter")]


async def test_each_letter_is_read_once_however_many_batches_are_bad(log: CountingLog) -> None:
    dead = await damaged(log, 300)
    letters = DeadLetters(log)
    for first in range(0, 300, 10):
        await letters.bury(dead[first : first + 10])
        await letters.bury(dead[: first + 10])
    assert log.letters == 300
    assert await buried(log) == [str(record.position) for record, _ in dead]


@pytest.mark.parametrize("remembered", [1, 20, 1_000])
async def test_what_is_buried_is_known_after_a_start_even_where_the_memory_is_short(
    log: CountingLog, remembered: int
) -> None:
    dead = await damaged(log, 100)
    await log.append([Message("deadletter", "no position at all", b"", {})])
    await DeadLetters(log, remembered).bury(dead[:60])
    again = DeadLetters(log, remembered)
    for first in range(0, 100, 7):
        await again.bury(dead[first : first + 7])
    assert await buried(log) == ["no position at all", *(str(record.position) for record, _ in dead)]
    assert len(again._known) <= remembered
