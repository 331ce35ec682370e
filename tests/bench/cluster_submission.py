"""From a request to its visible job through Kafka, Faust and MongoDB, beside the same record through Kafka alone."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from domain.ports import Record, Topic
from infra.bootstrap import adapters, kafka
from infra.kafka_log import KafkaLog
from infra.settings import Settings, read
from tests.bench.read_side import Request, interleaved
from tests.processes import fresh, running
from tests.servers import servers

CLIENTS: Final = (1, 16, 64)
ROUNDS: Final = 10
REQUESTS: Final = 192
RAW: Final = Topic("raw", partitions=4)


@asynccontextmanager
async def raw(settings: Settings, record: Record) -> AsyncIterator[Request]:
    """Produces the record under another key, and waits until a consumer has it."""
    prefix = f"{settings.kafka_prefix}raw."
    await (await KafkaLog.open(kafka(settings), {RAW.name: RAW}, prefix=prefix)).close()
    servers, name = kafka(settings).servers, prefix + RAW.name
    headers = [(header, content.encode()) for header, content in record.headers.items()]
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
            key = str(uuid4()).encode()
            seen = waiting[key] = asyncio.Event()
            await producer.send_and_wait(name, record.value, key, headers=headers)
            await seen.wait()

        yield produce
        consuming.cancel()


async def submitting(settings: Settings, http: aiohttp.ClientSession) -> None:
    async with http.post("/prompts", json={"text": "rain on a tin roof"}) as answer:
        prompt_id = (await answer.json())["id"]

    async def submit() -> None:
        async with http.post("/generate", json={"prompt_id": prompt_id, "duration": 1}) as answer:
            assert answer.status == 202, await answer.text()

    await submit()
    async with adapters(settings) as (log, _, _):
        [record] = [found for number in await log.ends("jobs") for found in await log.read("jobs", number, 0)]
    submitted = 1
    print("clients   jobs/s   raw records/s   ratio   visible: p50        p99   raw: p50        p99   ratios")
    async with raw(settings, record) as produce:
        for clients in CLIENTS:
            times = max(1, REQUESTS // clients)
            jobs, records = await interleaved([submit, produce], rounds=ROUNDS, times=times, clients=clients)
            submitted += len(jobs)
            rate, raw_rate = (1000 * clients / statistics.mean(taken) for taken in (jobs, records))
            (p50, p99), (raw_p50, raw_p99) = (
                (cuts[49], cuts[98]) for cuts in (statistics.quantiles(taken, n=100) for taken in (jobs, records))
            )
            rates = f"{rate:6,.0f}   {raw_rate:13,.0f}   {raw_rate / rate:5.1f}"
            delays = f"{p50:9.1f} ms {p99:7.1f} ms   {raw_p50:5.1f} ms {raw_p99:7.1f} ms"
            print(f"{clients:7}   {rates}   {delays}   {p50 / raw_p50:.1f} (p50) {p99 / raw_p99:.1f} (p99)")
    async with http.get("/jobs/stats") as answer:
        assert (await answer.json())["counts"] == {"queued": submitted}


async def measure(settings: Settings, url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        await submitting(settings, http)


def main() -> None:
    settings = fresh(servers().addresses)
    with running("project", settings), running("api", settings) as api:
        asyncio.run(measure(read(settings), api.url))
