"""A database that is shared with others, and saves that MongoDB refuses or takes by halves."""

from typing import Any

import pymongo
import pytest
from pymongo import errors

from domain.errors import UnavailableError
from infra.storage.mongo import row
from infra.storage.mongo_store import MongoStore
from tests.cluster.test_mongo_store import LOOK, SONGS, Song
from tests.contract.mongo import MongoStoreHarness


@pytest.fixture
async def store(mongo: MongoStoreHarness) -> MongoStore:
    return await mongo.open([SONGS], look_seconds=LOOK)


async def test_what_others_keep_in_the_same_database_stays(mongo: MongoStoreHarness) -> None:
    """Names that look like this project's own are passed over, those of a first start too."""
    with pymongo.MongoClient[dict[str, Any]](mongo.uri) as client:
        database = client[mongo.database]
        for name in ("songs_v1", "songs_v3", "orders_v2"):
            database[name].insert_one({"_id": "theirs"})
        store = await mongo.open([SONGS], look_seconds=LOOK)
        await mongo.open([SONGS], look_seconds=LOOK)
        for number in range(2):
            await store.save([(SONGS, Song(id="a"))], {("jobs", 0): number})
            rebuilt = await store.begin_rebuild([SONGS])
            await rebuilt.save([(SONGS, Song(id="a"))], {("jobs", 0): number})
            assert await store.switch(rebuilt, {("jobs", 0): number})
            await store.drop_unused()
        assert sorted(database.list_collection_names()) == ["aliases", "orders_v2", "songs_v1", "songs_v3", "songs_v5"]
        for name in ("songs_v1", "songs_v3", "orders_v2"):
            assert list(database[name].find()) == [{"_id": "theirs"}]
    assert await store.get(SONGS, ["a"]) == {"a": Song(id="a")}


async def test_a_document_that_is_refused_again_and_again_is_not_taken_for_saved(store: MongoStore) -> None:
    songs = store._database["songs_v1"]
    await songs.create_index("created_at", unique=True)
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    with pytest.raises(UnavailableError, match="refused 1 documents of songs 10 times"):
        await store.save([(SONGS, Song(id="b")), (SONGS, Song(id="c", created_at="2026-01-02"))], {("jobs", 0): 2})
    assert await store.watermarks() == {("jobs", 0): 1}
    await songs.drop_index("created_at_1")
    await store.save([(SONGS, Song(id="b"))], {("jobs", 0): 2})
    assert [song.id async for song in store.scan(SONGS)] == ["a", "b", "c"]


async def test_a_write_that_the_majority_did_not_take_is_not_taken_for_saved(store: MongoStore) -> None:
    """Also where another document of the batch is there already, and is written once more."""
    await store.save([(SONGS, Song(id="a"))], {("jobs", 0): 1})
    of_two = store._database["songs_v1"].with_options(write_concern=pymongo.WriteConcern(w=2, wtimeout=100))
    with pytest.raises(errors.BulkWriteError):
        await store._write(SONGS, of_two, [row(SONGS, Song(id=id_, position=2)) for id_ in ("a", "b")])
