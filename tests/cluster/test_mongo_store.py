"""What is true of the read store because it is MongoDB."""

import asyncio
import random
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from pymongo import AsyncMongoClient

from domain.errors import ConflictError, TooLargeError, UnavailableError
from domain.ports import Position, Query, Record, View
from infra.storage import mongo_store
from infra.storage.mongo_store import MongoStore
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.hosts.local import LocalHost
from projections.project import VIEWS, project
from tests.bench.read_side import cancelled, completed, history, placed
from tests.conditions import eventually
from tests.contract.mongo import MongoStoreHarness
from tests.digest import digests
from tests.local.parts import stop
from tests.servers import servers


class Song(Struct, frozen=True, kw_only=True):
    id: str
    position: int = 1
    created_at: str = "2026-01-01"
    genre: str = "rock"
    text: str = ""
    notes: Mapping[str, Any] = {}


class LongerSong(Song, frozen=True, kw_only=True):
    length: float = 0.0


def view(document: type[Song] = Song, filters: tuple[str, ...] = ("genre", "text")) -> View[Any]:
    return View("songs", document, lambda song: {"genre": song.genre, "text": song.text}, filters)


LOOK = 0.1
SONGS = view()
KEYS = st.text(max_size=4) | st.sampled_from(["", ".", "$set", "a.b", "$$ROOT", "_id", "\0"])
NUMBERS = st.integers(-(2**70), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
NOTES = st.dictionaries(
    KEYS, st.recursive(st.none() | st.booleans() | NUMBERS | KEYS, st.lists, max_leaves=4), max_size=4
)


@pytest.fixture
async def store(mongo: MongoStoreHarness) -> MongoStore:
    return await mongo.open([SONGS], look_seconds=LOOK)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    opened = await SqliteLog.open(tmp_path / "events.db")
    yield opened
    await opened.close()


@asynccontextmanager
async def local(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, VIEWS)
    yield store
    await store.close()


async def folded_locally(log: SqliteLog, path: Path) -> dict[str, str]:
    async with local(path) as store:
        host = LocalHost(log, store)
        running = asyncio.create_task(host.run())
        assert await host.caught_up(60)
        await stop(running)
        return await digests(store)


async def test_a_history_folds_to_the_same_documents_as_in_a_file(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    """Two hosts own two partitions each, and a third, thought dead, writes all of them once more."""
    records = list(placed(islice(history(200, completed), 900))) + list(placed(history(40, cancelled)))
    records = [
        Record(Position("jobs", r.position.partition, n), r.key, r.value, r.headers) for n, r in enumerate(records)
    ]

    async def host(store: MongoStore, *partitions: int) -> None:
        own = [record for record in records if record.position.partition in partitions]
        for first in range(0, len(own), 70):
            await project(log, store, own[first : first + 70])

    async with local(tmp_path / "views.db") as clean:
        await project(log, clean, records)
        store, second, third = [await mongo.open(VIEWS) for _ in range(3)]
        await asyncio.gather(host(store, 0, 1), host(second, 2, 3), host(third, 0, 1, 2, 3))
        assert await digests(store) == await digests(clean)
        assert await store.watermarks() == await clean.watermarks()


async def test_a_host_that_is_killed_again_and_again_loses_and_doubles_nothing(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    store = await mongo.open(VIEWS)
    chance = random.Random(5)
    messages = history(2_000, completed)
    for kills in range(4):
        await log.append(list(islice(messages, 1_500)))
        before = sum((await store.watermarks()).values())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.folding", str(tmp_path / "events.db"), mongo.uri, mongo.database
        )

        async def moved(before: int = before) -> bool:
            return sum((await store.watermarks()).values()) > before

        await eventually(moved)
        await asyncio.sleep(chance.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL, kills
    host = LocalHost(log, store)
    running = asyncio.create_task(host.run())
    assert await host.caught_up(60)
    await stop(running)
    assert await digests(store) == await folded_locally(log, tmp_path / "views.db")


async def test_a_server_that_is_killed_in_the_middle_of_writes_costs_nothing(
    mongo: MongoStoreHarness, log: SqliteLog, tmp_path: Path
) -> None:
    store = await mongo.open(VIEWS)
    host = LocalHost(log, store)
    running = asyncio.create_task(host.run())
    messages = history(600, completed)
    for _ in range(2):
        for _ in range(10):
            await log.append(list(islice(messages, 100)))
        await asyncio.to_thread(servers().kill, "mongo")
        await log.append(list(islice(messages, 100)))
        await asyncio.to_thread(servers().start, "mongo")
    assert await host.caught_up(120), (running, host.offsets)
    await stop(running)
    assert await digests(store) == await folded_locally(log, tmp_path / "views.db")


async def test_an_outage_is_said_in_a_sentence_and_then_forgotten(
    mongo: MongoStoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_store, "TIMEOUT_SECONDS", 1.0)
    store = await mongo.open([SONGS])
    assert mongo.proxy is not None
    mongo.proxy.down = True
    mongo.proxy.cut()
    for attempt in (store.get(SONGS, ["a"]), store.save([(SONGS, Song(id="a"))], {}), store.watermarks()):
        with pytest.raises(UnavailableError, match=f"{mongo.proxy.address} does not answer"):
            await attempt
    with pytest.raises(UnavailableError, match=mongo.proxy.address):
        await mongo.open([SONGS])
    mongo.proxy.down = False
    await store.save([(SONGS, Song(id="a"))], {})
    assert await store.get(SONGS, ["a"]) == {"a": Song(id="a")}


async def test_a_wrong_password_is_named_and_never_shown(mongo: MongoStoreHarness) -> None:
    uri = mongo.uri.replace("mongodb://", "mongodb://singer:hunter2@")
    with pytest.raises(UnavailableError, match="user and password") as raised:
        await MongoStore.open(uri, mongo.database, [SONGS])
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(ValueError, match="cannot be used"):
        await MongoStore.open("http://singer:hunter2@there", mongo.database, [SONGS])


async def test_a_refusal_shows_no_document(store: MongoStore) -> None:
    await store._database.command({"collMod": "songs_v1", "validator": {"position": {"$lt": 5}}})
    with pytest.raises(UnavailableError, match="121") as raised:
        await store.save(
            [(SONGS, Song(id=f"{n}", position=n, text="a secret prompt")) for n in range(9)], {("jobs", 0): 9}
        )
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    assert await store.watermarks() == {}


async def test_none_of_three_thousand_races_is_lost(mongo: MongoStoreHarness) -> None:
    stores = [await mongo.open([SONGS]) for _ in range(3)]
    for first in range(0, 3_000, 50):
        orders = {f"{number:04}": random.Random(number).sample(range(3), 3) for number in range(first, first + 50)}
        await asyncio.gather(
            *(
                each.save([(SONGS, Song(id=key, position=at[n], text=f"{at[n]}")) for key, at in orders.items()], {})
                for n, each in enumerate(stores)
            )
        )
    expected = [Song(id=f"{number:04}", position=2, text="2") for number in range(3_000)]
    assert [song async for song in stores[0].scan(SONGS)] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(notes=NOTES, text=st.text(max_size=5), position=st.integers(0, 2**63 - 1))
async def test_whatever_json_can_say_comes_back_as_it_was(
    store: MongoStore, notes: Mapping[str, Any], text: str, position: int
) -> None:
    song = Song(id=f"{text}$.{len(notes)}", position=position, text=text, notes=notes)
    await store._database["songs_v1"].delete_many({})
    await store.save([(SONGS, song)], {})
    assert await store.get(SONGS, [song.id]) == {song.id: song}
    assert await store.find(SONGS, Query(equal={"text": text})) == [song]


async def test_what_mongodb_cannot_hold_is_refused(store: MongoStore) -> None:
    for song in (Song(id="a", position=2**63), Song(id="a", text="x" * 17_000_000)):
        with pytest.raises(TooLargeError, match="takes no document over 16 MiB"):
            await store.save([(SONGS, song)], {})
    assert await store.get(SONGS, ["a"]) == {}


@pytest.mark.parametrize("equal", [{}, {"genre": "rock"}, {"text": "7"}, {"genre": "rock", "text": "7"}])
async def test_every_list_walks_an_index_and_a_deep_page_costs_what_the_first_does(
    store: MongoStore, equal: dict[str, str]
) -> None:
    songs = [Song(id=f"{n:05}", created_at=f"2026-01-01T{n // 3:05}", text=f"{n % 10}") for n in range(6_000)]
    await store.save([(SONGS, song) for song in songs], {})
    deep = [song for song in songs if equal.get("text", song.text) == song.text][len(songs) // 20]
    for start, end, after, hide in product(
        (None, "2025"), (None, "2027"), (None, (deep.created_at, deep.id)), (False, True)
    ):
        query = Query(equal=equal, start=start, end=end, after=after, hidden=hide, limit=20)
        matching, options = store._listing(SONGS, query)
        find = {"find": "songs_v1", "filter": matching, "sort": dict(options["sort"]), "limit": options["limit"]}
        explained = await store._database.command({"explain": find, "verbosity": "executionStats"})
        stages = [stage for plan in found(explained, "winningPlan") for stage in found(plan, "stage")]
        assert "IXSCAN" in stages, stages
        assert not {"SORT", "COLLSCAN"} & set(stages), stages
        (examined,) = found(explained, "totalKeysExamined")
        assert examined <= (50 if len(equal) < 2 else 250)
        assert len(await store.find(SONGS, query)) == (0 if hide else 20)


async def test_a_count_fetches_no_document(store: MongoStore) -> None:
    await store.save([(SONGS, Song(id=f"{n}")) for n in range(100)], {})
    pipeline = [
        {"$match": store._matching(SONGS, Query(equal={"genre": "rock"}))},
        {"$group": {"_id": 1, "n": {"$sum": 1}}},
    ]
    count = {"aggregate": "songs_v1", "pipeline": pipeline, "cursor": {}}
    explained = await store._database.command({"explain": count, "verbosity": "executionStats"})
    assert found(explained, "totalDocsExamined") == [0]


async def test_a_switch_moves_readers_and_writers_to_the_rebuilt_views(
    mongo: MongoStoreHarness, store: MongoStore
) -> None:
    reader = await mongo.open([SONGS], look_seconds=LOOK)
    await store.save([(SONGS, Song(id="a", text="old"))], {("jobs", 0): 2, ("prompts", 0): 5})
    batch = store.pinned()
    read = await batch.get(SONGS, ["a"])
    rebuilt = await store.begin_rebuild([SONGS])
    assert await rebuilt.watermarks() == {}
    await rebuilt.save([(SONGS, Song(id="a", text="new"))], {("jobs", 0): 2})
    assert (await reader.get(SONGS, ["a"]))["a"].text == "old"
    assert not await store.switch(rebuilt, {("jobs", 0): 1, ("prompts", 0): 5})
    assert await store.switch(rebuilt, {("jobs", 0): 2, ("prompts", 0): 5})
    assert await store.switch(rebuilt, {}), "saying it twice changes nothing"
    with pytest.raises(UnavailableError, match="switched"):
        await batch.save([(SONGS, Song(id="a", position=2, text=read["a"].text))], {("jobs", 0): 3})
    assert await store.watermarks() == {("jobs", 0): 2, ("prompts", 0): 5}

    async def is_new() -> bool:
        return [song.text for song in (await reader.get(SONGS, ["a"])).values()] == ["new"]

    await eventually(is_new)
    await store.drop_unused()
    assert sorted(await store._database.list_collection_names()) == ["aliases", "songs_v2"]
    await store.save([(SONGS, Song(id="a", position=2, text="newer"))], {("jobs", 0): 3})
    assert (await reader.get(SONGS, ["a"]))["a"].text == "newer"


async def test_who_has_seen_a_position_reads_where_it_was_folded(mongo: MongoStoreHarness, store: MongoStore) -> None:
    reader = await mongo.open([SONGS], look_seconds=60)
    assert await reader.get(SONGS, ["a"]) == {}
    rebuilt = await store.begin_rebuild([SONGS])
    assert await store.switch(rebuilt, {})
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    assert await reader.watermarks() == {("jobs", 0): 1}
    assert await reader.get(SONGS, ["a"]) == {"a": Song(id="a")}


async def test_while_held_no_save_begins_and_a_dead_rebuild_does_not_hold_for_long(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_store, "HOLD_SECONDS", 1)
    await store.hold()
    saving = asyncio.create_task(store.save([(SONGS, Song(id="a"))], {}))
    assert await store.get(SONGS, ["a"]) == {}
    assert not saving.done()
    async with asyncio.timeout(20):
        await saving
    assert await store.get(SONGS, ["a"]) == {"a": Song(id="a")}


async def test_the_newest_rebuild_goes_on_and_the_earlier_gives_way(store: MongoStore) -> None:
    earlier = await store.begin_rebuild([SONGS])
    newest = await store.begin_rebuild([SONGS])
    with pytest.raises(ConflictError, match="Another rebuild"):
        await earlier.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    with pytest.raises(ConflictError, match="Another rebuild"):
        await store.switch(earlier, {})
    assert await newest.watermarks() == {}
    await newest.save([(SONGS, Song(id="b"))], {("jobs", 0): 1})
    assert await store.switch(newest, {})
    await store.drop_unused()
    assert [song.id async for song in store.scan(SONGS)] == ["b"]
    assert sorted(await store._database.list_collection_names()) == ["aliases", "songs_v3"]


@pytest.mark.parametrize("other", [view(LongerSong), view(filters=("genre",))], ids=["document", "filters"])
async def test_views_of_other_definitions_are_refused_until_they_are_rebuilt(
    mongo: MongoStoreHarness, store: MongoStore, other: View[Any]
) -> None:
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    with pytest.raises(UnavailableError, match="text2song rebuild"):
        await mongo.open([other])
    rebuilder = await mongo.open([other], outdated=True, look_seconds=LOOK)
    rebuilt = await rebuilder.begin_rebuild([other])
    assert (await store.get(SONGS, ["a"]))["a"] == Song(id="a")
    assert await rebuilder.switch(rebuilt, await rebuilder.watermarks())
    await mongo.open([other])
    with pytest.raises(UnavailableError, match="text2song rebuild"):
        await store.watermarks()


async def test_a_database_that_is_emptied_while_in_use_is_noticed(store: MongoStore) -> None:
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    await store._client.drop_database(store._database.name)
    with pytest.raises(UnavailableError, match="emptied"):
        await store.save([(SONGS, Song(id="b"))], {("jobs", 0): 2})


async def test_motors_successor_is_one_import_away(mongo: MongoStoreHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_store, "AsyncIOMotorClient", AsyncMongoClient)
    store = await mongo.open([SONGS], look_seconds=LOOK)
    songs = [Song(id=f"{n:03}", created_at=f"{n:03}") for n in range(600)]
    await store.save([(SONGS, song) for song in songs], {("jobs", 0): 1})
    assert [song async for song in store.scan(SONGS)] == songs
    assert await store.find(SONGS, Query(after=("300", "300"), limit=200)) == songs[299:99:-1]
    assert await store.count(SONGS, Query(equal={"genre": "rock"})) == 600
    rebuilt = await store.begin_rebuild([SONGS])
    await rebuilt.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    assert await store.switch(rebuilt, {("jobs", 0): 1})
    await store.drop_unused()
    assert await store.get(SONGS, ["a"]) == {"a": Song(id="a")}


def found(value: Any, name: str) -> list[Any]:
    """Every value of that name, however deep."""
    if isinstance(value, Mapping):
        here = [value[name]] if name in value else []
        return here + [each for child in value.values() for each in found(child, name)]
    return [each for child in value for each in found(child, name)] if isinstance(value, list) else []
