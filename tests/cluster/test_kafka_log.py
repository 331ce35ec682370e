"""What is true of the event log because it is on Kafka: topics and access checked, outages, a producer gone wrong."""

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition as KafkaPartition

from domain.errors import ConflictError, UnavailableError, UncertainError
from domain.journal import until_done
from domain.ports import Message, Position, Record, Topic
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from tests.conditions import eventually
from tests.servers import servers

KEPT = Topic("kept", partitions=4)
HOURLY = Topic("hourly", retention_seconds=3600)
COMPACTED = Topic("compacted", compacted=True)
TOPICS = {topic.name: topic for topic in (KEPT, HOURLY, COMPACTED)}
PATIENCE = 60.0

Opener = Callable[..., Coroutine[Any, Any, KafkaLog]]


@pytest.fixture
def access() -> KafkaAccess:
    return KafkaAccess(servers=servers().addresses.kafka)


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}."


@pytest.fixture
async def opened(access: KafkaAccess, prefix: str) -> AsyncIterator[Opener]:
    """Opens logs on the test's own topics, and closes them."""
    logs: list[KafkaLog] = []

    async def opener(topics: Mapping[str, Topic] = TOPICS, **options: Any) -> KafkaLog:
        logs.append(await KafkaLog.open(access, topics, prefix=prefix, **options))
        return logs[-1]

    yield opener
    for log in logs:
        await log.close()


@asynccontextmanager
async def administration(access: KafkaAccess) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=access.servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(access: KafkaAccess, name: str, partitions: int, configs: dict[str, str]) -> None:
    async with administration(access) as admin:
        [(_, code, message)] = (
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        ).topic_errors
        assert code == 0, message


async def configure(access: KafkaAccess, name: str, configs: dict[str, str]) -> None:
    async with administration(access) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])


async def configured(access: KafkaAccess, name: str) -> dict[str, str]:
    async with administration(access) as admin:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        [(_, _, _, _, entries)] = answer.resources
        return {entry[0]: entry[1] for entry in entries}


@asynccontextmanager
async def stopped_broker() -> AsyncIterator[None]:
    """Killed while the body runs."""
    await asyncio.to_thread(servers().kill, "kafka")
    try:
        yield
    finally:
        await asyncio.to_thread(servers().start, "kafka")


async def everything(log: KafkaLog, topic: Topic = KEPT) -> list[Record]:
    records: list[Record] = []
    for partition in range(topic.partitions):
        offset = 0
        while page := await log.read(topic.name, partition, offset):
            records += page
            offset = page[-1].position.offset + 1
    return records


def values(records: list[Record], key: str) -> list[bytes | None]:
    return [record.value for record in records if record.key == key]


async def test_topics_are_made_as_their_records_need_it(access: KafkaAccess, prefix: str, opened: Opener) -> None:
    await opened()
    kept, hourly, compacted = [await configured(access, prefix + name) for name in TOPICS]
    assert (kept["cleanup.policy"], kept["retention.ms"], kept["retention.bytes"]) == ("delete", "-1", "-1")
    assert (hourly["cleanup.policy"], hourly["retention.ms"]) == ("delete", "3600000")
    assert (compacted["cleanup.policy"], compacted["max.compaction.lag.ms"]) == ("compact", "86400000")


async def test_processes_that_start_together_make_the_topics_once(opened: Opener) -> None:
    logs = await asyncio.gather(*(opened() for _ in range(5)))
    for number, log in enumerate(logs):
        await log.append([Message("kept", "key", b"%d" % number, {})])
    assert values(await everything(logs[0]), "key") == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("topic", "configs", "said"),
    [
        (KEPT, {"retention.ms": "604800000"}, r"retention\.ms=604800000; it must be -1"),
        (KEPT, {"retention.ms": "-1", "retention.bytes": "1000000"}, r"retention\.bytes=1000000; it must be -1"),
        (KEPT, {"retention.ms": "-1", "cleanup.policy": "compact"}, r"cleanup\.policy=compact; it must be delete"),
        (HOURLY, {"retention.ms": "-1"}, r"retention\.ms=-1; it must be 3600000"),
        (COMPACTED, {"cleanup.policy": "compact"}, r"max\.compaction\.lag\.ms=\d+; it must be 86400000"),
        (KEPT, {"retention.ms": "-1", "max.message.bytes": "1000"}, r"max\.message\.bytes=1000; .* 1000000"),
    ],
)
async def test_a_topic_that_would_lose_or_keep_the_wrong_records_is_refused(
    prefix: str, opened: Opener, topic: Topic, configs: dict[str, str], said: str
) -> None:
    access = KafkaAccess(servers=servers().addresses.kafka)
    await create(access, prefix + topic.name, topic.partitions, configs)
    with pytest.raises(ConflictError, match=said):
        await opened({topic.name: topic})


