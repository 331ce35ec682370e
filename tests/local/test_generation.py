"""The worker against the real log, store and objects; only the model is replaced by one that does as told."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from domain import prompts
from domain.attempts import MAX_LOST
from domain.errors import UnavailableError
from domain.events import Event, timestamp
from domain.events.jobs import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobStarted,
    SampleGenerated,
)
from domain.events.progress import WorkerAlive
from domain.events.prompts import PromptCreated
from domain.jobs import Job
from domain.ports import ObjectInfo
from infra.storage.file_objects import FileObjects
from tests.conditions import eventually, eventually_sync
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine, out_of_memory
from tests.local.parts import LEASE, Parts, open_parts, stop, submission
from workers.engine import EngineError
from workers.generation import Generation


async def keys(parts: Parts, job_id: str) -> list[str]:
    return [info.key for info in await parts.objects.list(f"samples/{job_id}")]


async def test_a_job_is_generated_stored_and_reported(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[41, 42])
        job = await parts.when("j1", "completed")
    assert [sample.event.seed for sample in job.samples] == [41, 42]
    assert await keys(parts, "j1") == [f"samples/j1/1/1/{name}" for name in ("0.flac", "0.json", "1.flac", "1.json")]
    assert await parts.history("j1") == [
        "job.submitted.v1",
        "job.started.v1",
        "job.sample.generated.v1",
        "job.sample.generated.v1",
        "job.completed.v1",
    ]


async def test_jobs_run_by_priority_and_then_by_age(parts: Parts) -> None:
    engine = ScriptedEngine()
    for name, priority in (("old", 0), ("young", 0), ("urgent", 9)):
        await parts.submit(name, priority=priority, seeds=[1])
    async with parts.working(engine):
        for name in ("old", "young", "urgent"):
            await parts.when(name, "completed")
    assert [request.id for request in engine.requests] == ["urgent/1", "old/1", "young/1"]


async def test_of_many_workers_each_job_is_run_by_one(parts: Parts) -> None:
    engines = [ScriptedEngine() for _ in range(4)]
    async with parts.working(*engines):
        names = [f"j{number}" for number in range(20)]
        await asyncio.gather(*(parts.submit(name, seeds=[1]) for name in names))
        for name in names:
            await parts.when(name, "completed")
    assert sorted(request.id for engine in engines for request in engine.requests) == sorted(f"{n}/1" for n in names)
    for name in names:
        history = await parts.history(name)
        assert history.count("job.sample.generated.v1") == history.count("job.completed.v1") == 1


async def test_a_transient_failure_is_tried_again_and_keeps_what_was_made(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [out_of_memory()]
    async with parts.working(engine):
        await parts.submit("j1")
        job = await parts.when("j1", "completed")
    assert (job.attempt, job.failures, job.error) == (2, 1, None)


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_clock_that_jumps_an_hour_and_back_delays_no_retry_and_takes_no_job_away(
    parts: Parts, jump: timedelta
) -> None:
    clock, shift = parts.journal.now, jump
    parts.journal.now = lambda: timestamp(datetime.fromisoformat(clock()) + shift)
    engine, idle = ScriptedEngine(), ScriptedEngine()
    engine.faults = [out_of_memory()]
    engine.close_after(0)
    async with parts.working(engine):
        await parts.submit("j1", seeds=[1])

        async def failed() -> bool:
            return "job.attempt.failed.v1" in await parts.history("j1")

        await eventually(failed)
        shift = timedelta()
        await parts.when("j1", "processing")
        async with parts.working(idle):
            shift = jump
            await asyncio.sleep(2 * LEASE)
            shift = -jump
            engine.release()
            job = await parts.when("j1", "completed")
    assert (job.attempt, idle.requests) == (2, [])
    shown = (await parts.http.get("/jobs/stats")).json()
    assert shown["counts"] == {"completed": 1}
    assert 0 <= shown["average_processing_seconds"] < 2 * 3600 + 60


async def test_transient_failures_end_after_the_third(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [out_of_memory() for _ in range(3)]
    async with parts.working(engine):
        await parts.submit("j1")
        job = await parts.when("j1", "failed")
    assert job.error == "The GPU is out of memory. (tried 3 times)"
    assert len(engine.requests) == 3


async def test_a_request_the_model_cannot_carry_out_fails_at_once(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [EngineError("The prompt has no words this model knows.")]
    async with parts.working(engine):
        await parts.submit("j1")
        job = await parts.when("j1", "failed")
    assert (job.error, job.attempt) == ("The prompt has no words this model knows.", 1)


async def test_a_fault_in_the_engine_is_a_failure_and_the_next_job_runs(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [ZeroDivisionError("a mistake") for _ in range(3)]
    async with parts.working(engine):
        await parts.submit("j1")
        assert (await parts.when("j1", "failed")).error == "ZeroDivisionError: a mistake (tried 3 times)"
        await parts.submit("j2")
        await parts.when("j2", "completed")


@pytest.mark.parametrize("event", [JobCancelRequested, JobDeleted])
async def test_a_running_job_that_is_cancelled_or_deleted_stops_and_leaves_nothing(
    parts: Parts, event: type[JobCancelRequested | JobDeleted]
) -> None:
    engine = ScriptedEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit("j1")
        await eventually(lambda: keys(parts, "j1"))
        await parts.journal.append(event(job_id="j1"))
        job = await parts.when("j1", "cancelled")
        assert engine.stopped == ["j1/1"]
        assert await keys(parts, "j1") == []
        assert job.audible == ()
        engine.release()
        await parts.submit("j2")
        await parts.when("j2", "completed")


async def test_a_queued_job_that_is_cancelled_never_runs(parts: Parts) -> None:
    engine = ScriptedEngine()
    await parts.submit("j1")
    await parts.journal.append(JobCancelRequested(job_id="j1"))
    async with parts.working(engine):
        await parts.submit("j2")
        await parts.when("j2", "completed")
    assert [request.id for request in engine.requests] == ["j2/1"]
    assert (await parts.when("j1", "cancelled")).attempt == 0


async def test_a_silent_workers_job_is_taken_over_after_its_lease_without_what_was_made(parts: Parts) -> None:
    """The first worker dies after one of two samples; the second makes the other."""
    dying, heir = ScriptedEngine(), ScriptedEngine()
    dying.close_after(1)
    async with parts.working(dying) as (task,):
        await parts.submit("j1")
        await eventually(lambda: _samples(parts, "j1"))
        await _kill(parts, task)
        async with parts.working(heir):
            job = await parts.when("j1", "completed")
    assert [(sample.event.index, sample.event.attempt) for sample in job.samples] == [(0, 1), (1, 2)]
    assert [take.index for take in heir.requests[0].takes] == [1]


async def test_a_worker_that_wakes_after_its_lease_is_refused_and_clears_up(parts: Parts) -> None:
    sleeper, heir = ScriptedEngine(), ScriptedEngine()
    sleeper.close_after(0)
    heir.close_after(0)
    async with parts.working(sleeper):
        await parts.submit("j1", seeds=[1])
        await eventually(lambda: _status(parts, "j1", "processing"))
        job = await parts.job("j1")
        assert job is not None
        await parts.journal.append(JobStarted(job_id="j1", attempt=2, worker_id="heir"))
        await eventually(lambda: _stopped(sleeper))
        assert (await parts.when("j1", "processing")).worker_id == "heir"
        assert await keys(parts, "j1") == []


async def test_a_job_that_loses_its_worker_again_and_again_fails(parts: Parts) -> None:
    await parts.submit("j1", seeds=[1])
    for attempt in range(1, MAX_LOST + 1):
        await parts.journal.append(JobStarted(job_id="j1", attempt=attempt, worker_id=f"gone-{attempt}"))
        await parts.objects.put(f"samples/j1/{attempt}/0.flac", b"never reported")
    async with parts.working(ScriptedEngine()):
        job = await parts.when("j1", "failed")
    assert job.error == f"Its worker vanished {MAX_LOST} times in a row without finishing a sample."
    assert await keys(parts, "j1") == []


async def test_a_worker_told_to_stop_hands_its_job_back_at_once(parts: Parts) -> None:
    engine, heir = ScriptedEngine(), ScriptedEngine()
    engine.close_after(0)
    async with parts.working(engine):
        await parts.submit("j1")
        await parts.when("j1", "processing")
    job = await parts.when("j1", "queued")
    assert job.failures == 0
    assert engine.stopped == ["j1/1"]
    async with parts.working(heir):
        assert (await parts.when("j1", "completed")).attempt == 2


async def test_audio_stored_by_a_worker_that_died_before_saying_so_is_removed(parts: Parts) -> None:
    await parts.objects.put("samples/j1/1/0.flac", b"never reported")
    await parts.objects.put("samples/j11/1/0.flac", b"another job's")
    await parts.submit("j1", seeds=[1])
    await parts.journal.append(JobStarted(job_id="j1", attempt=1, worker_id="gone"))
    async with parts.working(ScriptedEngine()):
        await parts.when("j1", "completed")

        async def clean() -> bool:
            return await keys(parts, "j1") == ["samples/j1/2/2/0.flac", "samples/j1/2/2/0.json"]

        await eventually(clean)
    assert await keys(parts, "j11") == ["samples/j11/1/0.flac"]


async def test_a_cancel_left_by_a_dead_worker_is_finished_by_another(parts: Parts) -> None:
    await parts.submit("j1")
    await parts.journal.append(JobStarted(job_id="j1", attempt=1, worker_id="gone"))
    await parts.objects.put("samples/j1/1/0.flac", b"partial")
    await parts.journal.append(JobDeleted(job_id="j1"))
    assert (await parts.when("j1", "cancelling")).deleted_at
    async with parts.working(ScriptedEngine()):
        await parts.when("j1", "cancelled")
    assert await keys(parts, "j1") == []


class SlowObjects(FileObjects):
    """Takes its time over the second sample, which is then still being written when a cancel comes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writing = asyncio.Event()
        self.go_on = asyncio.Event()

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        if key.endswith("/1.flac"):
            self.writing.set()
            await self.go_on.wait()
        return await super().put(key, data, replace=replace)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_worker_that_lost_its_claim_leaves_nothing_of_a_job_that_another_cleans_up(
    parts: Parts, tmp_path: Path, *, is_first: bool
) -> None:
    """Whether its upload ends after the other's last word or before, and though it is told to stop just then."""
    parts.objects = slow = await SlowObjects.open(tmp_path / "objects")
    heir = WorkerAlive(worker_id="heir", model_id="model", state="busy")
    async with parts.working(ScriptedEngine()), asyncio.TaskGroup() as tasks:
        living = tasks.create_task(_again_and_again(parts, heir))
        await parts.submit("j1")
        await slow.writing.wait()
        await parts.journal.append(JobStarted(job_id="j1", attempt=2, worker_id="heir"), JobDeleted(job_id="j1"))
        await parts.when("j1", "cancelling")
        await parts.objects.delete("samples/j1")
        if is_first:
            await parts.journal.append(JobCancelled(job_id="j1", worker_id="heir"))
            await parts.when("j1", "cancelled")
        slow.go_on.set()
        living.cancel()
    assert await keys(parts, "j1") == []


