"""What figures cost: requests a second while Prometheus asks for them every second, to those while nobody asks.

One studio has both in turn. Beside that: what part of a core a scrape each second takes, and what part of the
processor's time of a request it takes to count it. The variables: ROUNDS, and REQUESTS a round, which should take some
seconds.
"""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx

from api.http.meter import Meter
from tests.bench.keys import Studio

ROUNDS: Final = int(os.environ.get("ROUNDS", "8"))
REQUESTS: Final = int(os.environ.get("REQUESTS", "4000"))
COUNTED: Final = 20_000
SCRAPES: Final = 400
EVERY_SECONDS: Final = 1.0
ASKED: Final = (("a job by its id", "GET", "/jobs/{job}", 1), ("20 newest jobs", "GET", "/jobs?limit=20", 3))


@contextlib.asynccontextmanager
async def scraping(studio: Studio) -> AsyncIterator[None]:
    async def scrape() -> None:
        async with httpx.AsyncClient(base_url=studio.running.url, trust_env=False) as http:
            while True:
                (await http.get("/metrics")).raise_for_status()
                await asyncio.sleep(EVERY_SECONDS)

    running = asyncio.create_task(scrape())
    try:
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def counting() -> float:
    """Seconds that it takes to count a request."""
    meter, scope = Meter(), {"type": "http", "path_template": "/jobs/{job_id}"}

    async def send(_message: Any) -> None: ...

    async def answer(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def each(*, is_counted: bool) -> float:
        began = time.perf_counter()
        for _ in range(COUNTED):
            await answer(meter.timed("GET", scope, send) if is_counted else send)  # type: ignore[arg-type]
        return (time.perf_counter() - began) / COUNTED

    return statistics.median([await each(is_counted=True) - await each(is_counted=False) for _ in range(ROUNDS)])


async def measure(studio: Studio) -> None:
    alone = await counting()
    print(f"{'':20}    nobody asks   every second   ratio   of the processor's time   counting a request")
    for name, method, path, share in ASKED:
        paces, own = list[tuple[float, float]](), list[tuple[float, float]]()
        for number in range(ROUNDS):
            pair: dict[bool, tuple[float, float]] = {}
            for is_scraped in ((False, True), (True, False))[number % 2]:
                async with scraping(studio) if is_scraped else contextlib.nullcontext():
                    pair[is_scraped] = await studio.pace(method, path, None, REQUESTS // share)
            for found, at in ((paces, 0), (own, 1)):
                found.append((pair[False][at], pair[True][at]))
        without, within = (statistics.median(each) for each in zip(*paces, strict=True))
        print(
            f"{name:20} {without:12.0f}/s {within:12.0f}/s {statistics.median(k / n for n, k in paces):7.3f} "
            f"{statistics.median(k / n for n, k in own):27.3f} "
            f"{100 * alone * statistics.median(n for n, _ in own):18.2f} %",
            flush=True,
        )
    _, scrapes = await studio.pace("GET", "/metrics", None, SCRAPES)
    print(f"A scrape a second takes {100 / scrapes:.2f} % of a core.")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        studio = Studio(Path(name), "metrics", has_keys=False)
        try:
            asyncio.run(measure(studio))
        finally:
            studio.running.stop()
