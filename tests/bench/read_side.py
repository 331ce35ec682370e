"""The read side: from a request to its visible job, list pages over a long history, and events folded a second."""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import httpx
import uvicorn

from api.app import create_app
from api.http.hosts import AllowedHosts
from domain.envelope import decode, encode
from domain.events.jobs import JobCancelRequested, JobCompleted, JobEvent, JobStarted, SampleGenerated
from domain.jobs import Job, evolve
from domain.ports import Message, Position, Record
from infra.serving import listen
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.hosts.local import LocalHost
from projections.project import VIEWS, project
from tests.local.parts import Parts, open_parts, stop, submission

CLIENTS: Final = (1, 16)
SHORT: Final = 1_000
LONG: Final = 200_000
FOLDED: Final = 20_000
IN_FLIGHT: Final = 20
PARTITIONS: Final = 4

Request: TypeAlias = Callable[[], Awaitable[object]]


def cancelled(job_id: str) -> list[JobEvent]:
    return [submission(job_id), JobCancelRequested(job_id=job_id)]


def completed(job_id: str) -> list[JobEvent]:
    samples = [
        SampleGenerated(
            job_id=job_id,
            attempt=1,
            index=index,
            sample_id=f"{job_id}-{index}",
            seed=index,
            storage_path=f"samples/{job_id}/1/{index}.flac",
            duration_seconds=1.0,
            sample_rate=32000,
            channels=1,
            size=50_000,
            sha256="0" * 64,
        )
        for index in (0, 1)
    ]
    started = JobStarted(job_id=job_id, attempt=1, worker_id="worker")
    return [submission(job_id), started, *samples, JobCompleted(job_id=job_id, attempt=1)]


def history(jobs: int, life: Callable[[str], list[JobEvent]]) -> Iterator[Message]:
    """The events of so many jobs, interleaved as those in flight together are, and a microsecond apart."""
    number = 0
    for first in range(0, jobs, IN_FLIGHT):
        lives = [life(f"{job:07}") for job in range(first, first + IN_FLIGHT)]
        for events in zip(*lives, strict=True):
            for event in events:
                moment = f"2026-01-01T00:00:{number // 1_000_000:02}.{number % 1_000_000:06}Z"
                yield encode(event, event_id=f"event-{number}", time=moment)
                number += 1


def placed(messages: Iterable[Message]) -> Iterator[Record]:
    for offset, message in enumerate(messages):
        position = Position(message.topic, int(message.key) % PARTITIONS, offset)
        yield Record(position, message.key, message.value, message.headers)


async def ask(request: Request, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        await request()
        taken.append(1000 * (time.perf_counter() - start))
    return taken


async def interleaved(requests: Sequence[Request], *, rounds: int, times: int, clients: int = 1) -> list[list[float]]:
    """Milliseconds of each request, made in turn by as many clients at once."""
    taken: list[list[float]] = [[] for _ in requests]
    for _ in range(rounds):
        for request, so_far in zip(requests, taken, strict=True):
            for of_one in await asyncio.gather(*(ask(request, times) for _ in range(clients))):
                so_far.extend(of_one)
    return taken


async def serve(folder: Path) -> None:
    """A studio without a worker; prints its URL."""
    async with open_parts(folder) as parts:
        listener = listen("127.0.0.1", 0)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        app = create_app(parts.services, AllowedHosts())
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", __name__, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def visibility(url: str) -> None:
    print("clients   submit until visible: p50       p99   the job alone: p50       p99   ratio of p50")
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:

        async def submit() -> str:
            answer = await http.post("/generate", json={"prompt": "rain on a tin roof", "duration": 1})
            return str(answer.raise_for_status().json()["job_id"])

        job_id = await submit()

        async def look() -> None:
            (await http.get(f"/jobs/{job_id}")).raise_for_status()

        for clients in CLIENTS:
            taken = await interleaved([submit, look], rounds=10, times=96 // clients, clients=clients)
            submitted, seen = (statistics.quantiles(times, n=100) for times in taken)
            cuts = f"{submitted[49]:23.2f} ms {submitted[98]:6.2f} ms   {seen[49]:15.2f} ms {seen[98]:6.2f} ms"
            print(f"{clients:7}   {cuts}   {submitted[49] / seen[49]:12.1f}")


async def fill(parts: Parts, jobs: int) -> None:
    records = placed(history(jobs, cancelled))
    while batch := list(islice(records, 20_000)):
        await project(parts.log, parts.store, batch)


def page(parts: Parts, path: str) -> Request:
    async def request() -> None:
        assert len((await parts.http.get(path)).raise_for_status().json()["items"]) == 50

    return request


async def pages(folder: Path) -> None:
    async with open_parts(folder / "short") as short, open_parts(folder / "long") as long:
        deep = []
        for parts, jobs in ((short, SHORT), (long, LONG)):
            await fill(parts, jobs)
            answer = await parts.http.get("/jobs", params={"offset": jobs * 9 // 10, "limit": 1})
            deep.append(f"/jobs?limit=50&cursor={answer.json()['next_cursor']}")
        print(f"page of 50           of {SHORT:,} jobs   of {LONG:,} jobs   ratio")
        for name, paths in (
            ("newest", ["/jobs?limit=50"] * 2),
            ("of one status", ["/jobs?limit=50&status=cancelled"] * 2),
            ("by cursor, deep", deep),
        ):
            taken = await interleaved([page(short, paths[0]), page(long, paths[1])], rounds=100, times=3)
            few, many = map(statistics.median, taken)
            print(f"{name:15}   {few:14.2f} ms   {many:14.2f} ms   {many / few:5.2f}")


async def folding(folder: Path) -> None:
    log = await SqliteLog.open(folder / "events.db")
    messages = history(FOLDED, completed)
    while batch := list(islice(messages, 5_000)):
        await log.append(batch)
    records = [
        record
        for partition, end in (await log.ends("jobs")).items()
        for record in await log.read("jobs", partition, 0, limit=end)
    ]
    pairs = []
    for round_ in range(3):
        store = await SqliteStore.open(folder / f"views-{round_}.db", VIEWS)
        host = LocalHost(log, store)
        start = time.perf_counter()
        running = asyncio.create_task(host.run())
        assert await host.caught_up(120)
        folded = len(records) / (time.perf_counter() - start)
        await stop(running)
        await store.close()
        jobs: dict[str, Job | None] = {}
        start = time.perf_counter()
        for record in records:
            jobs[record.key] = evolve(jobs.get(record.key), decode(record))
        pairs.append((folded, len(records) / (time.perf_counter() - start)))
    await log.close()
    views, memory = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"events/s of {len(records):,}: {views:,.0f} into the views, {memory:,.0f} decoded and folded in memory alone"
    )
    print(f"ratio {statistics.median(folded / alone for folded, alone in pairs):.0%}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder / "served") as url:
            asyncio.run(visibility(url))
        asyncio.run(pages(folder))
        asyncio.run(folding(folder))


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(serve(Path(sys.argv[1])))
    else:
        main()
