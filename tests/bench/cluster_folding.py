"""Events a second into MongoDB: as they come, through Faust and a plain consumer, and rebuilt from the first record."""

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import IndexModel, InsertOne, ReplaceOne, WriteConcern

from domain.ports import EventLog, Message, Position, ReadStore, Record, after
from infra.bootstrap import adapters
from infra.cluster import kafka, mongo
from infra.settings import Settings, load
from infra.storage.mongo_store import MongoStore
from projections.hosts.faust import BATCH
from projections.hosts.rebuild import Progress, rebuild
from projections.project import FOLDED_FROM, FOLDS, project
from tests.bench.read_side import completed, history
from tests.conditions import eventually
from tests.processes import fresh, running
from tests.servers import ROOT, servers

Write: TypeAlias = InsertOne[dict[str, Any]] | ReplaceOne[dict[str, Any]]

EVENTS: Final = int(os.environ.get("EVENTS", "50_000"))
ROUNDS: Final = 3
APPENDED: Final = 2_000
WRITTEN: Final = 1_000
PATIENCE: Final = 600.0


async def plain(settings: Settings) -> None:
    """The same loop on a consumer group of aiokafka's own."""
    topics = [settings.kafka_prefix + topic for topic in FOLDS]
    async with (
        adapters(settings) as (log, store, _),
        AIOKafkaConsumer(
            *topics,
            bootstrap_servers=kafka(settings).servers,
            group_id=f"{settings.kafka_prefix}plain",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        ) as consumer,
    ):
        while True:
            batch = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
            records = [
                Record.from_bytes(
                    Position(at.topic.removeprefix(settings.kafka_prefix), at.partition, found.offset),
                    found.key,
                    found.value,
                    found.headers,
                )
                for at, found_there in batch.items()
                for found in found_there
            ]
            if records:
                await project(log, store, records)
                await consumer.commit()


@contextmanager
def by_faust(settings: Mapping[str, str]) -> Iterator[object]:
    with running("project", settings) as role:
        yield role


@contextmanager
def by_plain_consumer(settings: Mapping[str, str]) -> Iterator[object]:
    with subprocess.Popen([sys.executable, "-m", __name__], env={**os.environ, **settings}, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.terminate()


async def folded(store: ReadStore, ends: Mapping[tuple[str, int], int]) -> None:
    async def reached() -> bool:
        marks = await store.watermarks()
        return all(marks.get(partition, 0) >= end for partition, end in ends.items())

    await eventually(reached, PATIENCE)


async def live(log: EventLog, store: ReadStore, events: list[Message]) -> float:
    """Events a second from the first append until all are in the views; the first few show that folding goes on."""
    first, rest = events[:BATCH], events[BATCH:]
    await folded(store, after(await log.append(first)))
    start = time.perf_counter()
    positions = [at for i in range(0, len(rest), APPENDED) for at in await log.append(rest[i : i + APPENDED])]
    await folded(store, after(positions))
    return len(rest) / (time.perf_counter() - start)


async def again(log: EventLog, store: MongoStore, events: int) -> tuple[float, float]:
    """Events a second of a rebuild while it folds, and altogether: comparing, switching and clearing up too."""
    start = time.perf_counter()
    reached = start

    def note(progress: Progress) -> None:
        nonlocal reached
        if progress.folded == progress.total:
            reached = time.perf_counter()

    comparisons = await rebuild(log, store, ["jobs"], note)
    assert all(each.documents and not each.differing and not each.apart for each in comparisons), comparisons
    return events / (reached - start), events / (time.perf_counter() - start)


async def raw(settings: Settings, write: Callable[[dict[str, Any]], Write]) -> tuple[int, float]:
    """How many documents the views of the jobs hold, and the seconds to write them once more, ready-made."""
    uri, database = mongo(settings)
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(uri)
    documents, seconds = 0, 0.0
    for collection in [name for view in FOLDED_FROM["jobs"] for name in await named(client[database], view.name)]:
        rows = await client[database][collection].find().to_list(None)
        indexes = await client[database][collection].index_information()
        written = client[database].get_collection(f"raw_{collection}", write_concern=WriteConcern("majority"))
        await written.create_indexes([IndexModel(index["key"]) for index in indexes.values()])
        start = time.perf_counter()
        for i in range(0, len(rows), WRITTEN):
            await written.bulk_write([write(row) for row in rows[i : i + WRITTEN]], ordered=False)
        documents, seconds = documents + len(rows), seconds + time.perf_counter() - start
        await written.drop()
    client.close()
    return documents, seconds


def upsert(row: dict[str, Any]) -> Write:
    return ReplaceOne({"_id": row["_id"]}, row, upsert=True)


async def named(database: AsyncIOMotorDatabase[dict[str, Any]], view: str) -> list[str]:
    return [name for name in await database.list_collection_names() if name.startswith(f"{view}_v")]


async def measure_live(events: list[Message]) -> None:
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, host in (("faust", by_faust), ("plain", by_plain_consumer)):
            environment = fresh(servers().addresses)
            with host(environment):
                async with adapters(load(environment)) as (log, store, _objects):
                    rates.setdefault(name, []).append(await live(log, store, events))
    faust, plainly = (statistics.median(side) for side in rates.values())
    ratio = statistics.median(one / other for one, other in zip(*rates.values(), strict=True))
    print(f"live, events/s: {faust:,.0f} through Faust, {plainly:,.0f} through a plain consumer, ratio {ratio:.0%}")


async def measure_rebuild(events: list[Message]) -> None:
    settings = load(fresh(servers().addresses))
    rounds = []
    async with adapters(settings) as (log, store, _):
        assert isinstance(store, MongoStore)
        for i in range(0, len(events), APPENDED):
            await log.append(events[i : i + APPENDED])
        await rebuild(log, store, list(FOLDS), lambda _: None)
        gc.freeze()  # as the command does
        for _round in range(ROUNDS):
            folding, altogether = await again(log, store, len(events))
            documents, upserting = await raw(settings, upsert)
            _, inserting = await raw(settings, InsertOne)
            rounds.append((folding, altogether, len(events) / upserting, len(events) / inserting))
    folding, altogether, upserted, inserted = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio, of_inserts = (statistics.median(row[0] / row[side] for row in rounds) for side in (2, 3))
    print(
        f"rebuild, events/s: {folding:,.0f} folded ({altogether:,.0f} with comparison, switch and removal of the old)"
    )
    print(f"their {documents:,} documents ready-made, in events' worth/s: {upserted:,.0f} upserted, ratio {ratio:.0%}")
    print(f"and {inserted:,.0f} inserted into empty collections, ratio {of_inserts:.0%}")


def main() -> None:
    events = list(islice(history(EVENTS, completed), EVENTS))
    print(f"{len(events):,} events")
    asyncio.run(measure_live(events))
    asyncio.run(measure_rebuild(events))


if __name__ == "__main__":
    asyncio.run(plain(load(os.environ)))