@pytest.mark.parametrize("event", [JobCompleted, JobDeleted])
async def test_a_closed_job_that_is_submitted_again_is_not_run_again(
    parts: Parts, event: type[JobCompleted | JobDeleted]
) -> None:
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        before = await parts.when("j1", "completed")
    if event is JobDeleted:
        await parts.journal.append(JobDeleted(job_id="j1"))
    await parts.job("j1")
    engine = ScriptedEngine()
    async with parts.working(engine):
        await parts.submit("j2", seeds=[1])
        await parts.when("j2", "completed")
        await parts.submit("j1", seeds=[7])
        await parts.submit("j3", seeds=[1])
        await parts.when("j3", "completed")
    after = await parts.job("j1")
    assert after is not None
    assert (after.attempt, after.samples) == (before.attempt, before.samples)
    assert [request.id for request in engine.requests] == ["j2/1", "j3/1"]
    assert (await parts.history("j1")).count("job.started.v1") == 1


async def test_a_prompt_that_the_log_did_not_take_is_kept_with_its_job(parts: Parts) -> None:
    for job_id in ("whole", "half"):
        events: list[Event] = [submission(job_id, prompt_id=prompts.own_id(job_id), seeds=[1])]
        if job_id == "whole":
            events = [PromptCreated(prompt_id=prompts.own_id(job_id), text="rain on a tin roof"), *events]
        await parts.journal.append(*events)
    async with parts.working(ScriptedEngine()):
        for job_id in ("whole", "half"):
            await parts.when(job_id, "completed")
            await parts.host.caught_up(10)
            shown = await parts.http.get(f"/prompts/{prompts.own_id(job_id)}")
            assert (shown.status_code, shown.json()["text"]) == (200, "rain on a tin roof")
            assert await parts.history(prompts.own_id(job_id), "prompts") == ["prompt.created.v1"]