async def test_a_topic_of_another_partition_count_is_refused(access: KafkaAccess, prefix: str, opened: Opener) -> None:
    await create(access, prefix + "kept", 3, {"retention.ms": "-1"})
    with pytest.raises(ConflictError, match="has 3 partitions; asked for were 4"):
        await opened()


async def test_more_replicas_than_brokers_are_refused_with_kafkas_own_words(opened: Opener) -> None:
    with pytest.raises(ConflictError, match="Unable to replicate"):
        await opened(replicas=3)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_broker_that_is_not_there_is_named(prefix: str) -> None:
    nowhere = KafkaAccess(servers=closed_port())
    with pytest.raises(UnavailableError, match=rf"{nowhere.servers}, PLAINTEXT.*Start Kafka, or correct the address"):
        await KafkaLog.open(nowhere, TOPICS, prefix=prefix)


async def test_a_server_that_never_answers_is_given_up(prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = KafkaAccess(servers=f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="did not answer"):
            await KafkaLog.open(silent, TOPICS, prefix=prefix, timeout_seconds=0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"security_protocol": "SSL"}, "TLS failed|broke the connection off"),
        ({"security_protocol": "SASL_PLAINTEXT", "username": "ann", "password": "s3cret"}, "as 'ann' by PLAIN.*login"),
        ({"security_protocol": "SSL", "cafile": "/nowhere.pem"}, r"certificates in /nowhere\.pem cannot be read"),
    ],
)
async def test_access_that_the_broker_does_not_give_is_explained_without_the_password(
    access: KafkaAccess, prefix: str, options: dict[str, str], said: str
) -> None:
    with pytest.raises(UnavailableError, match=said) as refused:
        await KafkaLog.open(KafkaAccess(servers=access.servers, **options), TOPICS, prefix=prefix)  # type: ignore[arg-type]
    assert "s3cret" not in str(refused.value)


def test_a_login_without_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a username and a password"):
        KafkaAccess(servers="kafka:9092", security_protocol="SASL_SSL", username="ann")


async def test_a_record_of_the_greatest_size_is_taken(opened: Opener) -> None:
    log = await opened()
    await log.append([Message("kept", "key", b"x" * 999_900, {}) for _ in range(3)])
    assert len(await everything(log)) == 3


async def test_what_strangers_write_is_read_as_it_stands(access: KafkaAccess, prefix: str, opened: Opener) -> None:
    log = await opened()
    headers = [("twice", b"1"), ("twice", b"2"), ("latin", b"\xe9"), ("none", None)]
    async with AIOKafkaProducer(bootstrap_servers=access.servers) as stranger:
        await stranger.send_and_wait(prefix + "kept", b"\xff\xfe", b"caf\xe9", partition=2, headers=headers)
        await stranger.send_and_wait(prefix + "kept", b"keyless", partition=2)
        await stranger.send_and_wait(prefix + "kept", None, b"tombstone", partition=2)
    assert await log.read("kept", 2, 0) == [
        Record(Position("kept", 2, 0), r"caf\xe9", b"\xff\xfe", {"twice": "2", "latin": r"\xe9", "none": ""}),
        Record(Position("kept", 2, 1), "", b"keyless", {}),
        Record(Position("kept", 2, 2), "tombstone", None, {}),
    ]


async def test_readers_go_on_where_the_oldest_records_have_been_deleted(
    access: KafkaAccess, prefix: str, opened: Opener
) -> None:
    log = await opened()
    await log.append([Message("hourly", "key", b"%d" % number, {}) for number in range(10)])
    async with administration(access) as admin:
        await admin.delete_records({KafkaPartition(prefix + "hourly", 0): RecordsToDelete(before_offset=7)})
    assert [record.value for record in await log.read("hourly", 0, 2)] == [b"7", b"8", b"9"]
    async with asyncio.timeout(PATIENCE):
        batch = await anext(log.follow({("hourly", 0): 0}))
    assert ([record.value for record in batch.records], batch.reached) == ([b"7", b"8", b"9"], {("hourly", 0): 10})


