"""A dataset built from Kafka has the digest of one that is built from a file, for the same events."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from uuid_utils import uuid7

from domain.ab_tests import ARMS, job_id
from domain.aggregates import TOPICS
from domain.events import Erased, Event, timestamp
from domain.events.ab_tests import ABTestCreated, ABTestReady, Pair
from domain.events.datasets import DatasetCreated, Filters
from domain.events.jobs import JobCompleted, JobDeleted, JobStarted, SampleGenerated
from domain.journal import Journal
from domain.ports import EventLog, Message, Position
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from infra.storage.sqlite_log import SqliteLog
from tests.local.parts import submission
from tests.local.test_datasets import said, vote
from tests.servers import servers
from workers.dataset_replay import Summary
from workers.datasets import replayed

KINDS = (
    DatasetCreated(dataset_id="d", dataset_name="d", kind="supervised"),
    DatasetCreated(dataset_id="d", dataset_name="d", kind="preference"),
    DatasetCreated(dataset_id="d", dataset_name="d", kind="preference", filters=Filters(min_reliability=0.5)),
)


class Recording(SqliteLog):
    """Keeps what it is given, to give another log the same."""

    messages: tuple[Message, ...] = ()

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        self.messages += tuple(messages)
        return await super().append(messages)


def journal(log: EventLog) -> Journal:
    return Journal(log, lambda: timestamp(datetime.now(UTC)), lambda: str(uuid7()))


async def happen(events: Journal) -> None:
    for number in range(12):
        name = f"job{number}"
        await events.append(*made(name, prompt_id=f"prompt{number % 4}"))
    for number in range(12):
        one, other, prompt = f"job{number}-0", f"job{number}-1", f"prompt{number % 4}"
        for user in ("ann", "bob", "cid"):
            first, second = (one, other) if (number + len(user)) % 5 or user != "bob" else (other, one)
            await events.append(said(f"f-{number}-{user}", first, second, prompt_id=prompt, user_id=user, rating=4.0))
    pairs = tuple(Pair(prompt_id="blues", prompt="slow blues", seed=seed) for seed in range(2))
    test = ABTestCreated(ab_test_id="test", test_name="t", pairs=pairs, model_id="noise", duration=0.5)
    await events.append(test)
    for pair in range(2):
        for arm in ARMS:
            await events.append(*made(job_id("test", pair, arm), prompt_id="blues"))
    await events.append(ABTestReady(ab_test_id="test"), vote(0, "ann", "left"), vote(1, "bob", "right"))
    await events.append(said("f-0-ann", "job0-1", "job0-0", prompt_id="prompt0", user_id="ann"))
    await events.append(Erased(topic="feedback", key="f-3-cid", given_partition_key="job3"))
    await events.append(JobDeleted(job_id="job5"))


def made(name: str, *, prompt_id: str) -> list[Event]:
    samples = [
        SampleGenerated(
            job_id=name,
            attempt=1,
            index=index,
            sample_id=f"{name}-{index}",
            seed=index,
            storage_path=f"samples/{name}/1/1/{index}.flac",
            duration_seconds=0.5,
            sample_rate=8_000,
            channels=1,
            size=1,
            sha256=f"{index:064}",
        )
        for index in range(2)
    ]
    started = JobStarted(job_id=name, attempt=1, worker_id="worker")
    return [submission(name, prompt_id=prompt_id), started, *samples, JobCompleted(job_id=name, attempt=1)]


async def built(events: Journal) -> list[Summary]:
    found = []
    for kind in KINDS:
        async with replayed(events, kind, None) as made_of:
            found.append(made_of.summary)
    return found


async def test_a_file_and_kafka_make_the_same_dataset_of_the_same_events(tmp_path: Path) -> None:
    there = servers()
    local = await Recording.open(tmp_path / "events.db")
    cluster = await KafkaLog.open(
        KafkaAccess(servers=there.addresses.kafka),
        {name: TOPICS[name] for name in ("jobs", "feedback", "abtests")},
        prefix=f"{uuid.uuid4().hex}.",
        timeout_seconds=20.0,
    )
    try:
        await happen(journal(local))
        await cluster.append(local.messages)
        one, other = await built(journal(local)), await built(journal(cluster))
        assert one == other
        supervised, preference, reliable = one
        assert all(summary.count for summary in one)
        assert len({supervised.digest, preference.digest}) == 2
        assert reliable.left_out.get("unreliable", 0) <= preference.judgements
    finally:
        await cluster.close()
        await local.close()
