"""From a request to its visible job through Kafka, Faust and MongoDB, beside the same records through Kafka alone.

A request names a prompt that is stored, and becomes one record, or brings its text, and becomes two.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from domain.ports import Record, Topic
from infra.bootstrap import adapters
from infra.cluster import kafka
from infra.settings import Settings, load
from infra.storage.kafka_log import KafkaLog
from tests.bench.read_side import Request, interleaved
from tests.processes import fresh, running
from tests.servers import servers

CLIENTS: Final = (1, 16, 64)
ROUNDS: Final = 10
REQUESTS: Final = 192
NEWEST: Final = 10
RAW: Final = Topic("raw", partitions=4)


@asynccontextmanager
async def raw(settings: Settings, records: Sequence[Record]) -> AsyncIterator[Request]:
    """Produces the records under another key, and waits until a consumer has them."""
    prefix = f"{settings.kafka_prefix}raw-{len(records)}."
    await (await KafkaLog.open(kafka(settings), {RAW.name: RAW}, prefix=prefix)).close()
    servers, name = kafka(settings).servers, prefix + RAW.name
    headers = [[(header, content.encode()) for header, content in record.headers.items()] for record in records]
    waiting: dict[bytes, asyncio.Event] = {}

    async def consume(consumer: AIOKafkaConsumer) -> None:
        async for found in consumer:
            waiting.pop(found.key).set()

    async with (
        AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True) as producer,
        AIOKafkaConsumer(bootstrap_servers=servers) as consumer,
    ):
        partitions = [TopicPartition(name, number) for number in range(RAW.partitions)]
        consumer.assign(partitions)
        for at in partitions:
            consumer.seek(at, 0)
        consuming = asyncio.create_task(consume(consumer))

        async def produce() -> None:
            keys = [str(uuid4()).encode() for _ in records]
            seen = [waiting.setdefault(key, asyncio.Event()) for key in keys]
            sent = [
                await producer.send(name, record.value, key, headers=header)
                for record, key, header in zip(records, keys, headers, strict=True)
            ]
            await asyncio.gather(*sent)
            for each in seen:
                await each.wait()

        yield produce
        consuming.cancel()


async def submitting(settings: Settings, http: aiohttp.ClientSession) -> None:
    async with http.post("/prompts", json={"text": "rain on a tin roof"}) as answer:
        stored = {"prompt_id": (await answer.json())["id"]}
    submitted = 0
    print("prompt   clients   jobs/s   raw/s   ratio   visible: p50        p99   raw: p50        p99   ratios")
    for name, prompt in (("stored", stored), ("text", {"prompt": "rain on a tin roof"})):

        async def submit(prompt: dict[str, str] = prompt) -> None:
            async with http.post("/generate", json={**prompt, "duration": 1}) as answer:
                assert answer.status == 202, await answer.text()

        before = await appended(settings)
        await submit()
        records = [record for record in await appended(settings) if record not in before]
        submitted += 1
        async with raw(settings, records) as produce:
            for clients in CLIENTS:
                times = max(1, REQUESTS // clients)
                jobs, alone = await interleaved([submit, produce], rounds=ROUNDS, times=times, clients=clients)
                submitted += len(jobs)
                rate, raw_rate = (1000 * clients / statistics.mean(taken) for taken in (jobs, alone))
                (p50, p99), (raw_p50, raw_p99) = (
                    (cuts[49], cuts[98]) for cuts in (statistics.quantiles(taken, n=100) for taken in (jobs, alone))
                )
                rates = f"{rate:6,.0f}   {raw_rate:5,.0f}   {raw_rate / rate:5.1f}"
                delays = f"{p50:9.1f} ms {p99:7.1f} ms   {raw_p50:5.1f} ms {raw_p99:7.1f} ms"
                ratios = f"{p50 / raw_p50:.1f} (p50) {p99 / raw_p99:.1f} (p99)"
                print(f"{name:6}   {clients:7}   {rates}   {delays}   {ratios}")
    async with http.get("/jobs/stats") as answer:
        assert (await answer.json())["counts"] == {"queued": submitted}


async def appended(settings: Settings) -> list[Record]:
    """The newest of all that is on the log."""
    async with adapters(settings) as (log, _, _):
        return [
            record
            for topic in ("prompts", "jobs")
            for number, end in (await log.ends(topic)).items()
            for record in await log.read(topic, number, max(0, end - NEWEST))
        ]


async def measure(settings: Settings, url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        await submitting(settings, http)


def main() -> None:
    settings = fresh(servers().addresses)
    with running("project", settings), running("api", settings) as api:
        asyncio.run(measure(load(settings), api.url))
