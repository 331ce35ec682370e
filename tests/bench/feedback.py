"""Feedback: events a second into the views, and statistics and list pages over a long history beside a short one."""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

from domain.envelope import decode, encode
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot
from domain.feedback import Feedback, evolve
from domain.ports import Position, Record
from projections.project import project
from tests.bench.read_side import Request, interleaved
from tests.local.parts import Parts, open_parts

SHORT: Final = 1_000
EVENTS: Final = int(os.environ.get("EVENTS", "1_000_000"))
BATCH: Final = 2_000
PER_JOB: Final = 4
ADAPTERS: Final = 8
USERS: Final = 500
TAGS: Final = [f"tag-{number}" for number in range(10)]


def given(events: int) -> Iterator[Record]:
    """Half of it compares two samples of a job; a tenth revises what was given before."""
    dice = Random(15)
    for offset in range(events):
        number = dice.randrange(offset + 1) if dice.random() < 0.1 else offset
        job = number // PER_JOB
        sample, other = (
            SampleSnapshot(
                audio_id=f"{job:07}-{index}",
                job_id=f"job-{job:07}",
                prompt_id=f"prompt-{job:07}",
                model_id=f"model-{job % 3}",
                adapter_id=f"adapter-{job % ADAPTERS}",
            )
            for index in dice.sample(range(PER_JOB), 2)
        )
        compares = dice.random() < 0.5
        event = FeedbackGiven(
            feedback_id=f"feedback-{number:07}",
            sample=sample,
            other=other if compares else None,
            verdict=dice.choice(["preferred", "preferred", "tie", "both_bad"]) if compares else None,
            rating=dice.randrange(2, 11) / 2,
            tags=tuple(dice.sample(TAGS, dice.randrange(4))),
            user_id=f"user-{dice.randrange(USERS)}",
        )
        moment = f"2026-01-01T00:{offset // 60_000_000:02}:{offset // 1_000_000 % 60:02}.{offset % 1_000_000:06}Z"
        message = encode(event, event_id=f"event-{offset}", time=moment)
        yield Record(Position(TOPIC.name, 0, offset), message.key, message.value, message.headers)


async def fill(parts: Parts, events: int) -> float:
    """Seconds that folding took."""
    records, taken = given(events), 0.0
    while batch := list(islice(records, BATCH)):
        start = time.perf_counter()
        await project(parts.log, parts.store, batch)
        taken += time.perf_counter() - start
    return taken


def in_memory(events: int) -> float:
    records = list(given(events))
    found: dict[str, Feedback | None] = {}
    start = time.perf_counter()
    for record in records:
        found[record.key] = evolve(found.get(record.key), decode(record))
    return time.perf_counter() - start


def request(parts: Parts, path: str) -> Request:
    async def ask() -> None:
        (await parts.http.get(path)).raise_for_status()

    return ask


async def measure(folder: Path) -> None:
    async with open_parts(folder / "short") as short, open_parts(folder / "long") as long:
        both = (short, long)
        await fill(short, SHORT)
        taken = await fill(long, EVENTS)
        alone = in_memory(min(EVENTS, 100_000)) * max(1, EVENTS / 100_000)
        print(
            f"folded {EVENTS / taken:,.0f} events/s into the views: {alone / taken:.1%} of decoding and folding alone\n"
        )
        deep = [await cursor(parts, events * 8 // 10) for parts, events in ((short, SHORT), (long, EVENTS))]
        audio = [(await parts.http.get("/feedback?limit=1")).json()["items"][0]["audio_id"] for parts in both]
        print(f"{'':24} of {SHORT:,} events   of {EVENTS:,} events   ratio")
        for name, paths in (
            ("statistics", ["/feedback/stats"] * 2),
            ("of one sample", [f"/feedback/stats?audio_id={each}" for each in audio]),
            ("of one adapter", ["/feedback/stats?adapter_id=adapter-3"] * 2),
            ("of one tag", ["/feedback/stats?tag=tag-7"] * 2),
            ("of one user", ["/feedback/stats?user_id=user-9"] * 2),
            ("by adapter", ["/feedback/stats?group_by=adapter"] * 2),
            ("by tag", ["/feedback/stats?group_by=tag"] * 2),
            ("50 newest", ["/feedback?limit=50"] * 2),
            ("50 of one tag", ["/feedback?limit=50&tag=tag-7"] * 2),
            ("50 of one adapter", ["/feedback?limit=50&adapter_id=adapter-3"] * 2),
            ("50 rated 2 to 4", ["/feedback?limit=50&min_rating=2&max_rating=4"] * 2),
            ("50 by cursor, deep", [f"/feedback?limit=50&cursor={each}" for each in deep]),
        ):
            await compare(name, [request(parts, path) for parts, path in zip(both, paths, strict=True)])


async def compare(name: str, requests: Sequence[Request]) -> None:
    few, many = map(statistics.median, await interleaved(requests, rounds=60, times=3))
    print(f"{name:20} {few:14.2f} ms   {many:16.2f} ms   {many / few:7.2f}")


async def cursor(parts: Parts, offset: int) -> str:
    page = (await parts.http.get("/feedback", params={"offset": offset, "limit": 1})).json()
    return str(page["next_cursor"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
