"""The views against a real store: redelivery, crashes between writes, damage, and a rebuild."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import jobs
from domain.envelope import decode, encode
from domain.errors import ConflictError, UnavailableError, UnknownVersionError
from domain.events import Event
from domain.events.jobs import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobStarted,
)
from domain.events.prompts import PromptCreated
from domain.jobs import JOBS, Job
from domain.ports import D, Document, Erasure, Message, Position, Record, TopicPartition, View
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.audio import AUDIO
from projections.hosts.local import LocalHost
from projections.jobs import STATS
from projections.project import VIEWS, project
from tests.conditions import eventually
from tests.digest import digests
from tests.history import SUBMITTED, sample
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts, stop, submission
from workers.reactions import PROGRESS

STARTED = JobStarted(job_id="job", attempt=1, worker_id="w1")
LATER = "2026-01-02T00:00:00.000000Z"
EVENTS: list[Event] = [
    SUBMITTED,
    STARTED,
    JobStarted(job_id="job", attempt=2, worker_id="w2"),
    *(sample(index, attempt) for index in (0, 1) for attempt in (1, 2)),
    *(JobCompleted(job_id="job", attempt=attempt) for attempt in (1, 2)),
    JobAttemptFailed(job_id="job", attempt=1, error="out of memory", retry_at=LATER),
    JobFailed(job_id="job", attempt=1, error="no such key"),
    JobCancelRequested(job_id="job"),
    JobCancelled(job_id="job", worker_id="w1"),
    JobDeleted(job_id="job"),
]
LIVES: list[list[Event]] = [
    [SUBMITTED, STARTED, sample(0), sample(1), JobCompleted(job_id="job", attempt=1), JobDeleted(job_id="job")],
    [SUBMITTED, STARTED, sample(0), JobCancelRequested(job_id="job"), JobCancelled(job_id="job", worker_id="w1")],
    [SUBMITTED, STARTED, sample(0), JobStarted(job_id="job", attempt=2, worker_id="w2"), sample(1, 2)],
]


def records(events: Sequence[Event]) -> list[Record]:
    """One partition's records, a second apart."""
    made = []
    for offset, event in enumerate(events):
        time = f"2026-01-01T00:{offset // 60:02}:{offset % 60:02}.000000Z"
        message = encode(event, event_id=f"event-{offset}", time=time)
        made.append(Record(Position("jobs", 0, offset), message.key, message.value, message.headers))
    return made


class CrashingStore(SqliteStore):
    """Saves in order and stops for good in the middle of a save, as a process that dies between two writes does."""

    writes_left = 10**9

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        for document in documents:
            if not self.writes_left:
                raise UnavailableError("The store stopped.")
            self.writes_left -= 1
            await super().save([document], {})
        await super().save([], watermarks, erased)


