"""What every read store holds to, whichever adapter it is."""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from domain.errors import UnavailableError
from domain.ports import Erasure, Query, ReadStore, Scalar, View
from tests.contract.conftest import PATIENCE, StoreHarness


class Song(Struct, frozen=True, kw_only=True):
    id: str
    position: int = 0
    created_at: str = "2026-01-01T00:00:00Z"
    genre: str | None = None
    rating: int = 0
    loud: bool = False
    withdrawn: bool = False
    moods: tuple[str, ...] = ()
    title: str = ""


class Note(Struct, frozen=True, kw_only=True):
    id: str
    position: int = 0
    created_at: str = ""


def fields(song: Song) -> Mapping[str, Scalar | tuple[Scalar, ...]]:
    single = {"genre": song.genre, "rating": song.rating, "loud": song.loud, "hidden": song.withdrawn}
    return {**single, "mood": song.moods}


SONGS = View("songs", Song, fields, ("genre", "rating", "loud", "mood"), several=("mood",))
NOTES = View("notes", Note)
VIEWS = (SONGS, NOTES)

MINUTES = st.integers(0, 5).map(lambda minute: f"2026-01-01T00:0{minute}:00Z")
GENRES = st.sampled_from(["rock", "jazz", "ambient", None])
MOODS = st.sampled_from(["calm", "dark", "ä/ '"])
IDS = st.text("abcäz/ 0", min_size=1, max_size=3)
SHELVES = st.lists(
    st.builds(
        Song,
        id=IDS,
        created_at=MINUTES,
        genre=GENRES,
        rating=st.integers(1, 3),
        loud=st.booleans(),
        withdrawn=st.booleans(),
        moods=st.sets(MOODS).map(tuple),
    ),
    max_size=25,
    unique_by=lambda song: song.id,
)
QUERIES = st.builds(
    Query,
    equal=st.fixed_dictionaries(
        {}, optional={"genre": GENRES, "rating": st.integers(1, 3), "loud": st.booleans(), "mood": MOODS}
    ),
    among=st.fixed_dictionaries({}, optional={"rating": st.lists(st.integers(1, 4), max_size=3)}),
    start=st.none() | MINUTES,
    end=st.none() | MINUTES,
    hidden=st.booleans(),
    ids=st.none() | st.lists(IDS, max_size=9),
    without=st.lists(IDS, max_size=3),
    after=st.none() | st.tuples(MINUTES, st.text("abcz", max_size=2)),
    offset=st.integers(0, 4),
    limit=st.integers(1, 10),
).filter(lambda query: query.equal.keys().isdisjoint(query.among))


def matching(songs: Sequence[Song], query: Query) -> Iterator[Song]:
    for song in sorted(songs, key=lambda song: (song.created_at, song.id), reverse=True):
        has = fields(song)
        equal = all(
            value in found if isinstance(found := has[name], tuple) else value == found
            for name, value in query.equal.items()
        )
        among = all(has[name] in values for name, values in query.among.items())
        bounded = (query.start or "") <= song.created_at <= (query.end or "9")
        named = (query.ids is None or song.id in query.ids) and song.id not in query.without
        if equal and among and named and bounded and song.withdrawn == query.hidden:
            yield song


def page(songs: Sequence[Song], query: Query) -> list[Song]:
    rest = [song for song in songs if query.after is None or (song.created_at, song.id) < query.after]
    return rest[query.offset : query.offset + query.limit]


@pytest.fixture
async def store(stores: StoreHarness) -> ReadStore:
    return await stores.open(VIEWS)


async def save(store: ReadStore, *songs: Song) -> None:
    await store.save([(SONGS, song) for song in songs], {})


async def test_a_saved_document_comes_back_whole(store: ReadStore) -> None:
    song = Song(id="ä/1", position=7, genre="rock", rating=5, loud=True, title="Grüße\0🎵")
    await save(store, song)
    assert await store.get(SONGS, ["ä/1", "missing"]) == {"ä/1": song}
    assert await store.get(SONGS, []) == {}
    assert await store.get(NOTES, ["ä/1"]) == {}


async def test_an_older_or_equal_position_changes_nothing(store: ReadStore) -> None:
    await save(store, Song(id="a", position=5, title="kept"))
    await save(store, Song(id="a", position=4, title="older"), Song(id="a", position=5, title="same"))
    assert (await store.get(SONGS, ["a"]))["a"].title == "kept"
    await save(store, Song(id="a", position=6, title="newer"))
    assert (await store.get(SONGS, ["a"]))["a"].title == "newer"


async def test_the_highest_position_wins_every_race(stores: StoreHarness) -> None:
    opened = [await stores.open(VIEWS) for _ in range(2)]
    versions = [Song(id=f"song-{n % 3}", position=n, genre="rock" if n % 2 else "jazz") for n in range(150)]
    random.Random(1).shuffle(versions)
    await asyncio.gather(*(save(opened[n % 2], song) for n, song in enumerate(versions)))
    stored = await opened[0].get(SONGS, ["song-0", "song-1", "song-2"])
    assert {id_: song.position for id_, song in stored.items()} == {"song-0": 147, "song-1": 148, "song-2": 149}
    assert await opened[1].count(SONGS, Query(equal={"genre": "rock"})) == 2


