"""A deleted job's feedback on the real servers: gone from MongoDB's documents and Kafka's segments."""

import asyncio
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from uuid_utils import uuid7

from domain.aggregates import TOPICS
from domain.events import timestamp
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot
from domain.events.jobs import JobDeleted
from domain.feedback import FEEDBACK
from domain.journal import Journal
from domain.ports import Query
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from projections.hosts.local import LocalHost
from projections.hosts.rebuild import rebuild
from projections.project import FOLDED_FROM, FOLDS, VIEWS
from tests.cluster.test_mongo_store import LOOK
from tests.conditions import eventually
from tests.contract.mongo import MongoStoreHarness
from tests.digest import digests
from tests.local.parts import stop, submission
from tests.servers import servers
from workers.feedback import ErasureOfFeedback
from workers.reactions import PROGRESS, Reactions

PATIENCE = 90.0


def given(number: int, job_id: str, other: str | None = None) -> FeedbackGiven:
    sample, *others = [
        SampleSnapshot(audio_id=f"audio-of-{each}", job_id=each, prompt_id="prompt", model_id="model")
        for each in (job_id, other)
        if each is not None
    ]
    return FeedbackGiven(
        feedback_id=f"feedback-{number}",
        sample=sample,
        other=others[0] if others else None,
        verdict="tie" if others else None,
        rating=3.0,
        notes=f"<{job_id} and {other}>",
    )


async def test_erased_bytes_are_in_no_document_and_in_no_segment_and_a_rebuild_shows_the_same(
    mongo: MongoStoreHarness,
) -> None:
    there = servers()
    prefix = f"{uuid.uuid4().hex}."
    log = await KafkaLog.open(
        KafkaAccess(servers=there.addresses.kafka),
        {name: TOPICS[name] for name in FOLDS},
        prefix=prefix,
        timeout_seconds=20.0,
        erase_seconds=1.0,
    )
    store = await mongo.open((*VIEWS, PROGRESS), look_seconds=LOOK)
    journal, host = Journal(log, lambda: timestamp(datetime.now(UTC)), lambda: str(uuid7())), LocalHost(log, store)
    reactions = Reactions(journal, store, host, [ErasureOfFeedback(journal, store, host)])
    tasks = [asyncio.create_task(work) for work in (host.run(), reactions.run())]
    try:
        await journal.append(submission("gone"), submission("kept"))
        await journal.append(
            *(given(number, *jobs) for number, jobs in enumerate([("gone",), ("kept", "gone"), ("gone", "kept")])),
            given(10, "kept"),
        )
        await journal.append(JobDeleted(job_id="gone"))
        await journal.append(given(3, "gone"))  # by somebody who has not heard of it

        async def left() -> list[str]:
            return sorted([each.id async for each in store.scan(FEEDBACK)])

        async def is_erased() -> bool:
            return await left() == ["feedback-10"]

        async def notes() -> set[bytes]:
            return await asyncio.to_thread(in_segments, there.folder / "kafka", prefix)

        async def is_compacted() -> bool:
            return await notes() == {b"<kept and None>"}

        await eventually(is_erased, PATIENCE)
        await eventually(is_compacted, PATIENCE)
        assert await is_erased()
        rows = [row async for row in store._database["feedback_v1"].find()]
        assert [row["_id"] for row in rows if row.get("body")] == ["feedback-10"]
        assert await host.caught_up(PATIENCE)
        before = await digests(store)
        compared = await rebuild(log, store, [*FOLDED_FROM], lambda _: None)
        assert not [each.view for each in compared if each.differing or each.apart]
        assert await digests(store) == before
        assert [each.id for each in await store.find(FEEDBACK, Query())] == ["feedback-10"]
        partitions = range(TOPICS["jobs"].partitions)
        assert await store.get(PROGRESS, [f"erase-feedback/jobs/{number}" for number in partitions])
    finally:
        await stop(*tasks)
        await log.close()


def in_segments(data: Path, prefix: str) -> set[bytes]:
    """The notes in the files of the topic's partitions."""
    found = set[bytes]()
    for path in data.rglob(f"{prefix}{TOPIC.name}-*/*.log"):
        with suppress(FileNotFoundError):  # the cleaner is at work
            found |= {part.split(b'"')[0] for part in path.read_bytes().split(b'"notes":"')[1:]}
    return found
