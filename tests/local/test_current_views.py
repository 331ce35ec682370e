"""What the API answers while the views are behind the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from domain.envelope import decode
from domain.errors import RefusedError, UnavailableError
from domain.events import Recorded
from domain.events.jobs import JobCompleted, JobDeleted, JobEvent, JobStarted
from domain.events.progress import WorkerAlive
from domain.jobs import JOBS
from domain.journal import Journal
from domain.ports import Batch, D, Position, ReadStore, View, after
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.audio import AUDIO, samples
from projections.freshness import tail as tails
from projections.freshness.current import CurrentViews
from projections.freshness.tail import Tail
from projections.hosts.local import LocalHost
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


async def appended(parts: Parts, *events: JobEvent) -> AsyncIterator[Recorded]:
    """In the order of each partition."""
    positions = await parts.journal.append(*events)
    for partition in sorted({position.partition for position in positions}):
        for found in await parts.log.read("jobs", partition, 0, len(events)):
            if found.position in positions:
                yield decode(found)


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
    monkeypatch.setattr("projections.freshness.current.WAIT_SECONDS", 0.05)
    assert [item["status"] for item in (await parts.http.get("/jobs")).json()["items"]] == ["queued"]
    monkeypatch.setattr("projections.freshness.current.WAIT_SECONDS", 3600)
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

    async def has_forgotten() -> bool:
        return not await tail.unfolded.of("jobs", "job")

    await eventually(has_forgotten)
    slow.answering.set()
    assert (await reading)["job"].status == "processing"


async def test_the_tail_forgets_what_is_folded_and_is_never_full(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    monkeypatch.setattr(tails, "FORGET_SECONDS", 0.0)
    store.saving.clear()
    tail = Tail(parts.log, parts.host, limit=20)
    await tail.begin()
    names = [f"job-{number}" for number in range(100)]
    history = [record async for record in appended(parts, *(event for name in names for event in life(name)))]
    for record in history:
        tail.take(Batch([record], after([record.position])))
    assert tail.unfolded.held.count < 20
    for name in names:
        assert await tail.unfolded.of("jobs", name) == [record for record in history if record.key == name]
        assert await tail.unfolded.owner("jobs", f"{name}-1") == name
    assert not await tail.unfolded.of("jobs", "another")
    assert await tail.unfolded.owner("jobs", "another") is None
    store.saving.set()
    assert await parts.host.caught_up(10)
    tail.take(Batch([], {}))
    assert (tail.unfolded.held.count, tail.unfolded.older) == (0, [])


async def test_views_that_stand_still_make_no_job_unknown_and_no_key_free(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    monkeypatch.setattr(parts.services.tail, "_limit", 50)
    store.saving.clear()
    headers = {"Idempotency-Key": "once"}
    first = await parts.http.post("/generate", json=REQUEST, headers=headers)
    for number in range(100):
        await parts.journal.append(*life(f"job-{number}"))
    url = f"/jobs/{first.json()['job_id']}"
    assert (await parts.http.get(url)).json()["status"] == "queued"
    assert (await parts.http.get("/jobs/job-50")).json()["status"] == "completed"
    assert (await parts.http.get("/audio/job-50-1")).json()["job_id"] == "job-50"
    assert (await parts.http.get("/jobs/never")).status_code == 404
    other = await parts.http.post("/generate", json={**REQUEST, "prompt": "wind"}, headers=headers)
    assert other.status_code == 422
    await parts.journal.append(WorkerAlive(worker_id="w", model_id="m", state="ready"))
    await eventually(lambda: asyncio.sleep(0, parts.services.feed.workers()))
    assert (await parts.http.delete(url)).json()["status"] == "cancelled"


async def test_a_studio_that_starts_onto_a_backlog_which_nobody_folds_answers_all_but_lists(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        key = {"Idempotency-Key": "once"}
        submitted = await parts.http.post("/generate", json=REQUEST, headers=key)
        await parts.journal.append(*life("folded"))
        assert await parts.host.caught_up(10)
    async with open_parts(tmp_path, is_folded=False) as parts:
        await parts.journal.append(*(event for number in range(50) for event in life(f"job-{number}")))
    async with open_parts(tmp_path, is_folded=False) as parts:
        await eventually(lambda: asyncio.sleep(0, parts.services.tail.is_complete))
        assert (await parts.http.get("/jobs/job-20")).json()["status"] == "completed"
        assert (await parts.http.get("/jobs/folded")).json()["status"] == "completed"
        assert (await parts.http.get("/audio/job-49-1")).status_code == 200
        again = await parts.http.post("/generate", json=REQUEST, headers=key)
        assert (again.status_code, again.json()["job_id"]) == (202, submitted.json()["job_id"])
        assert (await parts.http.delete("/jobs/job-20")).status_code == 200
        assert (await parts.http.get("/jobs/job-20")).status_code == 404
        listed = await parts.http.get("/jobs")
        assert (listed.status_code, listed.json()["detail"]) == (
            503,
            "The views are still being folded from the log; ask again soon.",
        )


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
            current = CurrentViews(store, tail := Tail(None, host), host)  # type: ignore[arg-type]
            tail.unfolded.held.add(history[begun:])
            assert await current.get(JOBS, ["job"]) == {"job": whole}
            assert await current.get(AUDIO, [*made, "another"]) == made
        await store.close()


@pytest.mark.parametrize("path", ["/jobs", "/jobs/j1"])
async def test_a_position_after_the_logs_end_is_400_and_names_the_end(parts: Parts, path: str) -> None:
    await parts.submit("j1")
    [end] = (await parts.log.ends("jobs")).values()
    for sent, named in ((f"jobs/0/{end}", f"jobs/0/{end}"), (f"jobs/0/0, jobs/0/{10**17}", f"jobs/0/{10**17}")):
        answer = await parts.http.get(path, headers={"If-Event-Position": sent})
        assert (answer.status_code, answer.json()["code"]) == (400, "unknown_position")
        expected = f"there is no {named} on the log; the next there will be jobs/0/{end}. Send an answer's X-Event-"
        assert expected in answer.json()["detail"]
    assert (await parts.http.get(path, headers={"If-Event-Position": f"jobs/0/{end - 1}"})).status_code == 200


async def test_a_position_that_another_process_has_just_written_is_shown(parts: Parts) -> None:
    other = await SqliteLog.open(parts.folder / "events.db")
    journal = Journal(other, now=parts.journal.now, new_id=parts.journal.new_id)
    for number in range(20):
        [written] = await journal.append(submission(f"j{number}"))
        for path in ("/jobs", f"/jobs/j{number}"):
            answer = await parts.http.get(path, headers={"If-Event-Position": str(written)})
            assert answer.status_code == 200, answer.text
    await other.close()


async def test_a_position_that_the_log_has_is_503_while_the_views_are_behind(behind: tuple[Parts, Gated]) -> None:
    parts, store = behind
    store.saving.clear()
    [written] = await parts.journal.append(submission("j1"))
    for path, status in (("/jobs/j1", 200), ("/jobs", 503)):
        answer = await parts.http.get(path, headers={"If-Event-Position": str(written)})
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, "1" if status == 503 else None)
    after = Position("jobs", 0, written.offset + 1)
    assert (await parts.http.get("/jobs", headers={"If-Event-Position": str(after)})).status_code == 400


@pytest.mark.parametrize("error", [UnavailableError, RefusedError, None])
async def test_a_position_is_503_where_the_log_cannot_be_asked(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    async def ends(topic: str) -> dict[int, int]:
        if error is not None:
            raise error(f"The log does not answer about {topic}.")
        return await asyncio.Future[dict[int, int]]()

    monkeypatch.setattr(parts.log, "ends", ends)
    answer = await parts.http.get("/jobs", headers={"If-Event-Position": "jobs/0/99"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["detail"] == "jobs/0/99 has not been reached within 2 s; ask again."


async def test_the_log_is_asked_about_a_position_that_this_process_has_not_read_alone(
    behind: tuple[Parts, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, store = behind
    [shown] = await parts.journal.append(submission("j1"))
    assert await parts.host.caught_up(10)
    asked: list[str] = []
    ends = parts.log.ends

    async def noted(topic: str) -> dict[int, int]:
        asked.append(topic)
        return await ends(topic)

    monkeypatch.setattr(parts.log, "ends", noted)
    for path in ("/jobs", "/jobs/j1"):
        assert (await parts.http.get(path, headers={"If-Event-Position": str(shown)})).status_code == 200
    store.saving.clear()
    [late] = await parts.journal.append(submission("j2"))
    assert (await parts.http.get("/jobs", headers={"If-Event-Position": str(late)})).status_code == 503
    assert not asked
    assert (await parts.http.get("/jobs", headers={"If-Event-Position": "jobs/0/99"})).status_code == 400
    assert asked == ["jobs"]