async def test_the_most_urgent_of_many_is_found_without_looking_at_all(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[str] = []
    urgency = Generation.urgency

    def weighing(self: Generation, job: Job) -> Any:
        weighed.append(job.id)
        return urgency(self, job)

    monkeypatch.setattr(Generation, "urgency", weighing)
    names = [f"j{number}" for number in range(40)]
    for name in names:
        await parts.submit(name, seeds=[1])
    async with parts.working(engine := ScriptedEngine()):
        for name in names:
            await parts.when(name, "completed")
    assert [request.id for request in engine.requests] == [f"{name}/1" for name in names]
    assert len(weighed) <= 3 * len(names)


async def test_a_retry_on_a_day_that_its_month_does_not_have_is_due(parts: Parts) -> None:
    await parts.submit("j1", seeds=[1])
    await parts.journal.append(JobStarted(job_id="j1", attempt=1, worker_id="gone"))
    never = "2026-02-31T12:00:00.000000Z"
    await parts.journal.append(JobAttemptFailed(job_id="j1", attempt=1, error="no luck", retry_at=never))
    async with parts.working(ScriptedEngine()):
        await parts.when("j1", "completed")


async def test_a_second_cancel_does_not_break_into_the_clean_up_of_the_first(parts: Parts, tmp_path: Path) -> None:
    parts.objects = slow = await SlowObjects.open(tmp_path / "objects")
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1")
        await slow.writing.wait()
        await parts.journal.append(JobCancelRequested(job_id="j1"))
        await parts.when("j1", "cancelling")
        await parts.journal.append(JobDeleted(job_id="j1"))
        job = await parts.when("j1", "cancelling")
        assert job.deleted_at
        slow.go_on.set()
        await parts.when("j1", "cancelled")
        assert await keys(parts, "j1") == []


async def test_a_dead_workers_job_of_another_model_goes_back_to_the_queue(parts: Parts) -> None:
    await parts.submit("j1", model_id="facebook/musicgen-small")
    await parts.journal.append(JobStarted(job_id="j1", attempt=1, worker_id="gone"))
    engine = ScriptedEngine()
    async with parts.working(engine):
        await parts.when("j1", "processing")
        job = await parts.when("j1", "queued")
        assert engine.requests == []
        shown = (await parts.http.get("/jobs/j1")).json()
    assert (job.failures, job.lost) == (0, 1)
    assert shown["stage"] == "waits for a worker with the model facebook/musicgen-small"


async def test_a_strangers_file_among_the_audio_is_left_alone(parts: Parts) -> None:
    await parts.objects.put("samples/j1/notes.txt", b"mine")
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "completed")
    assert "samples/j1/notes.txt" in await keys(parts, "j1")


