"""A topic that erases, as feedback's will be: keyed by its own id, partitioned by the job that it is about."""

import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import apsw
import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from domain import aggregates, envelope
from domain.aggregates import Aggregate
from domain.envelope import decode, encode
from domain.events import Erased, Event, Recorded, Undecodable
from domain.ports import Message, Position, Query, Record, Topic, View
from infra.storage import sqlite_store
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.documents import fold_documents
from tests.conditions import eventually
from tests.contract.conftest import full_disk

TIME: Final = "2026-01-31T12:00:00.000000Z"
TOPIC: Final = Topic("reviews", partitions=3, compacted=True)
PRIVATE: Final = "what only the listener may know"


class Reviewed(Event, frozen=True, kw_only=True, tag="Reviewed"):
    topic = TOPIC.name
    name = "review.given"
    review_id: str
    job_id: str
    notes: str

    @property
    def key(self) -> str:
        return self.review_id

    @property
    def partition_key(self) -> str:
        return self.job_id


class Review(Struct, frozen=True, kw_only=True):
    id: str
    notes: str
    created_at: str
    partition: int
    position: int


def evolve(review: Review | None, recorded: Recorded) -> Review | None:
    at = recorded.position
    match recorded.event:
        case Reviewed(review_id=id_, notes=notes) if review is None or at.offset > review.position:
            return Review(id=id_, notes=notes, created_at=recorded.time, partition=at.partition, position=at.offset)
    return review


REVIEWS: Final = View(TOPIC.name, Review)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(aggregates.AGGREGATES, TOPIC.name, Aggregate(TOPIC, (Reviewed,), evolve))
    monkeypatch.setitem(aggregates.TOPICS, TOPIC.name, TOPIC)
    monkeypatch.setattr(envelope, "_decoder", msgspec.json.Decoder(Reviewed))
    monkeypatch.setitem(aggregates.EVENTS, "Reviewed", Reviewed)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "views.db", (REVIEWS,))
    yield opened
    await opened.close()


def given(offset: int, notes: str, *, id_: str = "r1", partition: int = 0) -> Recorded:
    message = encode(Reviewed(review_id=id_, job_id="j1", notes=notes), event_id=f"e{offset}", time=TIME)
    return decode(Record(Position(TOPIC.name, partition, offset), message.key, message.value, message.headers))


def erased(offset: int, *, id_: str = "r1", partition: int = 0) -> Recorded:
    return decode(Record(Position(TOPIC.name, partition, offset), id_, None, {}))


async def fold(store: SqliteStore, *batch: Recorded) -> None:
    changes = await fold_documents(store, REVIEWS, batch)
    await store.save(changes.saved, {}, changes.erased)


async def notes(store: SqliteStore) -> list[str]:
    listed = sorted(review.notes for review in await store.find(REVIEWS, Query(limit=10_000)))
    assert listed == sorted([review.notes async for review in store.scan(REVIEWS)])
    assert len(listed) == await store.count(REVIEWS, Query())
    assert not await store.find(REVIEWS, Query(hidden=True))
    return listed


def test_a_tombstone_is_an_event_where_the_topic_erases_and_undecodable_elsewhere() -> None:
    assert erased(3).event == Erased(topic=TOPIC.name, key="r1")
    elsewhere = decode(Record(Position("jobs", 0, 3), "j1", None, {}))
    assert isinstance(elsewhere.event, Undecodable)


async def test_an_erasure_stands_on_the_partition_of_the_events_it_erases(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "events.db", {TOPIC.name: TOPIC})
    for number in range(12):
        event = Reviewed(review_id=f"r{number}", job_id="j1", notes="good")
        tombstone = Erased(topic=TOPIC.name, key=event.key, given_partition_key="j1")
        messages = [encode(each, event_id=f"e{number}", time=TIME) for each in (event, tombstone)]
        places = await log.append(messages)
        assert len({place.partition for place in places}) == 1
    ends = await log.ends(TOPIC.name)
    assert sorted(ends.values()) == [0, 0, 24]
    await log.close()


