"""One stream of everything: what a page that shows the whole studio hears."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
from litestar.response import ServerSentEventMessage

from api.events import _events
from api.http.access import Caller
from api.http.feed import UNREAD
from domain.events.keys import Scope
from domain.events.progress import WorkerAlive
from tests.conditions import eventually
from tests.local.conftest import Running
from tests.local.parts import Parts


def restricted(owner: str) -> Caller:
    scopes: frozenset[Scope] = frozenset({"read", "write"})
    return Caller(key_id=owner, owner=owner, scopes=scopes)


async def told(events: AsyncIterator[ServerSentEventMessage], count: int) -> list[tuple[str | None, Any]]:
    found: list[tuple[str | None, Any]] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            message = await anext(events)
            if message.data is not None:
                found.append((message.event, json.loads(str(message.data))))
    return found


def test_a_job_and_what_is_said_of_it_are_heard_as_they_happen(studio: Running) -> None:
    heard: list[str] = []
    with httpx.stream("GET", f"{studio.url}/events", timeout=60, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line) == "event: connected"
        job_id = studio.http.post("/generate", json={"prompt": "heard everywhere", "duration": 2}).json()["job_id"]
        name = ""
        for line in lines:
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and job_id in line:
                body = json.loads(line[6:])
                heard.append(f"{name} {body.get('status', '')}".strip())
                if body.get("status") == "completed":
                    [sample_id] = body["sample_ids"]
                    break
        said = studio.http.post("/feedback", json={"audio_id": sample_id, "rating": 4}).json()["id"]
        assert next(line for line in lines if said in line) == f'data: {{"kind":"feedback","id":"{said}"}}'
        studio.http.delete(f"/jobs/{job_id}")
        assert next(line for line in lines if job_id in line) == f'data: {{"kind":"jobs","id":"{job_id}"}}'
    assert heard[0] in {"job queued", "job processing"}  # as it is when it is told
    assert heard[-1] == "job completed"
    assert "progress" in heard


async def test_a_caller_hears_of_their_own_alone(parts: Parts) -> None:
    events = _events(parts.services.of(restricted("ann")))
    async with aclosing(events):
        assert await told(events, 1) == [("connected", {})]
        for name, owner in (("hers", "ann"), ("his", "bob"), ("nobodys", None), ("hers-too", "ann")):
            await parts.submit(name, user_id=owner)
        assert [body["id"] for _, body in await told(events, 2)] == ["hers", "hers-too"]


async def test_a_client_that_does_not_read_is_cut_off_and_costs_no_more_memory(parts: Parts) -> None:
    with parts.services.feed.listen_everywhere() as queue:
        for _ in range(0, UNREAD + 500, 500):
            alive = (WorkerAlive(worker_id=f"w{number}", model_id="", state="ready") for number in range(500))
            await parts.journal.append(*alive)

        async def is_cut_off() -> bool:
            return queue.qsize() > UNREAD and not parts.services.feed._everywhere

        await eventually(is_cut_off)
        assert queue.qsize() == UNREAD + 1