@pytest.mark.parametrize("event", [JobCancelRequested, JobDeleted])
async def test_a_job_that_waits_for_its_next_attempt_leaves_nothing_when_it_is_stopped(
    parts: Parts, event: type[JobCancelRequested | JobDeleted]
) -> None:
    engine = ScriptedEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit("j1")
        await eventually(lambda: _samples(parts, "j1"))
    assert await keys(parts, "j1")
    await parts.when("j1", "queued")
    await parts.journal.append(event(job_id="j1"))
    async with parts.working(ScriptedEngine()):
        await parts.when("j1", "cancelled")
    assert await keys(parts, "j1") == []


async def test_a_new_worker_claims_nothing_before_it_has_read_the_whole_log(tmp_path: Path) -> None:
    """With no views to start from, all of the past looks open until it has been read to the end."""
    async with open_parts(tmp_path) as parts:
        async with parts.working(ScriptedEngine()):
            for number in range(30):
                await parts.submit(f"done-{number}", seeds=[1])
            for number in range(30):
                await parts.when(f"done-{number}", "completed")
        await parts.submit("open", seeds=[1])
    for file in list(tmp_path.glob("views.db*")):  # noqa: ASYNC240 -- nothing else runs
        file.unlink()
    engine = ScriptedEngine()
    async with open_parts(tmp_path) as parts, parts.working(engine):
        await parts.when("open", "completed")
        assert [request.id for request in engine.requests] == ["open/1"]


