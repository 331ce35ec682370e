"""The projections under Faust: real workers on a real broker, killed, restarted, and fed what no worker can read.

EVENTS and RESTARTS say how long the long test is, SEED which life each job has and which calls on the store fail.
"""

import asyncio
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupCoordinatorNotAvailableError
from msgspec.structs import replace

from domain import jobs
from domain.envelope import decode, encode
from domain.events import Event
from domain.events.jobs import JobCancelRequested, JobCompleted, JobDeleted, JobStarted
from domain.events.prompts import PromptCreated
from domain.jobs import JOBS, Job
from domain.ports import TICK, Message, TopicPartition
from domain.prompts import PROMPTS
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog, Row
from infra.storage.sqlite_store import SqliteStore
from projections.jobs import STATS
from projections.project import FOLDS, VIEWS
from tests.audit import is_folded, records, replayed
from tests.cluster.projecting import Part
from tests.conditions import eventually
from tests.digest import digests
from tests.history import SUBMITTED, sample
from tests.servers import servers
from workers.reactions import PROGRESS

EVENTS: Final = int(os.environ.get("EVENTS", "4000"))
RESTARTS: Final = int(os.environ.get("RESTARTS", "2"))
SEED: Final = int(os.environ.get("SEED", Random().randrange(10**6)))
PATIENCE: Final = 120.0
TIME: Final = "2026-01-01T00:00:{:09.6f}Z"
PROMPT: Final = encode(
    PromptCreated(prompt_id="prompt-1", text="rain on a tin roof"), event_id="prompt", time=TIME.format(3)
)
STARTED: Final = JobStarted(job_id="job", attempt=1, worker_id="w1")
COMPLETED: Final = JobCompleted(job_id="job", attempt=1)
CANCELLED: Final = JobCancelRequested(job_id="job")
LIVES: Final[list[list[Event]]] = [
    [SUBMITTED],
    [SUBMITTED, STARTED, sample(0), sample(1), COMPLETED],
    [SUBMITTED, STARTED, sample(0), sample(0), sample(1), COMPLETED, JobDeleted(job_id="job")],
    [SUBMITTED, CANCELLED, STARTED, CANCELLED],
    [SUBMITTED, STARTED, replace(STARTED, worker_id="w2"), CANCELLED, sample(0), COMPLETED],
]


