"""List pages and statistics over HTTP, of a short history in MongoDB and of a long one: `JOBS`, or else a million."""

import asyncio
import os
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, Final

import aiohttp

from domain.ports import Record
from infra.bootstrap import adapters
from infra.settings import load
from projections.project import project
from tests.bench.read_side import PARTITIONS, Request, cancelled, history, interleaved, placed
from tests.conditions import eventually
from tests.processes import fresh, running
from tests.servers import servers

SHORT: Final = 1_000
LONG: Final = int(os.environ.get("JOBS", "1_000_000"))
BATCH: Final = 20_000
PATIENCE: Final = 120.0


async def fill(settings: Mapping[str, str], jobs: int) -> None:
    """By the real fold and store; only the log is passed over."""
    records = placed(history(jobs, cancelled))
    async with adapters(load(settings)) as (log, store, _):
        while batch := list(islice(records, BATCH)):
            parts: list[list[Record]] = [[] for _ in range(PARTITIONS)]
            for record in batch:
                parts[record.position.partition].append(record)
            await asyncio.gather(*(project(log, store, part) for part in parts if part))


def request(http: aiohttp.ClientSession, path: str, found: str, items: int) -> Request:
    """Asks, and looks whether the answer has so many items in the field."""

    async def ask() -> None:
        async with http.get(path) as answer:
            assert len((await answer.json())[found]) == items

    return ask


async def deep_page(http: aiohttp.ClientSession, offset: int) -> dict[str, Any]:
    async with http.get("/jobs", params={"offset": offset, "limit": 1}) as answer:
        page: dict[str, Any] = await answer.json()
        return page if answer.ok else {}


async def measure(short_url: str, long_url: str) -> None:
    async with aiohttp.ClientSession(short_url) as short, aiohttp.ClientSession(long_url) as long:
        deep = []
        for http, jobs in ((short, SHORT), (long, LONG)):
            # What was written a moment ago MongoDB walks so slowly that the API gives up at first.
            page = await eventually(partial(deep_page, http, jobs * 9 // 10), PATIENCE)
            assert page["total"] == jobs
            deep.append(f"/jobs?limit=50&cursor={page['next_cursor']}")
        print(f"                     of {SHORT:,} jobs   of {LONG:,} jobs   ratio")
        for name, paths, found, items in (
            ("newest 50", ["/jobs?limit=50"] * 2, "items", 50),
            ("of one status", ["/jobs?limit=50&status=cancelled"] * 2, "items", 50),
            ("by cursor, deep", deep, "items", 50),
            ("statistics", ["/jobs/stats"] * 2, "counts", 1),
        ):
            requests = [request(http, path, found, items) for http, path in zip((short, long), paths, strict=True)]
            taken = await interleaved(requests, rounds=100, times=3)
            few, many = map(statistics.median, taken)
            print(f"{name:15}   {few:14.2f} ms   {many:14.2f} ms   {many / few:5.2f}")


def main() -> None:
    with ExitStack() as stack:
        urls = []
        for jobs in (SHORT, LONG):
            settings = fresh(servers().addresses)
            asyncio.run(fill(settings, jobs))
            urls.append(stack.enter_context(running("api", settings)).url)
        asyncio.run(measure(*urls))
