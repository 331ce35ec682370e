"""What every event log holds to, whichever adapter it is."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.errors import TooLargeError, UnavailableError, UncertainError
from domain.ports import Batch, EventLog, Message, Position, Record, Topic, TopicPartition, after
from tests.conditions import eventually
from tests.contract.conftest import PATIENCE, LogHarness

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def message(topic: Topic, key: str, number: int) -> Message:
    return Message(topic.name, key, b"%d" % number, {"ce_id": f"{key}-{number}"})


def beginning(*topics: Topic) -> dict[TopicPartition, int]:
    return {(topic.name, partition): 0 for topic in topics for partition in range(topic.partitions)}


async def take(log: EventLog, start: Mapping[TopicPartition, int], count: int) -> list[Record]:
    """The first `count` records that a follower sees."""
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE):
        if count:
            async for batch in log.follow(start):
                records += batch.records
                if len(records) >= count:
                    break
    return records


async def everything(log: EventLog, topic: Topic) -> list[Record]:
    records: list[Record] = []
    for partition in range(topic.partitions):
        offset = 0
        while batch := await log.read(topic.name, partition, offset):
            records += batch
            offset = batch[-1].position.offset + 1
    return records


async def erased(log: EventLog, topic: Topic, key: str, *left: bytes) -> list[Record]:
    """The topic once only what is `left` of the key is on it, after its tombstone or without it."""

    async def gone() -> list[Record]:
        records = await everything(log, topic)
        return records if by_key(records)[key] in ([None, *left], [*left]) else []

    return await eventually(gone)


async def appended(log: EventLog, topic: Topic, count: int, keys: int = 5) -> list[Record]:
    """`count` records on the log, in the order in which reading partition by partition gives them."""
    messages = [message(topic, f"key-{number % keys}", number) for number in range(count)]
    positions = await log.append(messages)
    pairs = zip(positions, messages, strict=True)
    return sorted((Record(at, one.key, one.value, one.headers) for at, one in pairs), key=lambda one: one.position)


def by_key(records: Sequence[Record]) -> dict[str, list[bytes | None]]:
    values: dict[str, list[bytes | None]] = defaultdict(list)
    for record in records:
        values[record.key].append(record.value)
    return values


def rises(records: Sequence[Record]) -> bool:
    last: dict[TopicPartition, int] = {}
    for record in records:
        topic, partition, offset = record.position.topic, record.position.partition, record.position.offset
        if offset <= last.get((topic, partition), -1):
            return False
        last[topic, partition] = offset
    return True


async def test_a_record_stands_where_its_position_says(logs: LogHarness) -> None:
    log = await logs.open()
    for record in await appended(log, logs.kept, 20):
        at = record.position
        assert await log.read(at.topic, at.partition, at.offset, limit=1) == [record]


async def test_a_key_stays_in_one_partition_and_in_order(logs: LogHarness) -> None:
    log = await logs.open()
    positions: dict[str, list[Position]] = defaultdict(list)
    for number in range(30):
        key = f"key-{number % 3}"
        positions[key] += await log.append([message(logs.kept, key, number)])
    for key, placed in positions.items():
        assert len({position.partition for position in placed}) == 1, key
        assert placed == sorted(placed)
        assert len(set(placed)) == len(placed)


async def test_following_from_any_position_sees_what_reading_sees(logs: LogHarness) -> None:
    log = await logs.open()
    records = await appended(log, logs.kept, 40)
    for first in [record.position for record in records[::4]]:
        start = {**await _ends(log, logs.kept), (first.topic, first.partition): first.offset}
        rest = [r for r in records if r.position.partition == first.partition and r.position >= first]
        assert await take(log, start, len(rest)) == rest
        assert await log.read(first.topic, first.partition, first.offset) == rest


async def test_reading_twice_and_through_another_connection_gives_the_same(logs: LogHarness) -> None:
    log, other = await logs.open(), await logs.open()
    records = await appended(log, logs.kept, 1_200)
    assert await everything(log, logs.kept) == records
    assert await everything(other, logs.kept) == records
    for reader in (log, other, other):
        followed = await take(reader, beginning(logs.kept), len(records))
        assert rises(followed)
        assert sorted(followed, key=lambda record: record.position) == records


async def test_read_gives_at_most_its_limit_and_nothing_at_the_end(logs: LogHarness) -> None:
    log = await logs.open()
    records = await appended(log, logs.kept, 10, keys=1)
    partition = records[0].position.partition
    assert await log.read(logs.kept.name, partition, 0, limit=3) == records[:3]
    assert await log.read(logs.kept.name, partition, records[-1].position.offset + 1) == []


async def test_writers_on_several_connections_lose_nothing_and_keep_each_keys_order(logs: LogHarness) -> None:
    opened = [await logs.open() for _ in range(3)]

    async def write(log: EventLog, key: str) -> None:
        for number in range(25):
            await log.append([message(logs.kept, key, number)])

    keys = [f"writer-{number}" for number in range(12)]
    await asyncio.gather(*(write(opened[number % 3], key) for number, key in enumerate(keys)))
    records = await everything(opened[0], logs.kept)
    assert rises(records)
    assert by_key(records) == {key: [b"%d" % number for number in range(25)] for key in keys}


async def test_a_follower_sees_what_another_connection_appends_while_it_waits(logs: LogHarness) -> None:
    log, other = await logs.open(), await logs.open()
    follower = log.follow(beginning(logs.kept, logs.compacted))
    async with asyncio.timeout(PATIENCE):
        for number in range(10):
            waiting = asyncio.ensure_future(_next_records(follower))
            writer, topic = ((log, logs.kept), (other, logs.compacted))[number % 2]
            [position] = await writer.append([message(topic, "key", number)])
            assert [record.position for record in await waiting] == [position]


async def test_followers_do_not_take_records_from_each_other(logs: LogHarness) -> None:
    log = await logs.open()
    followers = [asyncio.create_task(take(log, beginning(logs.kept), 50)) for _ in range(5)]
    records = await appended(log, logs.kept, 50)
    for followed in await asyncio.gather(*followers):
        assert sorted(followed, key=lambda record: record.position) == records


async def test_a_follower_that_is_stopped_leaves_the_others_at_work(logs: LogHarness) -> None:
    log = await logs.open()
    stopped, going = (asyncio.create_task(take(log, beginning(logs.kept), 10)) for _ in range(2))
    await appended(log, logs.kept, 5)
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    await appended(log, logs.kept, 5)
    assert len(await going) == 10


async def test_a_tombstone_erases_its_keys_earlier_records_and_no_others(logs: LogHarness) -> None:
    log = await logs.open()
    topic = logs.compacted
    await log.append([message(topic, key, number) for number in range(3) for key in ("gone", f"here-{number}")])
    [grave] = await log.append([Message(topic.name, "gone", None, {})])
    [later] = await log.append([message(topic, "gone", 9)])
    records = await erased(log, topic, "gone", b"9")
    assert {key: by_key(records)[key] for key in ("here-0", "here-1", "here-2")} == {
        "here-0": [b"0"],
        "here-1": [b"1"],
        "here-2": [b"2"],
    }
    assert later > grave
    followed = await take(log, beginning(topic), len(records))
    assert sorted(followed, key=lambda record: record.position) == records


async def test_a_value_and_its_tombstone_in_one_append_leave_the_tombstone_last(logs: LogHarness) -> None:
    log = await logs.open()
    topic = logs.compacted
    await log.append([message(topic, "key", 1), Message(topic.name, "key", None, {}), message(topic, "key", 2)])
    await erased(log, topic, "key", b"2")


async def test_offsets_are_not_used_again_after_an_erasure(logs: LogHarness) -> None:
    log = await logs.open()
    topic = logs.compacted
    [first] = await log.append([message(topic, "key", 1)])
    [grave] = await log.append([Message(topic.name, "key", None, {})])
    [again] = await log.append([Message(topic.name, "key", None, {})])
    reopened = await logs.open()
    [last] = await reopened.append([message(topic, "key", 2)])
    assert first < grave < again < last


async def test_a_tombstone_is_refused_where_records_are_kept_and_nothing_is_written(logs: LogHarness) -> None:
    log = await logs.open()
    await appended(log, logs.kept, 3, keys=1)
    with pytest.raises(ValueError, match="tombstone"):
        await log.append([message(logs.kept, "other", 1), Message(logs.kept.name, "key-0", None, {})])
    assert by_key(await everything(log, logs.kept)) == {"key-0": [b"0", b"1", b"2"]}


async def test_a_record_too_large_is_refused_with_all_that_came_with_it(logs: LogHarness) -> None:
    log = await logs.open()
    large = Message(logs.kept.name, "large", b"x" * (logs.max_record_bytes + 1), {})
    with pytest.raises(TooLargeError, match="limit"):
        await log.append([message(logs.kept, "small", 1), large])
    assert await everything(log, logs.kept) == []
    await log.append([message(logs.kept, "small", 2)])
    assert by_key(await everything(log, logs.kept)) == {"small": [b"2"]}


async def test_an_unknown_topic_or_partition_is_refused(logs: LogHarness) -> None:
    log = await logs.open()
    with pytest.raises(ValueError, match="nowhere"):
        await log.append([Message("nowhere", "key", b"", {})])
    with pytest.raises(ValueError, match="nowhere"):
        await log.read("nowhere", 0, 0)
    with pytest.raises(ValueError, match="99"):
        await log.read(logs.kept.name, 99, 0)
    with pytest.raises(ValueError, match="99"):
        await anext(log.follow({(logs.kept.name, 99): 0}))


async def test_a_follower_reaches_the_ends_past_offsets_that_hold_no_record(logs: LogHarness) -> None:
    log = await logs.open()
    topic = logs.compacted
    await log.append([message(topic, key, number) for number in range(5) for key in ("here", "gone")])
    await log.append([Message(topic.name, "gone", None, {})])
    # Kafka has erased by now, for which it takes ticks: they are the last that stands on its partitions. Of the other
    # key it goes on erasing, to the last of its records.
    before = await erased(log, topic, "gone")
    ends = await _ends(log, topic)
    followed: list[Record] = []
    reached: dict[TopicPartition, int] = {}
    async with asyncio.timeout(PATIENCE):
        async for batch in log.follow(beginning(topic)):
            followed += batch.records
            behind = after(record.position for record in batch.records)
            assert all(batch.reached[at] >= end for at, end in behind.items())
            assert all(end > reached.get(at, 0) for at, end in batch.reached.items())
            reached |= batch.reached
            if all(reached.get(at, 0) >= end for at, end in ends.items()):
                break
    after_it = await everything(log, topic)
    assert {each.position for each in after_it} <= {each.position for each in followed}
    assert all(record in before for record in followed)


async def test_ends_are_the_offsets_of_the_next_records(logs: LogHarness) -> None:
    log, other = await logs.open(), await logs.open()
    assert await log.ends(logs.kept.name) == dict.fromkeys(range(logs.kept.partitions), 0)
    await appended(log, logs.kept, 20)
    for number in range(20):
        ends = await other.ends(logs.kept.name)
        [position] = await log.append([message(logs.kept, f"key-{number}", number)])
        assert position.offset == ends[position.partition]


async def test_appending_nothing_writes_nothing(logs: LogHarness) -> None:
    log = await logs.open()
    assert await log.append([]) == []
    assert await everything(log, logs.kept) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=TEXT, value=st.binary(max_size=3_000), headers=st.dictionaries(TEXT, TEXT, max_size=5))
async def test_any_key_bytes_and_headers_come_back_as_they_went(
    logs: LogHarness, key: str, value: bytes, headers: dict[str, str]
) -> None:
    log = await logs.open()
    [at] = await log.append([Message(logs.kept.name, key, value, headers)])
    assert await log.read(at.topic, at.partition, at.offset) == [Record(at, key, value, headers)]
    await log.close()


async def test_a_caller_that_gives_up_does_not_disturb_the_others(logs: LogHarness) -> None:
    log = await logs.open()
    callers = [asyncio.ensure_future(log.append([message(logs.kept, f"key-{n}", n)])) for n in range(40)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    stayed = [outcome for outcome in outcomes[1::2] if isinstance(outcome, list)]
    assert len(stayed) == 20
    for number, [at] in zip(range(1, 40, 2), stayed, strict=True):
        [record] = await log.read(at.topic, at.partition, at.offset, limit=1)
        assert record.value == b"%d" % number


async def test_a_broken_connection_costs_no_record_no_order_and_no_repeat(logs: LogHarness) -> None:
    log, other = await logs.open(), await logs.open()
    seen: list[Record] = []
    progress = asyncio.Condition()
    doubtful = 0

    async def follow() -> None:
        async for batch in log.follow(beginning(logs.kept)):
            async with progress:
                seen.extend(batch.records)
                progress.notify_all()

    async def reached(count: int) -> None:
        async with asyncio.timeout(PATIENCE), progress:
            await progress.wait_for(lambda: len(seen) >= count)

    async def write(key: str) -> None:
        nonlocal doubtful
        for number in range(60):
            while True:
                try:
                    await log.append([message(logs.kept, key, number)])
                except UnavailableError:
                    await asyncio.sleep(0)
                except UncertainError:
                    doubtful += 1
                else:
                    break

    following = asyncio.create_task(follow())
    keys = [f"key-{number}" for number in range(8)]
    writing = asyncio.gather(*(write(key) for key in keys))
    for count in range(40, 480, 40):
        await reached(count)
        await logs.break_connection(log)
    await writing
    records = await everything(other, logs.kept)
    await reached(len(records))
    following.cancel()
    assert rises(seen)
    assert sorted(seen, key=lambda record: record.position) == records
    assert await everything(log, logs.kept) == records
    assert len(records) <= 480 + doubtful
    for key in keys:
        assert list(dict.fromkeys(by_key(records)[key])) == [b"%d" % number for number in range(60)]


async def _next_records(follower: AsyncIterator[Batch[Record]]) -> Sequence[Record]:
    while not (records := (await anext(follower)).records):
        pass
    return records


async def _ends(log: EventLog, topic: Topic) -> dict[TopicPartition, int]:
    return {(topic.name, partition): offset for partition, offset in (await log.ends(topic.name)).items()}