async def test_a_document_moves_between_lists_as_its_fields_change(store: ReadStore) -> None:
    await save(store, Song(id="a", position=1, genre="rock"))
    await save(store, Song(id="a", position=2, genre="jazz", withdrawn=True))
    assert await store.find(SONGS, Query()) == []
    await save(store, Song(id="a", position=3, genre="jazz"))
    assert await store.find(SONGS, Query(equal={"genre": "rock"})) == []
    assert [song.position for song in await store.find(SONGS, Query(equal={"genre": "jazz"}))] == [3]


async def test_a_document_is_listed_under_each_of_its_several_values_as_long_as_it_has_them(store: ReadStore) -> None:
    async def listed(mood: str, **query: Any) -> list[str]:
        found = Query(equal={"mood": mood}, **query)
        songs = await store.find(SONGS, found)
        assert await store.count(SONGS, found) == len(songs)
        return [song.id for song in songs]

    await save(store, Song(id="a", position=1, moods=("calm", "dark")), Song(id="b", position=2, moods=("dark",)))
    assert await listed("dark") == ["b", "a"]
    await save(store, Song(id="a", position=1, moods=("stale",)), Song(id="b", position=3, moods=("calm",)))
    assert (await listed("dark"), await listed("calm"), await listed("stale")) == (["a"], ["b", "a"], [])
    await save(store, Song(id="a", position=4, moods=("calm",), withdrawn=True))
    assert (await listed("calm"), await listed("calm", hidden=True)) == (["b"], ["a"])
    await erase(store, ("a", 3), ("b", 5))
    assert (await listed("calm"), await listed("calm", hidden=True)) == ([], ["a"])


async def test_hidden_documents_are_kept_and_listed_only_when_asked_for(store: ReadStore) -> None:
    hidden, shown = Song(id="h", withdrawn=True, genre="rock"), Song(id="s", genre="rock")
    await save(store, hidden, shown)
    for query in (Query(), Query(equal={"genre": "rock"}), Query(start="2025", end="2027")):
        assert await store.find(SONGS, query) == [shown]
        assert await store.count(SONGS, query) == 1
        assert await store.find(SONGS, replace(query, hidden=True)) == [hidden]
        assert await store.count(SONGS, replace(query, hidden=True)) == 1
    assert await store.get(SONGS, ["h"]) == {"h": hidden}
    assert [song async for song in store.scan(SONGS)] == [hidden, shown]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shelf=SHELVES, queries=st.lists(QUERIES, min_size=1, max_size=5))
async def test_find_and_count_answer_as_a_list_in_memory_would(
    store: ReadStore, shelf: list[Song], queries: list[Query]
) -> None:
    stored = {song.id: song async for song in store.scan(SONGS)}
    position = 1 + max((song.position for song in stored.values()), default=0)
    stored |= {song.id: replace(song, position=position) for song in shelf}
    await save(store, *stored.values())
    shelf = list(stored.values())
    for query in queries:
        listed = list(matching(shelf, query))
        assert await store.find(SONGS, query) == page(listed, query)
        assert await store.count(SONGS, query) == len(listed)


async def test_keyset_and_offset_pages_agree_where_times_are_equal(store: ReadStore) -> None:
    songs = [Song(id=f"{n:02}", created_at=f"2026-01-01T00:0{n % 3}:00Z", genre="rock") for n in range(20)]
    await save(store, *songs)
    for equal in ({}, {"genre": "rock"}):
        after, by_key, by_offset = None, [], []
        while found := await store.find(SONGS, Query(equal=equal, after=after, limit=3)):
            by_key += found
            after = (found[-1].created_at, found[-1].id)
        for offset in range(0, 21, 3):
            by_offset += await store.find(SONGS, Query(equal=equal, offset=offset, limit=3))
        assert by_key == by_offset == list(matching(songs, Query()))


async def test_only_filters_may_be_asked_for(store: ReadStore) -> None:
    for ask in (store.find, store.count):
        with pytest.raises(ValueError, match="title"):
            await ask(SONGS, Query(equal={"title": "x"}))
        with pytest.raises(ValueError, match="genre"):
            await ask(NOTES, Query(equal={"genre": "rock"}))
        with pytest.raises(ValueError, match="title"):
            await ask(SONGS, Query(among={"title": ["x"]}))


async def test_views_do_not_see_each_others_documents(store: ReadStore) -> None:
    await store.save([(SONGS, Song(id="same")), (NOTES, Note(id="same", position=3))], {})
    assert await store.find(NOTES, Query()) == [Note(id="same", position=3)]
    assert await store.count(SONGS, Query()) == 1


