"""Views rebuilt in MongoDB while they are read and written."""

import asyncio
import contextlib
import os
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from msgspec import Struct

import projections.hosts.rebuild
from domain.errors import UnknownVersionError
from domain.events import Recorded
from domain.jobs import JOBS
from domain.ports import Changes, Message, Query, Reader, View
from infra.storage import mongo_store
from infra.storage.mongo_store import MongoStore
from infra.storage.sqlite_log import SqliteLog
from projections.audio import AUDIO
from projections.hosts.local import LocalHost
from projections.hosts.rebuild import Comparison, Progress, rebuild
from projections.jobs import STATS
from projections.project import FOLDED_FROM, FOLDS, VIEWS
from tests.bench.read_side import completed, history
from tests.cluster.test_mongo_store import LOOK, folded_locally
from tests.contract.mongo import MongoStoreHarness
from tests.digest import digests
from tests.local.parts import stop

JOB_VIEWS = [view.name for view in (JOBS, AUDIO, STATS)]
OTHERS = [f"{view.name}_v1" for view in VIEWS if view.name not in JOB_VIEWS]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    opened = await SqliteLog.open(tmp_path / "events.db")
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def hosted(log: SqliteLog, store: MongoStore) -> AsyncIterator[LocalHost]:
    host = LocalHost(log, store)
    running = asyncio.create_task(host.run())
    yield host
    await stop(running)


async def collections(store: MongoStore) -> list[str]:
    return sorted(await store._database.list_collection_names())


def assert_equal(comparisons: Sequence[Comparison]) -> None:
    assert [comparison.view for comparison in comparisons] == JOB_VIEWS
    for each in comparisons:
        assert (each.differing, each.apart, each.examples) == (0, 0, ())
        assert each.old_digest == each.new_digest
        assert each.documents