class FailingObjects(FileObjects):
    """Refuses its first puts, as a server that is down would."""

    refusals = 3

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        if self.refusals:
            self.refusals -= 1
            raise UnavailableError("The object store does not answer.")
        return await super().put(key, data, replace=replace)


async def test_the_worker_waits_for_an_object_store_that_is_down(parts: Parts, tmp_path: Path) -> None:
    parts.objects = await FailingObjects.open(tmp_path / "objects")
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1")
        job = await parts.when("j1", "completed")
    assert job.attempt == 1
    assert len(await keys(parts, "j1")) == 4


async def test_a_sample_reported_twice_or_from_an_old_attempt_changes_nothing(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        before = await parts.when("j1", "completed")
        old = before.samples[0].event
        zombie = SampleGenerated(**{name: getattr(old, name) for name in old.__struct_fields__} | {"sha256": "0" * 64})
        await parts.journal.append(zombie)
        after = await parts.job("j1")
    assert after is not None
    assert after.samples == before.samples
    assert after.outcomes[-1].reason == "the job is completed"


async def _samples(parts: Parts, job_id: str) -> bool:
    job = await parts.job(job_id)
    return bool(job and job.samples)


async def _status(parts: Parts, job_id: str, status: str) -> Job | None:
    job = await parts.job(job_id)
    return job if job and job.status == status else None


async def _stopped(engine: ScriptedEngine) -> list[str]:
    return engine.stopped


async def _kill(parts: Parts, task: "asyncio.Task[None]") -> None:
    """Ends a worker without a last word: its log no longer takes anything from it."""
    append: Callable[..., Awaitable[object]] = parts.journal.append

    async def silence(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    parts.journal.append = silence  # type: ignore[assignment, method-assign]
    try:
        await stop(task)
    finally:
        parts.journal.append = append  # type: ignore[method-assign, assignment]


async def _again_and_again(parts: Parts, event: WorkerAlive) -> None:
    while True:
        await parts.journal.append(event)
        await asyncio.sleep(LEASE / 10)


def made(running: Running) -> dict[str, Any]:
    place = running.http.post("/generate", json={"prompt": "x", "duration": 0.5}).headers["Location"]
    eventually_sync(lambda: running.http.get(place).json()["status"] in {"completed", "failed"})
    job: dict[str, Any] = running.http.get(place).json()
    assert job["status"] == "completed", job
    return job


def test_a_studio_unloads_its_model_and_loads_it_for_the_next_job(tmp_path: Path) -> None:
    running = Running(tmp_path, TEXT2SONG_UNLOAD_AFTER="0.001")
    threads = Path(f"/proc/{running.process.pid}/task")

    def is_unloaded() -> bool:
        pids = [pid for children in threads.glob("*/children") for pid in children.read_text().split()]
        children = (Path(f"/proc/{pid}/cmdline") for pid in pids)
        return not any(b"spawn_main" in child.read_bytes() for child in children if child.exists())

    try:
        running.wait_until_ready()
        for _ in range(2):
            eventually_sync(is_unloaded)
            (model, *_) = running.http.get("/models").json()["items"]
            assert (model["is_loaded"], model["workers"]) == (True, 1)
            assert made(running)["attempt"] == 1
    finally:
        assert running.stop() == 0, running.errors()