async def test_what_is_erased_is_gone_from_every_answer_and_may_come_again(store: SqliteStore) -> None:
    await fold(store, given(1, "first"), given(2, "other", id_="r2"))
    await fold(store, erased(3))
    assert await notes(store) == ["other"]
    assert await store.get(REVIEWS, ["r1"]) == {}
    await fold(store, given(5, "again"))
    assert await notes(store) == ["again", "other"]


@pytest.mark.parametrize("late", [given(1, "first"), given(2, "revised")])
async def test_a_host_that_saves_late_brings_nothing_back(store: SqliteStore, late: Recorded) -> None:
    stale = await fold_documents(store, REVIEWS, [late])
    await fold(store, given(1, "first"), given(2, "revised"), erased(3))
    await store.save(stale.saved, {}, stale.erased)
    await fold(store, given(1, "first"), given(2, "revised"))
    assert await notes(store) == []


async def test_delivered_again_in_any_batches_it_ends_the_same(store: SqliteStore) -> None:
    life = [given(1, "first"), given(2, "revised"), erased(3), given(4, "again"), given(5, "last")]
    for seed in range(30):
        dice, at = Random(seed), 0
        while at < len(life):
            first = dice.randrange(at + 1)
            at = dice.randint(first + 1, len(life))
            await fold(store, *life[first:at])
        assert await notes(store) == ["last"]


async def test_a_document_has_one_source_partition(store: SqliteStore) -> None:
    """Offsets of two partitions say nothing of each other."""
    await fold(store, given(5, "mine"))
    await fold(store, given(9, "a stranger's", partition=1), erased(12, partition=1))
    assert await notes(store) == ["mine"]
    await fold(store, given(6, "revised"))
    assert await notes(store) == ["revised"]