async def test_a_rebuild_under_traffic_switches_without_a_failed_read_or_a_lost_or_doubled_event(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A host on a busy machine is no host that stands still, and its saves take their time.
    monkeypatch.setattr("projections.hosts.rebuild.IDLE_SECONDS", 60)
    monkeypatch.setattr("projections.hosts.rebuild.SETTLING_SECONDS", 1)
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    reader = await mongo.open(VIEWS, look_seconds=LOOK)
    messages = history(10_000, completed)
    await log.append(list(islice(messages, 2_000)))
    chance, reads, quiet = random.Random(3), 0, asyncio.Event()

    async def submit(host: LocalHost) -> None:
        while not quiet.is_set():
            await log.append(list(islice(messages, chance.randrange(1, 30))))
            if chance.random() < 0.3:
                assert await host.caught_up(60)

    async def read() -> None:
        nonlocal reads
        listed = await reader.count(JOBS, Query())
        while not quiet.is_set():
            seen = await reader.count(JOBS, Query())
            assert seen >= listed, "a list that was longer before"
            listed = seen
            page = await reader.find(JOBS, Query(equal={"status": "completed"}, limit=20))
            assert len(page) == 20
            assert len(await reader.get(AUDIO, [made.event.sample_id for made in page[-1].samples])) == 2
            reads += 1

    steps: list[Progress] = []
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
        traffic = [asyncio.create_task(submit(host)), asyncio.create_task(read())]
        for round_ in (2, 3):
            steps.clear()
            assert_equal(await rebuild(log, store, ["jobs"], steps.append))
            assert await collections(store) == sorted(["aliases", *OTHERS, *(f"{v}_v{round_}" for v in JOB_VIEWS)])
            assert [step.folded for step in steps] == sorted(step.folded for step in steps)
            assert steps[-1].folded == steps[-1].total >= 2_000
        await log.append(list(islice(messages, 100)))
        quiet.set()
        await asyncio.gather(*traffic)
        assert reads > 10
        assert await host.caught_up(60)
    assert await digests(store) == await folded_locally(log, tmp_path / "clean.db")


class Owner(Struct, frozen=True):
    id: str
    position: int
    created_at: str


OWNERS = View("owners", Owner)


async def test_a_view_that_is_new_and_light_traffic_hold_saves_only_once_or_twice(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mongo.open(VIEWS)
    messages = history(10_000, completed)
    await log.append(list(islice(messages, 10_000)))
    earlier_version = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cluster.folding"), *(str(tmp_path / "events.db"), mongo.uri, mongo.database)
    )
    fold_jobs, hold, holds = FOLDS["jobs"], MongoStore.hold, 0

    async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
        changes = await fold_jobs(store, batch)
        owners = [
            (OWNERS, Owner(job.id, job.position, job.created_at)) for view, job in changes.saved if view.name == "jobs"
        ]
        return Changes([*owners, *changes.saved])

    async def counted(store: MongoStore) -> None:
        nonlocal holds
        holds += 1
        await hold(store)

    async def submit() -> None:
        while True:
            await log.append(list(islice(messages, 5)))
            await asyncio.sleep(0.1)

    monkeypatch.setitem(FOLDS, "jobs", fold)
    monkeypatch.setitem(FOLDED_FROM, "jobs", (*FOLDED_FROM["jobs"], OWNERS))
    monkeypatch.setattr(MongoStore, "hold", counted)
    monkeypatch.setattr(mongo_store, "HOLD_SECONDS", 1)
    store = await mongo.open([*VIEWS, OWNERS], outdated=True, look_seconds=LOOK)
    traffic = asyncio.create_task(submit())
    try:
        async with asyncio.timeout(60):
            *others, owners = await rebuild(log, store, ["jobs"], lambda _: None)
    finally:
        await stop(traffic)
        earlier_version.kill()
        await earlier_version.wait()
    assert holds <= 3
    assert_equal(others)
    assert (owners.documents, owners.differing) == (0, 0)
    assert owners.apart >= 2_000
    # What the earlier version folds after the switch has no owner.
    assert 2_000 <= len([owner async for owner in store.scan(OWNERS)]) <= await store.count(JOBS, Query())


async def test_a_rebuild_that_is_killed_leaves_the_old_views_serving_and_the_next_clears_up(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    await log.append(list(islice(history(2_000, completed), 10_000)))
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
        before = await digests(store)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.cluster.rebuilding"),
            *(str(tmp_path / "events.db"), mongo.uri, mongo.database),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert int(await process.stdout.readline()) < 10_000
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert "jobs_v2" in await collections(store)
        assert await digests(store) == before
        assert_equal(await rebuild(log, store, ["jobs"], lambda _: None))
        assert await collections(store) == sorted(["aliases", *OTHERS, *(f"{view}_v3" for view in JOB_VIEWS)])
        assert await digests(store) == before


async def test_a_rebuild_says_what_differed_and_mends_it(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    await log.append(list(islice(history(200, completed), 1_000)))
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
        jobs, audio = store._database["jobs_v1"], store._database["audio_v1"]
        wrong = await jobs.find_one({"_id": "0000007"})
        assert wrong
        await jobs.update_one({"_id": "0000007"}, {"$set": {"body": wrong["body"].replace("completed", "failed")}})
        await audio.delete_one({"_id": "0000003-1"})
        found = {each.view: each for each in await rebuild(log, store, ["jobs"], lambda _: None)}
    assert (found["jobs"].differing, found["jobs"].apart, found["jobs"].examples) == (1, 0, ("0000007",))
    assert (found["audio"].differing, found["audio"].apart, found["audio"].examples) == (0, 1, ("0000003-1",))
    assert found["jobs"].old_digest != found["jobs"].new_digest
    assert found["queue_stats"].old_digest == found["queue_stats"].new_digest
    assert await digests(store) == await folded_locally(log, tmp_path / "clean.db")


async def test_views_that_nobody_folded_are_rebuilt_from_the_log_alone(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projections.hosts.rebuild, "IDLE_SECONDS", 0.2)
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    await log.append(list(islice(history(200, completed), 600)))
    found = await rebuild(log, store, ["prompts", "jobs"], lambda _: None)
    assert {each.view: (each.documents, each.apart) for each in found} == {
        "prompts": (0, 0),
        "jobs": (0, 120),
        "audio": (0, 240),
        "queue_stats": (0, 1),
    }
    await log.append(list(islice(history(200, completed), 600, 1_000)))
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
    assert await digests(store) == await folded_locally(log, tmp_path / "clean.db")


async def test_a_rebuild_waits_out_an_outage(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projections.hosts.rebuild, "IDLE_SECONDS", 0.2)
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    assert mongo.proxy is not None
    proxy = mongo.proxy
    await log.append(list(islice(history(1_000, completed), 4_000)))

    def cut(progress: Progress) -> None:
        if progress.folded < 3_000:
            proxy.cut()

    await rebuild(log, store, ["jobs"], cut)
    assert await digests(store) == await folded_locally(log, tmp_path / "clean.db")


async def test_an_event_of_a_newer_version_stops_a_rebuild_and_not_the_views(
    mongo: MongoStoreHarness, log: SqliteLog
) -> None:
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    await log.append(list(islice(history(20, completed), 100)))
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
    before = await digests(store)
    (newer,) = islice(history(20, completed), 1)
    await log.append(
        [Message("jobs", newer.key, newer.value, {**newer.headers, "ce_type": "text2song.job.submitted.v9"})]
    )
    with pytest.raises(UnknownVersionError, match=r"submitted\.v9"):
        await rebuild(log, store, ["jobs"], lambda _: None)
    assert await digests(store) == before
    assert "jobs_v1" in await collections(store)


async def test_the_command_rebuilds_and_shows_what_it_compared(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    store = await mongo.open(VIEWS, look_seconds=LOOK)
    await log.append(list(islice(history(50, completed), 250)))
    async with hosted(log, store) as host:
        assert await host.caught_up(60)
    before = await digests(store)
    uri = mongo.uri.replace("/?", f"/{mongo.database}?")
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.cli", "rebuild", "jobs"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TEXT2SONG_STORE": uri, "TEXT2SONG_DATA": str(tmp_path), "COLUMNS": "120"},
    )
    said = (await command.communicate())[0].decode()
    assert command.returncode == 0, said
    assert "The rebuilt views serve now." in said
    assert re.search(rf"jobs\s+│ {await store.count(JOBS, Query())} +│ 0 +│ 0 ", said), said
    assert await digests(store) == before
    assert f"{JOBS.name}_v2" in await collections(store)