class SharedStore(SqliteStore):
    """Between its reads, a host that has lost the partition and does not know it yet saves its last batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        found = await super().get(view, ids)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    opened = await SqliteLog.open(tmp_path / "events.db")
    yield opened
    await opened.close()


async def folded(log: SqliteLog, path: Path, batches: Sequence[Sequence[Record]]) -> dict[str, str]:
    store = await SqliteStore.open(path, VIEWS)
    try:
        for batch in batches:
            await project(log, store, batch)
        return await digests(store)
    finally:
        await store.close()


histories = st.one_of(
    st.lists(st.sampled_from(EVENTS), max_size=12).map(lambda events: [SUBMITTED, *events]), st.sampled_from(LIVES)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=histories, data=st.data())
def test_redelivery_in_any_batches_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], data: st.DataObject
) -> None:
    history = records(events)
    starts = data.draw(st.lists(st.integers(0, len(history)), max_size=4).map(sorted))
    overlapping = [history[:start] for start in starts] + [history[start:] for start in starts] + [history]

    async def compare() -> None:
        folder = tmp_path_factory.mktemp("redelivery")
        log = await SqliteLog.open(folder / "events.db")
        once = await folded(log, folder / "once.db", [history])
        one_by_one = await folded(log, folder / "single.db", [[record] for record in history])
        again = await folded(log, folder / "again.db", [batch for batch in overlapping if batch])
        await log.close()
        assert once == one_by_one == again

    asyncio.run(compare())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=histories, cut=st.integers(0, 8), batch=st.integers(1, 6))
def test_a_crash_between_two_writes_costs_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], cut: int, batch: int
) -> None:
    history = records(events)
    batches = [history[start : start + batch] for start in range(0, len(history), batch)]

    async def compare() -> None:
        folder = tmp_path_factory.mktemp("crash")
        log = await SqliteLog.open(folder / "events.db")
        store = await CrashingStore.open(folder / "crashed.db", VIEWS)
        store.writes_left = cut
        for records in batches:
            try:
                await project(log, store, records)
            except UnavailableError:
                store.writes_left = 10**9
                await project(log, store, records)
        crashed = await digests(store)
        await store.close()
        assert crashed == await folded(log, folder / "clean.db", batches)
        await log.close()

    asyncio.run(compare())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=histories, cut=st.integers(1, 8))
def test_two_hosts_that_fold_one_partition_at_a_time_agree(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], cut: int
) -> None:
    history = records(events)

    async def compare() -> None:
        folder = tmp_path_factory.mktemp("two")
        log = await SqliteLog.open(folder / "events.db")
        store = await SharedStore.open(folder / "shared.db", VIEWS)
        store.meanwhile = partial(project, log, store, history[:cut])
        await project(log, store, history)
        shared = await digests(store)
        await store.close()
        assert shared == await folded(log, folder / "clean.db", [history])
        await log.close()

    asyncio.run(compare())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=histories)
def test_the_statistics_are_those_of_the_jobs(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    async def compare() -> None:
        folder = tmp_path_factory.mktemp("stats")
        log = await SqliteLog.open(folder / "events.db")
        store = await SqliteStore.open(folder / "views.db", VIEWS)
        await project(log, store, records(events))
        found = [job async for job in store.scan(JOBS) if not job.deleted_at]
        (stats,) = [part async for part in store.scan(STATS)]
        assert stats.counts == Counter(job.status for job in found)
        assert sum(stats.completions.values()) == stats.counts.get("completed", 0)
        audible = {made.event.sample_id for job in found for made in job.audible}
        assert {audio.id async for audio in store.scan(AUDIO) if not audio.hidden} == audible
        await store.close()
        await log.close()

    asyncio.run(compare())


@pytest.mark.parametrize("value", [b'{"type":"JobPraised","job_id":"job"}', b"\x00 not JSON"])
async def test_a_record_of_a_far_year_that_is_no_event_costs_no_completion(
    log: SqliteLog, tmp_path: Path, value: bytes
) -> None:
    store = await SqliteStore.open(tmp_path / "views.db", VIEWS)
    history = records(LIVES[0][:-1])
    far = {"ce_id": "far", "ce_time": "9999-01-01T00:00:00.000000Z"}
    await project(log, store, [*history, Record(Position("jobs", 0, len(history)), "job", value, far)])
    (stats,) = [part async for part in store.scan(STATS)]
    await store.close()
    assert stats.completions == {"2026-01-01T00:00": 1}


async def test_a_job_deleted_long_after_it_completed_leaves_no_count_below_zero(log: SqliteLog, tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "views.db", VIEWS)
    *completed, deleted = LIVES[0]
    late = [
        submission("late"),
        JobStarted(job_id="late", attempt=1, worker_id="w1"),
        *(sample(index, job_id="late", sample_id=f"late-{index}") for index in (0, 1)),
        JobCompleted(job_id="late", attempt=1),
    ]
    history: list[Record] = []
    for hour, events in ((0, completed), (3, late), (4, [deleted])):
        for event in events:
            number = len(history)
            message = encode(event, event_id=f"event-{number}", time=f"2026-01-01T{hour:02}:00:00.000000Z")
            history.append(Record(Position("jobs", 0, number), message.key, message.value, message.headers))
    for record in history:
        await project(log, store, [record])
    (stats,) = [part async for part in store.scan(STATS)]
    await store.close()
    assert stats.completions == {"2026-01-01T03:00": 1}


async def test_deleting_the_read_store_rebuilds_it_identically(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        async with parts.working(ScriptedEngine(), ScriptedEngine()):
            for number in range(12):
                await parts.submit(f"j{number}")
            await parts.journal.append(JobCancelRequested(job_id="j10"), JobDeleted(job_id="j11"))
            for number in range(10):
                await parts.when(f"j{number}", "completed")
            await parts.when("j10", "cancelled", "completed")
        await parts.journal.append(PromptCreated(prompt_id="p1", text="rain"))
        assert await parts.host.caught_up(10)
        before = await digests(parts.store)
    for file in list(tmp_path.glob("views.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    async with open_parts(tmp_path) as parts:
        assert await parts.host.caught_up(10)
        assert await digests(parts.store) == before


async def test_damage_goes_to_the_dead_letters_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    damage = Message("jobs", "j1", b"\x00 not JSON", {"ce_id": "broken", "ce_type": "text2song.job.started.v1"})
    async with open_parts(tmp_path) as parts:
        await parts.submit("j1")
        (position,) = await parts.log.append([damage])
        await parts.journal.append(JobCancelRequested(job_id="j1"))
        job = await parts.when("j1", "cancelled")
        assert job.suspect
        assert [outcome.reason is None for outcome in job.outcomes] == [True, False, True]
        assert (await parts.http.get("/jobs/j1")).json()["suspect"] is True
    for file in list(tmp_path.glob("views.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    async with open_parts(tmp_path) as parts:
        assert await parts.host.caught_up(10)
        (buried,) = await parts.log.read("deadletter", 0, 0)
        assert (buried.key, buried.value) == (str(position), damage.value)
        assert buried.headers["deadletter_key"] == "j1"
        assert buried.headers["deadletter_error"]
        assert buried.headers["ce_id"] == "broken"


async def test_damage_too_large_to_stand_twice_is_noted_without_its_bytes(parts: Parts) -> None:
    headers = {"ce_type": "text2song.job.started.v1", "ce_time": LATER}
    (position,) = await parts.log.append([Message("jobs", "j1", b"\x00" * 999_900, headers)])
    await parts.submit("j1")
    await parts.when("j1", "queued")
    (buried,) = await parts.log.read("deadletter", 0, 0)
    assert (buried.key, buried.value) == (str(position), b"")


async def test_a_key_that_no_aggregate_has_stops_no_view_and_is_looked_up_nowhere(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = parts.store.get

    async def noted(view: View[Any], keys: Sequence[str]) -> Any:
        asked.extend(keys)
        return await get(view, keys)

    monkeypatch.setattr(parts.store, "get", noted)
    long = "k" * 999_900
    headers = {"ce_type": "text2song.job.started.v1", "ce_time": LATER}
    (position,) = await parts.log.append([Message("jobs", long, b"{", headers)])
    await parts.log.append([Message("feedback", long, None, {}), Message("jobs", long, b'{"type": "JobPraised"}', {})])
    await parts.submit("j1")
    await parts.when("j1", "queued")
    buried, _ = await parts.log.read("deadletter", 0, 0)
    assert (buried.key, buried.value) == (str(position), b"")
    assert buried.headers["deadletter_key"] == long[:1_000]
    assert "j1" in asked
    assert max(map(len, asked)) <= 200


async def test_an_empty_log_counts_as_folded_only_once_the_host_has_looked(parts: Parts) -> None:
    host = LocalHost(parts.log, parts.store)
    assert not await host.caught_up(0.05)
    running = asyncio.create_task(host.run())
    assert await host.caught_up(10)
    assert host.ready
    await stop(running)


async def test_nothing_is_answered_before_the_views_have_caught_up(parts: Parts, tmp_path: Path) -> None:
    await parts.submit("j1")
    await parts.when("j1", "queued")
    other = await SqliteStore.open(tmp_path / "other.db", VIEWS)
    fresh = Parts(tmp_path, parts.log, other, parts.objects)
    early = await fresh.http.get("/jobs/j1")
    assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
    assert (await fresh.http.get("/health/live")).status_code == 200
    running = [asyncio.create_task(part.run()) for part in (fresh.host, fresh.services.feed)]
    assert await fresh.host.caught_up(10)
    await eventually(lambda: asyncio.sleep(0, fresh.services.tail.is_complete))
    for path in ("/jobs/j1", "/jobs"):
        assert (await fresh.http.get(path)).status_code == 200
    await stop(*running)
    await fresh.http.aclose()
    await other.close()


async def test_offsets_that_hold_no_record_hold_nobody_up(tmp_path: Path) -> None:
    """Ticks, compaction and transactions leave such offsets on Kafka; here they are those of records taken away."""
    async with open_parts(tmp_path) as parts:
        await parts.journal.append(*(submission(f"gone-{number}") for number in range(20)))
        ends = await parts.log.ends("jobs")
        assert all(ends.values())
    connection = apsw.Connection(str(tmp_path / "events.db"))
    for number in ends:
        connection.execute(f'DELETE FROM "jobs/{number}"')  # noqa: S608
    connection.close()
    for file in list(tmp_path.glob("views.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    async with open_parts(tmp_path) as parts, parts.working(ScriptedEngine()):
        assert {at: end for (topic, at), end in (await parts.store.watermarks()).items() if topic == "jobs"} == ends
        assert parts.services.tail.is_complete
        assert (await parts.http.get("/jobs")).json()["total"] == 0
        await parts.submit("j1")
        await parts.when("j1", "completed")


async def test_views_of_another_log_are_refused(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        await parts.submit("j1")
        assert await parts.host.caught_up(5)
    for file in list(tmp_path.glob("events.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    log = await SqliteLog.open(tmp_path / "events.db")
    store = await SqliteStore.open(tmp_path / "views.db", (*VIEWS, PROGRESS))
    with pytest.raises(ConflictError, match="than the log holds"):
        await LocalHost(log, store).run()
    await store.close()
    await log.close()


async def test_an_event_of_a_newer_version_stops_the_host_loudly(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        await parts.submit("j1")
        await parts.when("j1", "queued")
        before = await parts.store.watermarks()
    message = encode(STARTED, event_id="x", time=LATER)
    newer = Message("jobs", "j1", message.value, {**message.headers, "ce_type": "text2song.job.started.v2"})
    log = await SqliteLog.open(tmp_path / "events.db")
    store = await SqliteStore.open(tmp_path / "views.db", (*VIEWS, PROGRESS))
    await log.append([newer])
    parts = Parts(tmp_path, log, store, parts.objects)
    with pytest.raises(UnknownVersionError, match=r"text2song.job.started.v2"):
        async with asyncio.timeout(10):
            await parts.host.run()
    assert await store.watermarks() == before
    await parts.http.aclose()
    await store.close()
    await log.close()


async def test_every_reader_folds_the_same_job(parts: Parts) -> None:
    """What the worker folds from the log is what the views show."""
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1")
        shown = await parts.when("j1", "completed")
    folded: Job | None = None
    for record in await parts.log.read("jobs", shown.partition, 0):
        folded = jobs.evolve(folded, decode(record))
    assert folded == shown


async def test_a_submission_carries_all_that_a_worker_needs(parts: Parts) -> None:
    """A job whose prompt nobody ever stored runs all the same."""
    engine = ScriptedEngine()
    async with parts.working(engine):
        await parts.submit("j1", prompt_id="never-stored", prompt="only here")
        await parts.when("j1", "completed")
    assert engine.requests[0].prompt == "only here"
