"""A consumer that somebody else could have written, on a real broker, ends with what the domain makes of the log."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from msgspec.structs import replace

from domain.aggregates import AGGREGATES
from domain.contract.jobs import PUBLISHED as PUBLISHED_JOBS
from domain.contract.vectors import published
from domain.envelope import decode, encode
from domain.events import Undecodable
from domain.ports import Message, Position, Record
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from tests.servers import servers

CONTRACT = Path(__file__).parents[1] / "golden" / "contract"
JOBS = 100
TIME = "2026-01-31T12:00:00.000000Z"


class Topic:
    """A `jobs` topic of a test's own, made as the contract describes it."""

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.prefix = f"contract-{uuid4().hex}."
        kafka = json.loads((CONTRACT / "asyncapi.json").read_bytes())["channels"]["jobs"]["bindings"]["kafka"]
        self.partitions: int = kafka["partitions"]
        self.configuration = {name: _text(value) for name, value in kafka["topicConfiguration"].items()}

    async def create(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker)
        await admin.start()
        wanted = NewTopic(f"{self.prefix}jobs", self.partitions, 1, topic_configs=self.configuration)
        created = await admin.create_topics([wanted])
        await admin.close()
        assert [error for _, error, _ in created.topic_errors] == [0]

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        async with AIOKafkaProducer(bootstrap_servers=self.broker, acks="all") as producer:
            sent = [
                await producer.send(
                    f"{self.prefix}jobs",
                    message.value,
                    message.key.encode(),
                    headers=[(name, value.encode()) for name, value in message.headers.items()],
                )
                for message in messages
            ]
            return [Position("jobs", done.partition, done.offset) for done in [await one for one in sent]]

    async def read(self) -> list[Record]:
        partitions = [KafkaPartition(f"{self.prefix}jobs", number) for number in range(self.partitions)]
        found: list[Record] = []
        async with AIOKafkaConsumer(bootstrap_servers=self.broker, auto_offset_reset="earliest") as consumer:
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    found += [
                        Record(
                            Position("jobs", record.partition, record.offset),
                            record.key.decode(),
                            record.value,
                            {name: value.decode() for name, value in record.headers},
                        )
                        for record in records
                    ]
        return found

    def consume(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, Path(__file__).with_name("consumer.py"), CONTRACT, self.broker, "--prefix", self.prefix],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


@pytest.fixture
async def topic() -> Topic:
    made = Topic(servers().addresses.kafka)
    await made.create()
    return made


def vectors() -> list[Message]:
    """The records of every vector that is read to its end, with keys of the vector's own."""
    messages = []
    for number, vector in enumerate(json.loads((CONTRACT / "vectors" / "jobs.json").read_bytes())):
        if vector["expected"]["stopped_at"] is None:
            own = json.loads(re.sub(r"job-(\d)", rf"job-\1-of-{number}", json.dumps(vector["records"])))
            messages += [_message(record) for record in own]
    return messages


def _message(record: Mapping[str, Any]) -> Message:
    value = b"\xff\xfe" if "value_base64" in record else record["value"]
    return Message("jobs", record["key"], value.encode() if isinstance(value, str) else value, record["headers"])


def histories() -> list[Message]:
    """Jobs whose events come in any order, some of them twice."""
    chance = random.Random(5)
    messages = []
    for number in range(JOBS):
        submission, *proposals = (replace(event, job_id=f"any-{number}") for event in PUBLISHED_JOBS.proposals)
        for event in [submission, *chance.choices(proposals, k=25)]:
            time = f"2026-01-31T12:00:{chance.randrange(60):02}.000000Z"
            messages.append(encode(event, event_id=f"event-{chance.randrange(40)}", time=time))
    chance.shuffle(messages)
    return messages


def fold(records: Sequence[Record]) -> dict[str, Any]:
    """What the domain makes of them, as the contract publishes it."""
    folded: dict[str, Any] = {}
    for record in records:
        folded[record.key] = AGGREGATES["jobs"].evolve(folded.get(record.key), decode(record))
    return {key: published("jobs", job) for key, job in folded.items() if job is not None}


def states(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """What the consumer printed."""
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {line.pop("key"): line for line in printed}
    assert len(ended) == len(printed)
    return ended


async def test_a_foreign_consumer_ends_with_the_states_of_the_domain(topic: Topic) -> None:
    messages = [*vectors(), *histories()]
    await topic.append(messages)
    records = await topic.read()
    assert len(records) == len(messages)
    assert len({record.position.partition for record in records}) == topic.partitions
    assert any(isinstance(decode(record).event, Undecodable) for record in records)
    ended = states(topic.consume())
    assert ended == fold(records)
    assert len(ended) > JOBS / 2
    assert {state["state"]["status"] for state in ended.values()} == {
        "queued", "processing", "completed", "failed", "cancelling", "cancelled"
    }  # fmt: skip


async def test_a_foreign_consumer_reads_what_the_studio_appends_and_finds_no_fault_with_it(topic: Topic) -> None:
    """On a topic made as the contract says, which the studio takes for one of its own."""
    log = await KafkaLog.open(KafkaAccess(servers=topic.broker), prefix=topic.prefix)
    try:
        await log.append(histories())
    finally:
        await log.close()
    done = topic.consume()
    ended = states(done)
    assert ended == fold(await topic.read())
    assert len(ended) > JOBS / 2
    assert "is a required property" not in done.stderr


async def test_a_foreign_consumer_stops_at_an_event_of_a_newer_version(topic: Topic) -> None:
    submission, claim = (encode(event, event_id="x", time=TIME) for event in PUBLISHED_JOBS.proposals[:2])
    newer = {**claim.headers, "ce_type": "text2song.job.started.v2"}
    _, position = await topic.append([submission, replace(claim, headers=newer)])
    done = topic.consume()
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{position} holds a JobStarted of type 'text2song.job.started.v2'" in done.stderr


async def test_a_foreign_consumer_names_records_whose_headers_are_not_as_published(topic: Topic) -> None:
    message = encode(PUBLISHED_JOBS.proposals[0], event_id="x", time=TIME)
    headers = {name: value for name, value in message.headers.items() if name != "ce_source"}
    good, bad = await topic.append([message, replace(message, headers=headers)])
    done = topic.consume()
    assert done.returncode == 0
    assert f"{bad}: 'ce_source' is a required property" in done.stderr
    assert f"{good}:" not in done.stderr