async def test_a_broker_killed_under_load_loses_nothing_and_disorders_no_key(opened: Opener) -> None:
    log, other = await opened(timeout_seconds=40.0), await opened()
    acknowledged: dict[str, list[tuple[Position, bytes]]] = {f"key-{number}": [] for number in range(16)}
    numbers = dict.fromkeys(acknowledged, 0)
    followed: list[Record] = []
    writing = True
    doubtful = 0

    async def write(key: str) -> None:
        nonlocal doubtful
        while writing or len(acknowledged[key]) < numbers[key]:
            value = b"%d" % len(acknowledged[key])
            numbers[key] = len(acknowledged[key]) + 1
            try:
                [position] = await log.append([Message("kept", key, value, {})])
            except UnavailableError:
                await asyncio.sleep(0.05)
            except UncertainError:
                doubtful += 1
            else:
                acknowledged[key].append((position, value))

    async def follow() -> None:
        async for batch in log.follow({("kept", partition): 0 for partition in range(KEPT.partitions)}):
            followed.extend(batch.records)

    async def more(count: int) -> bool:
        return sum(map(len, acknowledged.values())) > count

    following = asyncio.create_task(follow())
    writers = [asyncio.create_task(write(key)) for key in acknowledged]
    for _ in range(3):
        written = sum(map(len, acknowledged.values()))
        await eventually(lambda count=written + 500: more(count), PATIENCE)  # type: ignore[misc]
        async with stopped_broker():
            pass
    await eventually(lambda count=written + 500: more(count), PATIENCE)  # type: ignore[misc]
    writing = False
    await asyncio.gather(*writers)
    records = await everything(other)
    placed = {record.position: record.value for record in records}
    for key, appended in acknowledged.items():
        assert all(placed[position] == value for position, value in appended), key
        assert list(dict.fromkeys(values(records, key))) == [value for _, value in appended], key
    assert len(records) <= sum(map(len, acknowledged.values())) + doubtful

    async def caught_up() -> bool:
        return len(followed) >= len(records)

    await eventually(caught_up)
    following.cancel()
    assert sorted(followed, key=lambda record: record.position) == records


async def test_an_outage_longer_than_the_patience_is_told_and_gone_through(opened: Opener) -> None:
    log, other = await opened(timeout_seconds=4.0), await opened()
    await log.append([Message("kept", "key", b"before", {})])
    async with stopped_broker():
        with pytest.raises(UncertainError, match="may be appended again"):
            await log.append([Message("kept", "key", b"during", {})])
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="Nothing was appended"):
            await log.append([Message("kept", "key", b"refused", {})])
        assert time.monotonic() - began < 4.0
        with pytest.raises(UnavailableError, match="Start Kafka"):
            await log.ends("kept")
        with pytest.raises(UnavailableError, match="Start Kafka"):
            await log.read("kept", 0, 0)
        with pytest.raises(UnavailableError, match="Start Kafka"):
            await opened()
    await until_done(lambda: log.append([Message("kept", "key", b"after", {})]), "The test")
    assert values(await everything(other), "key") == [b"before", b"during", b"after"]


async def test_closing_during_an_outage_ends(opened: Opener) -> None:
    log = await opened(timeout_seconds=4.0)
    start = {("kept", number): 0 for number in range(KEPT.partitions)}
    following = [log.follow(start) for _ in range(6)]
    await log.append([Message("kept", "key", b"before", {})])
    await asyncio.gather(*map(anext, following))
    # They ask the broker for more, and ask again and again while it is away.
    followers = [asyncio.create_task(anext(each, None)) for each in following]
    async with stopped_broker():
        with pytest.raises(UncertainError):
            await log.append([Message("kept", "key", b"lost", {})])
        async with asyncio.timeout(PATIENCE):
            await log.close()
            assert await asyncio.gather(*followers) == [None] * len(followers)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(UnavailableError, match="closed"):
            await log.append([Message("kept", "key", b"late", {})])
        with pytest.raises(UnavailableError, match="closed"):
            await log.read("kept", 0, 0)
    assert values(await everything(await opened()), "key") == [b"before"]


async def test_a_producer_that_the_broker_takes_nothing_from_any_more_is_replaced(
    access: KafkaAccess, prefix: str, opened: Opener
) -> None:
    """One refused batch, and to the broker all that an idempotent producer sends later is out of order."""
    log = await opened()
    await log.append([Message("kept", "key", b"before", {})])
    wedged = log._producer
    await configure(access, prefix + "kept", {"retention.ms": "-1", "max.message.bytes": "2000"})

    async def refused() -> bool:
        try:
            await log.append([Message("kept", "key", b"x" * 5_000, {})])
        except UnavailableError:
            return True
        return False

    await eventually(refused)
    for number in range(3):
        await log.append([Message("kept", "key", b"%d" % number, {})])
    assert log._producer is not wedged
    assert values(await everything(log), "key")[-3:] == [b"0", b"1", b"2"]
    assert log._stopping == set()


async def test_an_append_of_which_a_part_was_refused_is_uncertain(
    access: KafkaAccess, prefix: str, opened: Opener
) -> None:
    log = await opened()
    here, there = Message("kept", "here", b"small", {}), Message("kept", "there", b"x" * 5_000, {})
    [at], [elsewhere] = await log.append([here]), await log.append([there])
    assert at.partition != elsewhere.partition
    await configure(access, prefix + "kept", {"retention.ms": "-1", "max.message.bytes": "2000"})

    async def doubtful() -> bool:
        try:
            await log.append([here, there])
        except UncertainError:
            return True
        return False

    await eventually(doubtful)
    assert len(values(await everything(log), "here")) >= 2