class Projections:
    """The log, the views and the processes between them, on topics of their own."""

    def __init__(self, folder: Path, log: KafkaLog, access: KafkaAccess, prefix: str) -> None:
        self.log = log
        self.access = access
        self.part = Part(servers=access.servers, prefix=prefix, views=str(folder / "views.db"))
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, **options: Any) -> asyncio.subprocess.Process:
        part = msgspec.json.encode(replace(self.part, **options)).decode()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.projecting", part, stderr=asyncio.subprocess.PIPE
        )
        self.processes.append(process)
        return process

    async def fold(self) -> dict[str, str]:
        """The views' digests once everything on the log is folded."""
        store = await self.views()
        try:
            await eventually(lambda: is_folded(self.log, store), PATIENCE)
            return await digests(store)
        finally:
            await store.close()

    async def acknowledged(self) -> dict[TopicPartition, int]:
        """What Faust would go on from."""
        async with self.administration() as admin:
            found = await admin.list_consumer_group_offsets(f"{self.part.prefix}projections")
            return {(at.topic.removeprefix(self.part.prefix), at.partition): to.offset for at, to in found.items()}

    async def shares(self) -> list[int]:
        """How many partitions each process has."""
        async with self.administration() as admin:
            try:
                [answer] = await admin.describe_consumer_groups([f"{self.part.prefix}projections"])
            except GroupCoordinatorNotAvailableError:  # no group ever was on this broker
                return []
            [group] = answer.groups
            assigned = [member[-1] for member in group[5] if member[-1]]
            topics = [ConsumerProtocolMemberAssignment.decode(content).assignment for content in assigned]
            return [sum(len(numbers) for _, numbers in share) for share in topics]

    @asynccontextmanager
    async def administration(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.access.servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def views(self) -> SqliteStore:
        return await SqliteStore.open(self.part.views, (*VIEWS, PROGRESS))


async def died(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(PATIENCE):
        _, said = await process.communicate()
    return process.returncode, said.decode()


def lives(count: int, dice: Random) -> list[Message]:
    """Events of jobs whose lives run side by side; some events stand on the log twice, as a retry leaves them."""
    waiting: list[list[tuple[Event, str]]] = []
    messages: list[Message] = []
    while len(messages) < count:
        if len(waiting) < 50:
            job_id = str(uuid.UUID(int=dice.getrandbits(128)))
            life = [replace(event, job_id=job_id) for event in dice.choice(LIVES)]
            waiting.append([(event, f"{job_id}-{number}") for number, event in enumerate(life)])
        current = dice.choice(waiting)
        event, event_id = current[0]
        messages.append(encode(event, event_id=event_id, time=TIME.format(len(messages) * 59 / count)))
        if dice.random() > 0.05:
            current.pop(0)
        if not current:
            waiting.remove(current)
    return messages


def submitted(number: int) -> Message:
    return encode(replace(SUBMITTED, job_id=f"job-{number}"), event_id=f"event-{number}", time=TIME.format(number))


async def append(log: KafkaLog, messages: Sequence[Message]) -> None:
    for start in range(0, len(messages), 500):
        await log.append(messages[start : start + 500])


@pytest.fixture
async def projections(tmp_path: Path) -> AsyncIterator[Projections]:
    access, prefix = KafkaAccess(servers=servers().addresses.kafka), f"{uuid.uuid4().hex}."
    log = await KafkaLog.open(access, prefix=prefix)
    made = Projections(tmp_path, log, access, prefix)
    yield made
    for process in made.processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    await log.close()


async def test_killed_workers_with_a_failing_store_fold_what_a_plain_fold_gives(
    projections: Projections, tmp_path: Path
) -> None:
    print("SEED", SEED)
    dice = Random(SEED)
    messages = lives(EVENTS, dice)
    share = len(messages) // (RESTARTS + 1) + 1
    workers = [await projections.start(instance=f"w{number}", failures=0.05) for number in range(2)]
    for kill in range(RESTARTS + 1):
        await append(projections.log, messages[kill * share : (kill + 1) * share])
        if kill == RESTARTS:
            break
        await asyncio.sleep(dice.uniform(0, 4))
        victim = kill % 2
        workers[victim].kill()
        await workers[victim].communicate()
        workers[victim] = await projections.start(instance=f"w{victim}", failures=0.05)
    assert await projections.fold() == await replayed(projections.log, tmp_path)
    folded: dict[str, Job | None] = {}
    for record in await records(projections.log, "jobs"):
        folded[record.key] = jobs.evolve(folded.get(record.key), decode(record))
    views = await projections.views()
    assert {job.id: job async for job in views.scan(JOBS)} == folded
    counts = Counter[str]()
    async for part in views.scan(STATS):
        counts.update(part.counts)
    assert counts == Counter(job.status for job in folded.values() if job and not job.deleted_at)
    await views.close()


async def test_offsets_without_a_record_are_passed_over(projections: Projections, tmp_path: Path) -> None:
    """Ticks are passed over when they are delivered, and the ends of transactions, which never are, by looking."""
    log, prefix = projections.log, projections.part.prefix
    ticks: list[Row] = [
        ((topic, number), TICK, None, []) for topic in FOLDS for number in range(log.topics[topic].partitions)
    ]
    await append(log, [submitted(number) for number in range(10)])
    await log._append(ticks)
    await projections.start(stall_seconds=2.0)
    await projections.fold()
    await append(log, [submitted(number) for number in range(10, 20)])
    await log._append(ticks)
    await projections.fold()
    stranger = AIOKafkaProducer(bootstrap_servers=projections.access.servers, transactional_id=prefix)
    await stranger.start()
    async with stranger.transaction():
        await stranger.send(f"{prefix}prompts", PROMPT.value, PROMPT.key.encode(), 0)
    await stranger.stop()
    assert await projections.fold() == await replayed(log, tmp_path)


async def test_two_workers_share_the_partitions_and_one_takes_over(projections: Projections, tmp_path: Path) -> None:
    workers = [await projections.start(instance=f"w{number}") for number in range(2)]
    half = sum(projections.log.topics[topic].partitions for topic in FOLDS) // 2

    async def both() -> bool:
        return await projections.shares() == [half, half]

    await eventually(both, PATIENCE)
    await append(projections.log, [submitted(number) for number in range(50)])
    await projections.fold()
    workers[0].send_signal(signal.SIGKILL)
    await append(projections.log, [submitted(number) for number in range(50, 60)])
    await workers[0].communicate()
    async with asyncio.timeout(30):  # a stranger would wait until the session of the one that died is over
        await projections.start(instance="w0")
        assert await projections.fold() == await replayed(projections.log, tmp_path)


async def test_records_that_arrive_while_a_worker_is_given_its_partitions_do_not_stop_it(
    projections: Projections, tmp_path: Path
) -> None:
    await append(projections.log, [submitted(number) for number in range(5)])
    worker = await projections.start(late_seconds=2.0)
    for number in range(40):
        await append(projections.log, [submitted(number)])
        await asyncio.sleep(0.1)
    assert await projections.fold() == await replayed(projections.log, tmp_path)
    assert worker.returncode is None


async def test_two_workers_of_one_name_take_the_partitions_from_each_other_and_lose_nothing(
    projections: Projections, tmp_path: Path
) -> None:
    for _ in range(2):
        await projections.start(instance="twin")
    for share in range(4):
        await append(projections.log, [submitted(number) for number in range(20 * share, 20 * share + 20)])
        await asyncio.sleep(1)
    assert await projections.fold() == await replayed(projections.log, tmp_path)


async def test_records_that_are_no_events_are_kept_aside_and_the_rest_is_folded(projections: Projections) -> None:
    message = submitted(1)
    odd = {
        "jobs": Message("jobs", "job-1", b"\xff no JSON", message.headers),
        "prompts": Message("prompts", "prompt-1", b"[" * 100_000, message.headers),
    }
    await projections.log.append([message, *odd.values()])
    unheard = [replace(each, value=b'{"type":"Unheard"}') for each in odd.values()]
    await projections.log.append([*unheard, submitted(2), PROMPT])
    await projections.start()
    await projections.fold()
    buried = await records(projections.log, "deadletter")
    assert {(record.key.split("/")[0], record.value) for record in buried} == {
        (topic, message.value) for topic, message in odd.items()
    }
    views = await projections.views()
    assert set(await views.get(JOBS, ["job-1", "job-2"])) == {"job-1", "job-2"}
    assert set(await views.get(PROMPTS, ["prompt-1"])) == {"prompt-1"}
    await views.close()


@pytest.mark.parametrize("message", [submitted(1), PROMPT], ids=lambda message: message.topic)
async def test_an_event_of_a_newer_version_stops_the_worker_again_and_again(
    projections: Projections, message: Message
) -> None:
    newer = message.headers["ce_type"].replace(".v1", ".v2")
    [at] = await projections.log.append([message])
    worker = await projections.start()
    await projections.fold()
    await projections.log.append([replace(message, headers={**message.headers, "ce_type": newer})])
    for _ in range(2):
        status, said = await died(worker)
        assert status == os.EX_SOFTWARE
        assert repr(newer) in said
        assert "acknowledges nothing" in said
        worker = await projections.start()
    await died(worker)
    assert (await projections.acknowledged()).get((at.topic, at.partition), 0) <= at.offset + 1
    views = await projections.views()
    assert (await views.watermarks())[at.topic, at.partition] == at.offset + 1
    await views.close()


async def test_a_bug_stops_the_worker_and_the_next_one_folds_the_same_records(
    projections: Projections, tmp_path: Path
) -> None:
    await append(projections.log, [submitted(number) for number in range(20)])
    status, said = await died(await projections.start(fault="bug"))
    assert (status, "TypeError: a bug" in said) == (os.EX_SOFTWARE, True)
    assert not await projections.acknowledged()
    await projections.start()
    assert await projections.fold() == await replayed(projections.log, tmp_path)


async def test_a_worker_that_hangs_ends_itself(projections: Projections) -> None:
    await append(projections.log, [submitted(1)])
    status, said = await died(await projections.start(fault="hang", stall_seconds=2.0))
    assert status == os.EX_SOFTWARE
    assert "has waited at offset 0" in said


async def test_views_that_were_lost_are_folded_again_though_all_was_acknowledged(
    projections: Projections, tmp_path: Path
) -> None:
    await append(projections.log, [submitted(number) for number in range(40)])
    worker = await projections.start()
    before = await projections.fold()

    async def all_acknowledged() -> bool:
        return sum((await projections.acknowledged()).values()) == 40

    await eventually(all_acknowledged)
    worker.kill()
    await died(worker)
    for file in list(tmp_path.glob("views.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    await projections.start()
    assert await projections.fold() == before


async def test_a_worker_that_is_told_to_stop_has_acknowledged_what_it_folded(projections: Projections) -> None:
    worker = await projections.start()
    await append(projections.log, [submitted(number) for number in range(40)])
    await projections.fold()
    worker.terminate()
    status, said = await died(worker)
    assert status == 0, said
    assert sum((await projections.acknowledged()).values()) == 40


async def test_views_of_another_log_are_refused(projections: Projections) -> None:
    views = await projections.views()
    await views.save([], {("jobs", 2): 7})
    await views.close()
    status, said = await died(await projections.start())
    assert status == os.EX_SOFTWARE
    assert "folded more of jobs than the log holds" in said


async def test_a_worker_started_before_the_broker_waits_for_it(projections: Projections, tmp_path: Path) -> None:
    await append(projections.log, [submitted(number) for number in range(5)])
    await asyncio.to_thread(servers().kill, "kafka")
    worker = await projections.start()
    assert worker.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while b"Start Kafka, or correct the address" not in await worker.stderr.readline():
            assert worker.returncode is None
    await asyncio.to_thread(servers().start, "kafka")
    assert await projections.fold() == await replayed(projections.log, tmp_path)


async def test_plain_faust_runs_the_same_host_from_the_settings(projections: Projections, tmp_path: Path) -> None:
    await append(projections.log, [submitted(number) for number in range(5)])
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faust", "-A", "infra.faust_app", "worker", "--without-web"),
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "TEXT2SONG_LOG": f"kafka://{projections.access.servers}",
            "TEXT2SONG_KAFKA_PREFIX": projections.part.prefix,
            "TEXT2SONG_DATA": str(tmp_path),
        },
    )
    projections.processes.append(worker)
    assert await projections.fold() == await replayed(projections.log, tmp_path)
    worker.terminate()
    status, said = await died(worker)
    assert status == 0, said