@pytest.mark.parametrize("count", [1, 4_000])
async def test_erased_bytes_are_in_no_file_of_the_views(store: SqliteStore, tmp_path: Path, count: int) -> None:
    """Pages that were split and merged keep copies, and the write-ahead log has what was written."""
    dice = Random(count)
    ids = [f"{dice.getrandbits(64):016x}" for _ in range(count)]
    marked = set(dice.sample(ids, max(1, count // 20)))
    for start in range(0, count, 500):
        batch = []
        for at, id_ in enumerate(ids[start : start + 500]):
            text = f"{PRIVATE if id_ in marked else 'dull'} {dice.randbytes(dice.randrange(200)).hex()}"
            batch.append(given(start + at, text, id_=id_))
        await fold(store, *batch)
    # A revision may leave the old notes behind as well.
    await fold(store, *(given(count + at, f"{PRIVATE}, revised", id_=id_) for at, id_ in enumerate(sorted(marked))))
    assert PRIVATE in content(tmp_path)
    reading = sqlite3.connect(tmp_path / "views.db")
    await fold(store, *(erased(2 * count + at, id_=id_) for at, id_ in enumerate(sorted(marked))))
    reading.close()
    await eventually(partial(is_wiped, tmp_path))
    assert len(await notes(store)) == count - len(marked)


async def test_a_large_file_is_wiped_when_it_is_opened_the_next_time(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then copies may be left where rows had been moved."""
    monkeypatch.setattr(sqlite_store, "WIPED_AT_ONCE", 0)
    dice, alive, gone, at = Random(5), dict[str, str](), list[str](), 0
    for _ in range(60):
        batch, touched = [], set[str]()
        for _ in range(40):
            at += 1
            id_ = dice.choice([*alive, f"r{at}"]) if dice.random() < 0.7 else f"r{at}"
            if id_ in touched:
                continue
            touched.add(id_)
            if id_ in alive:
                gone.append(alive.pop(id_))
                batch.append(erased(at, id_=id_))
            else:
                alive[id_] = f"{PRIVATE}, {at:06}"
                batch.append(given(at, alive[id_] + "." * dice.randrange(900), id_=id_))
        await fold(store, *batch)
    await eventually(partial(has_empty_log, tmp_path))
    await store.close()
    again = await SqliteStore.open(tmp_path / "views.db", (REVIEWS,))
    left = content(tmp_path)
    assert not [text for text in gone if text in left]
    assert all(text in left for text in alive.values())
    await again.close()


async def test_a_full_disk_keeps_no_store_from_opening_and_it_is_wiped_when_there_is_space(
    store: SqliteStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fold(store, *(given(at, f"dull {at} " * 200, id_=f"r{at}") for at in range(2, 200)))
    await fold(store, given(200, PRIVATE), erased(201))
    await store.close()
    with full_disk(100_000):
        again = await SqliteStore.open(tmp_path / "views.db", (REVIEWS,))
        assert len(await notes(again)) == 198
        assert await has_empty_log(tmp_path)
    assert "erased may still be in the read store" in caplog.text

    async def is_wiped() -> bool:
        connection = sqlite3.connect(tmp_path / "views.db")
        left = connection.execute("SELECT * FROM residue").fetchall()
        connection.close()
        return not left

    await eventually(is_wiped)
    await again.close()


async def test_on_a_full_disk_wiping_becomes_rare_and_the_reason_is_said_once(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = list[float]()

    def wipe(connection: apsw.Connection) -> bool:
        times.append(time.monotonic())
        return wipe_now(connection)

    wipe_now = sqlite_store.wipe
    monkeypatch.setattr(sqlite_store, "wipe", wipe)
    monkeypatch.setattr(sqlite_store, "WIPE_SECONDS", 0.01)
    await fold(store, *(given(at, f"dull {at} " * 200, id_=f"r{at}") for at in range(2, 200)))

    async def tried_often() -> bool:
        return len(times) >= 6

    await fold(store, given(200, PRIVATE), erased(201))
    with full_disk(100_000):
        await eventually(tried_often)
    assert times[5] - times[4] > 10 * 0.01
    assert caplog.text.count("erased may still be in the read store") == 1
    await eventually(partial(is_wiped, tmp_path))


async def test_a_store_that_was_killed_before_it_had_cleaned_up_does_so_when_it_is_opened_again(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "truncate_wal", lambda _: False)
        await fold(store, given(1, PRIVATE), given(2, "other", id_="r2"))
        await fold(store, erased(3))
        copy_views(tmp_path, left)
    assert PRIVATE in content(left)
    again = await SqliteStore.open(left / "views.db", (REVIEWS,))
    assert PRIVATE not in content(left)
    assert await notes(again) == ["other"]
    await again.close()


async def test_erased_bytes_are_in_no_file_of_the_log(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "events.db", {TOPIC.name: TOPIC})
    event = Reviewed(review_id="r1", job_id="j1", notes=PRIVATE)
    others = [replace(event, review_id=f"r{number}", notes="dull " * number) for number in range(2, 200)]
    await log.append(messages([event, *others]))
    assert PRIVATE in content(tmp_path)
    await log.append(messages([Erased(topic=TOPIC.name, key="r1", given_partition_key="j1")]))
    assert PRIVATE not in content(tmp_path)
    await log.close()


def messages(events: Sequence[Event | Erased]) -> list[Message]:
    return [encode(event, event_id=f"e{number}", time=TIME) for number, event in enumerate(events)]


def copy_views(folder: Path, target: Path) -> None:
    target.mkdir()
    for file in folder.glob("views.db*"):
        shutil.copy(file, target)


async def is_wiped(folder: Path) -> bool:
    return PRIVATE not in content(folder)


async def has_empty_log(folder: Path) -> bool:
    return not (folder / "views.db-wal").stat().st_size


def content(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in sorted(folder.glob("*.db*")))