async def erase(store: ReadStore, *erased: tuple[str, int]) -> None:
    await store.save([], {}, [Erasure(SONGS, id_, position) for id_, position in erased])


async def test_of_an_erased_document_no_answer_has_anything(store: ReadStore) -> None:
    await save(store, Song(id="a", position=1), Song(id="b", position=2, withdrawn=True), Song(id="c", position=3))
    await erase(store, ("a", 4), ("b", 5))
    assert await store.get(SONGS, ["a", "b", "c"]) == {"c": Song(id="c", position=3)}
    assert [song.id async for song in store.scan(SONGS)] == ["c"]
    for equal in ({}, {"genre": None}):
        for hidden, left in ((False, ["c"]), (True, [])):
            query = Query(equal=equal, hidden=hidden)
            assert [song.id for song in await store.find(SONGS, query)] == left
            assert await store.count(SONGS, query) == len(left)


async def test_an_erasure_holds_against_what_is_older_and_gives_way_to_what_is_newer(store: ReadStore) -> None:
    await erase(store, ("a", 4))
    await save(store, Song(id="a", position=3))
    await save(store, Song(id="a", position=4))
    assert await store.get(SONGS, ["a"]) == {}
    await save(store, Song(id="a", position=5, title="again"))
    await erase(store, ("a", 5), ("a", 2))
    assert (await store.get(SONGS, ["a"]))["a"].title == "again"
    await store.save([(SONGS, Song(id="a", position=6))], {("jobs", 0): 8}, [Erasure(SONGS, "a", 7)])
    assert await store.get(SONGS, ["a"]) == {}
    assert await store.watermarks() == {("jobs", 0): 8}


async def test_watermarks_are_what_was_saved_and_never_sink(store: ReadStore) -> None:
    assert await store.watermarks() == {}
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 10, ("jobs", 1): 4})
    await store.save([], {("jobs", 0): 7, ("prompts", 0): 1})
    assert await store.watermarks() == {("jobs", 0): 10, ("jobs", 1): 4, ("prompts", 0): 1}
    await store.save([], {("jobs", 1): 5})
    assert (await store.watermarks())["jobs", 1] == 5


async def test_watermarks_rise_through_every_race(store: ReadStore) -> None:
    offsets = list(range(1, 60))
    random.Random(2).shuffle(offsets)
    await asyncio.gather(*(store.save([], {("jobs", 0): offset}) for offset in offsets))
    assert await store.watermarks() == {("jobs", 0): 59}


async def test_a_watermark_is_never_ahead_of_its_documents(store: ReadStore) -> None:
    async def write() -> None:
        for position in range(1, 60):
            await store.save([(SONGS, Song(id="a", position=position))], {("jobs", 0): position + 1})

    writing = asyncio.create_task(write())
    while not writing.done():
        watermark = (await store.watermarks()).get(("jobs", 0), 0)
        stored = await store.get(SONGS, ["a"])
        assert (stored["a"].position + 1 if stored else 0) >= watermark
    await writing


async def test_a_read_sees_what_another_connection_has_saved(stores: StoreHarness) -> None:
    writer, reader = await stores.open(VIEWS), await stores.open(VIEWS)
    for position in range(1, 20):
        await save(writer, Song(id="a", position=position))
        assert (await reader.get(SONGS, ["a"]))["a"].position == position


async def test_scan_gives_every_document_by_id(store: ReadStore) -> None:
    songs = [Song(id=f"{n:04}", withdrawn=n % 2 == 0) for n in range(1_100)]
    await save(store, *random.Random(3).sample(songs, len(songs)))
    assert [song async for song in store.scan(SONGS)] == songs
    assert [note async for note in store.scan(NOTES)] == []


async def test_many_ids_are_got_at_once(store: ReadStore) -> None:
    songs = [Song(id=f"{n:04}") for n in range(1_000)]
    await save(store, *songs)
    assert await store.get(SONGS, [song.id for song in songs]) == {song.id: song for song in songs}


async def test_documents_and_watermarks_outlive_their_connection(stores: StoreHarness) -> None:
    store = await stores.open(VIEWS)
    await store.save([(SONGS, Song(id="a", genre="rock"))], {("jobs", 0): 3})
    await store.close()
    again = await stores.open(VIEWS)
    assert [song.id for song in await again.find(SONGS, Query(equal={"genre": "rock"}))] == ["a"]
    assert await again.watermarks() == {("jobs", 0): 3}


async def test_a_broken_connection_loses_nothing_that_was_saved(stores: StoreHarness) -> None:
    store = await stores.open(VIEWS)
    for position in range(1, 30):
        await stores.break_connection(store)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await store.save([(SONGS, Song(id="a", position=position))], {("jobs", 0): position})
                except UnavailableError:
                    continue
                break
        await stores.break_connection(store)
        assert (await store.get(SONGS, ["a"]))["a"].position == position
        assert await store.watermarks() == {("jobs", 0): position}
