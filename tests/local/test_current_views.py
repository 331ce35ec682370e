"""What the API answers while the views are behind the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from domain.events import JobCompleted, JobDeleted, JobEvent, JobStarted
from domain.jobs import JOBS
from domain.ports import D, Position, ReadStore, View
from infra.sqlite_store import SqliteStore
from projections import tail as tails
from projections.audio import AUDIO, samples
from projections.current import CurrentViews
from projections.local import LocalHost
from projections.tail import Tail
from tests.conditions import eventually
from tests.history import SUBMITTED, fold, recorded, sample
from tests.local.parts import Parts, open_parts, submission

REQUEST = {"prompt": "rain on a tin roof", "duration": 1, "num_samples": 2}


class Gated(SqliteStore):
    """While `saving` is not set, no save begins."""

    def __init__(self, path: Path, views: Sequence[View[Any]]) -> None:
        super().__init__(path, views)
        self.saving = asyncio.Event()
        self.saving.set()

    async def save(self, *arguments: Any) -> None:
        await self.saving.wait()
        await super().save(*arguments)


class Slow:
    """Keeps back what it has read."""

    def __init__(self, store: ReadStore) -> None:
        self._store = store
        self.has_read, self.answering = asyncio.Event(), asyncio.Event()

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        found = await self._store.get(view, ids)
        self.has_read.set()
        await self.answering.wait()
        return found


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[tuple[Parts, Gated]]:
    async with open_parts(tmp_path, Gated) as parts:
        assert isinstance(parts.store, Gated)
        yield parts, parts.store
        parts.store.saving.set()


def life(job_id: str) -> list[JobEvent]:
    made = [sample(index, job_id=job_id, sample_id=f"{job_id}-{index}") for index in (0, 1)]
    return [
        submission(job_id),
        JobStarted(job_id=job_id, attempt=1, worker_id="worker"),
        *made,
        JobCompleted(job_id=job_id, attempt=1),
    ]


async def followed(parts: Parts, *events: JobEvent) -> None:
    assert await parts.services.tail.wait(await parts.journal.append(*events), 10)


async def test_a_job_is_shown_cancelled_and_deleted_before_the_views_know_it(behind: tuple[Parts, Gated]) -> None:
    parts, store = behind
    store.saving.clear()
    submitted = await parts.http.post("/generate", json=REQUEST)
    url = f"/jobs/{submitted.json()['job_id']}"
    headers = {"If-Event-Position": submitted.headers["X-Event-Position"]}
    assert (await parts.http.get(url, headers=headers)).json()["status"] == "queued"
    cancelled = await parts.http.delete(submitted.headers["Location"])
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await parts.http.get(url)).json()["status"] == "cancelled"
    assert (await parts.http.delete(url)).status_code == 200
    assert (await parts.http.get(url)).status_code == 404
    assert not await store.get(JOBS, [submitted.json()["job_id"]])


async def test_a_prompt_can_be_used_before_the_views_know_it(behind: tuple[Parts, Gated]) -> None:
    parts, store = behind
    store.saving.clear()
    created = await parts.http.post("/prompts", json={"text": "slow blues"})
    assert created.status_code == 201
    submitted = await parts.http.post("/generate", json={"prompt_id": created.json()["id"], "duration": 1})
    assert (await parts.http.get(f"/jobs/{submitted.json()['job_id']}")).json()["prompt"] == "slow blues"


async def test_samples_come_and_go_with_their_job_before_the_views_know(behind: tuple[Parts, Gated]) -> None:
    parts, store = behind
    store.saving.clear()
    await followed(parts, *life("early"))
    assert (await parts.http.get("/audio/early-1")).json()["job_id"] == "early"
    assert (await parts.http.get("/audio/early-2")).status_code == 404
    store.saving.set()
    assert await parts.host.caught_up(10)
    store.saving.clear()
    assert (await parts.http.delete("/jobs/early")).status_code == 200
    assert not (await store.get(AUDIO, ["early-1"]))["early-1"].hidden
    assert (await parts.http.get("/audio/early-1")).status_code == 404


async def test_a_list_waits_for_what_was_ordered_here_and_then_does_without(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    store.saving.clear()
    job_id = (await parts.http.post("/generate", json=REQUEST)).json()["job_id"]
    listing = asyncio.create_task(parts.http.get("/jobs"))
    await asyncio.wait({listing}, timeout=0.1)
    store.saving.set()
    assert [item["id"] for item in (await listing).json()["items"]] == [job_id]
    assert (await parts.http.get("/jobs/stats")).json()["counts"] == {"queued": 1}
    store.saving.clear()
    await parts.http.delete(f"/generate/{job_id}")
    monkeypatch.setattr("projections.current.WAIT_SECONDS", 0.05)
    assert [item["status"] for item in (await parts.http.get("/jobs")).json()["items"]] == ["queued"]
    monkeypatch.setattr("projections.current.WAIT_SECONDS", 3600)
    async with asyncio.timeout(10):
        assert [item["status"] for item in (await parts.http.get("/jobs")).json()["items"]] == ["queued"]


async def test_every_answer_says_where_what_it_went_by_stands(behind: tuple[Parts, Gated]) -> None:
    parts, _ = behind
    submitted = await parts.http.post("/generate", json=REQUEST, headers={"Idempotency-Key": "once"})
    prompt, job = map(Position.parse, submitted.headers["X-Event-Position"].split(", "))
    assert (prompt.topic, job.topic) == ("prompts", "jobs")
    assert (await parts.http.get("/prompts")).json()["total"] == 1
    again = await parts.http.post("/generate", json=REQUEST, headers={"Idempotency-Key": "once"})
    assert again.headers["X-Event-Position"] == str(job)
    cancelled = [await parts.http.delete(submitted.headers["Location"]) for _ in range(2)]
    assert len({answer.headers["X-Event-Position"] for answer in cancelled}) == 1


async def test_what_is_folded_and_forgotten_during_a_read_is_not_missed(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    monkeypatch.setattr(tails, "FORGET_SECONDS", 0.0)
    await followed(parts, submission("job"))
    assert await parts.host.caught_up(10)
    store.saving.clear()
    await followed(parts, JobStarted(job_id="job", attempt=1, worker_id="worker"))
    slow, tail = Slow(store), parts.services.tail
    current = CurrentViews(slow, tail, parts.host)  # type: ignore[arg-type]
    reading = asyncio.create_task(current.get(JOBS, ["job"]))
    await slow.has_read.wait()
    store.saving.set()
    assert await parts.host.caught_up(10)
    await followed(parts, submission("another"))
    await eventually(lambda: asyncio.sleep(0, not tail.held.of("jobs", "job")))
    slow.answering.set()
    assert (await reading)["job"].status == "processing"


async def test_the_tail_forgets_what_is_folded_and_takes_no_more_than_its_limit(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    monkeypatch.setattr(tails, "FORGET_SECONDS", 0.01)
    store.saving.clear()
    tail = Tail(parts.host, limit=2)
    await tail.begin()
    events = recorded(SUBMITTED, JobStarted(job_id="job", attempt=1, worker_id="worker"))
    await tail.take(events[:1])
    taking = asyncio.create_task(tail.take(events[1:]))
    await asyncio.wait({taking}, timeout=0.1)
    assert not taking.done()
    assert [held.position.offset for held in tail.held.of("jobs", "job")] == [0, 1]
    await parts.journal.append(*[submission("job")] * 2)
    store.saving.set()
    await taking
    assert tail.held.count == 0


async def test_wherever_the_views_and_the_tail_meet_documents_are_the_fold_of_the_whole_log(tmp_path: Path) -> None:
    started = JobStarted(job_id="job", attempt=1, worker_id="worker")
    history = recorded(
        SUBMITTED,
        started,
        sample(0),
        sample(0),
        sample(1),
        JobCompleted(job_id="job", attempt=1),
        started,
        JobDeleted(job_id="job"),
        JobDeleted(job_id="job"),
    )
    whole = fold(history)
    assert whole is not None
    made = {each.id: each for each in samples(whole)}
    for folded in range(len(history) + 1):
        store = await SqliteStore.open(tmp_path / f"{folded}.db", (JOBS, AUDIO))
        if job := fold(history[:folded]):
            await store.save([(AUDIO, each) for each in samples(job)] + [(JOBS, job)], {})
        for begun in range(folded + 1):
            host = LocalHost(log=None, store=store)  # type: ignore[arg-type]
            current = CurrentViews(store, tail := Tail(host), host)
            tail.held.add(history[begun:])
            assert await current.get(JOBS, ["job"]) == {"job": whole}
            assert await current.get(AUDIO, [*made, "another"]) == made
        await store.close()
