"""Who runs what: many attempts at once, and what an absent log or peer does to them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest

from domain.errors import UnavailableError
from domain.events import timestamp
from domain.events.jobs import JobAttemptFailed, JobCancelRequested, JobStarted
from domain.jobs import Job
from domain.ports import Message, Position
from tests import audit
from tests.conditions import eventually
from tests.local.engine import ScriptedEngine, out_of_memory
from tests.local.parts import LEASE, Parts, stop
from workers.claims import Claims
from workers.engine import Clip, EngineError, EngineRequest, Progress
from workers.trade import BrokenError, Run


class ManyAtOnce(ScriptedEngine):
    @property
    def in_hand(self) -> set[str]:
        return {request.id for request in self.requests} - set(self.stopped)


async def in_hand(engine: ManyAtOnce, number: int) -> None:
    async def reached() -> bool:
        return len(engine.in_hand) == number

    await eventually(reached)


async def test_a_worker_runs_as_many_attempts_as_its_capacity(parts: Parts) -> None:
    engine = ManyAtOnce()
    engine.close_after(0)
    async with parts.working(engine, capacity=3):
        for number in range(5):
            await parts.submit(f"j{number}", seeds=[1])
        await in_hand(engine, 3)
        assert engine.in_hand == {"j0/1", "j1/1", "j2/1"}
        # One that ends makes room for the next, and the others go on.
        await parts.journal.append(JobCancelRequested(job_id="j1"))
        await parts.when("j1", "cancelled")
        await in_hand(engine, 3)
        assert engine.in_hand == {"j0/1", "j2/1", "j3/1"}
        engine.release()
        for name in ("j0", "j2", "j3", "j4"):
            assert (await parts.when(name, "completed")).attempt == 1


async def test_a_job_is_claimed_as_long_as_there_is_a_place_for_a_sample(parts: Parts) -> None:
    engine = ManyAtOnce()
    engine.close_after(2)
    async with parts.working(engine, capacity=4):
        await parts.submit("j0", seeds=[1, 2, 3])

        async def two_are_made() -> bool:
            job = await parts.job("j0")
            return job is not None and len(job.samples) == 2

        await eventually(two_are_made)
        for name, seeds in (("j1", [1, 2]), ("j2", [1, 2, 3]), ("j3", [1])):
            await parts.submit(name, seeds=seeds)
        await in_hand(engine, 3)
        assert engine.in_hand == {"j0/1", "j1/1", "j2/1"}
        engine.release()
        for name in ("j0", "j1", "j2", "j3"):
            assert (await parts.when(name, "completed")).attempt == 1


async def test_a_worker_that_stops_gives_back_everything_it_runs(parts: Parts) -> None:
    engine = ManyAtOnce()
    engine.close_after(0)
    async with parts.working(engine, capacity=3) as tasks:
        for number in range(3):
            await parts.submit(f"j{number}", seeds=[1])
        await in_hand(engine, 3)
        await stop(*tasks)
        for number in range(3):
            job = await parts.when(f"j{number}", "queued")
            assert (job.attempt, job.failures) == (1, 0)
    async with parts.working(ScriptedEngine()):
        for number in range(3):
            await parts.when(f"j{number}", "completed")


class SlowToStop(ScriptedEngine):
    """Its last words take several leases."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        try:
            async with aclosing(super().generate(request)) as clips:
                async for clip in clips:
                    yield clip
        except asyncio.CancelledError:
            await asyncio.sleep(5 * LEASE)
            raise


async def test_a_worker_whose_attempts_are_long_in_ending_keeps_them_until_it_gives_them_back(parts: Parts) -> None:
    slow = SlowToStop()
    slow.close_after(0)
    async with parts.working(slow) as tasks:
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "processing")
        async with parts.working(ScriptedEngine()):
            await asyncio.sleep(LEASE)
            await stop(*tasks)
            job = await parts.when("j1", "completed")
    assert (job.attempt, job.failures, job.lost) == (2, 0, 0)
    started, failed = "job.started.v1", "job.attempt.failed.v1"
    told = [name for name in await parts.history("j1") if name in {started, failed}]
    assert told == [started, failed, started]


async def test_workers_of_large_capacity_share_the_queue_and_run_each_job_once(parts: Parts) -> None:
    engines = [ScriptedEngine() for _ in range(3)]
    async with parts.working(*engines, capacity=8):
        names = [f"j{number}" for number in range(60)]
        await asyncio.gather(*(parts.submit(name, seeds=[1]) for name in names))
        for name in names:
            await parts.when(name, "completed")
    made = [request.id for engine in engines for request in engine.requests]
    assert sorted(made) == sorted(f"{name}/1" for name in names)


async def test_a_cancelled_job_does_not_wait_for_its_busy_worker(parts: Parts) -> None:
    """Between two attempts the job is still its worker's, who has another in hand by now."""
    engine = ScriptedEngine()
    engine.faults = [out_of_memory()]
    async with parts.working(engine, backoff=60):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "processing", "queued")

        async def failed() -> bool:
            return "job.attempt.failed.v1" in await parts.history("j1")

        await eventually(failed)
        engine.close_after(0)
        await parts.submit("long", seeds=[1])
        await parts.when("long", "processing")
        await parts.journal.append(JobCancelRequested(job_id="j1"))
        await parts.when("j1", "cancelled")
        assert (await parts.when("long", "processing")).attempt == 1
        engine.release()
        await parts.when("long", "completed")


@pytest.mark.parametrize("topics", [{"jobs", "progress"}, {"progress"}])
async def test_nobody_is_silent_while_the_log_is_away(
    parts: Parts, topics: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append, is_away = parts.log.append, False

    async def refusing(messages: Sequence[Message]) -> list[Position]:
        if is_away and any(message.topic in topics for message in messages):
            raise UnavailableError("Kafka does not answer.")
        return await append(messages)

    monkeypatch.setattr(parts.log, "append", refusing)
    holder, idle = ScriptedEngine(), ScriptedEngine()
    holder.close_after(0)
    async with parts.working(holder):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "processing")
        async with parts.working(idle):
            await asyncio.sleep(LEASE)
            is_away = True
            await asyncio.sleep(4 * LEASE)
            is_away = False
            await asyncio.sleep(LEASE)
            holder.release()
            job = await parts.when("j1", "completed")
    assert (job.attempt, job.failures, idle.requests) == (1, 0, [])


async def test_a_new_worker_waits_until_a_retry_is_due(parts: Parts) -> None:
    due = timestamp(datetime.now(UTC) + timedelta(seconds=2))
    await parts.submit("j1", seeds=[1])
    await parts.journal.append(JobStarted(job_id="j1", attempt=1, worker_id="gone"))
    await parts.journal.append(JobAttemptFailed(job_id="j1", attempt=1, error="out of memory", retry_at=due))
    await parts.when("j1", "queued")
    async with parts.working(ScriptedEngine()):
        job = await parts.when("j1", "completed")
    assert job.started_at is not None
    assert job.started_at >= due


async def test_a_broken_worker_fails_no_job_and_leaves_the_queue_to_others(parts: Parts) -> None:
    broken, sound = ScriptedEngine(), ScriptedEngine()
    broken.broken = EngineError("The GPU has fallen off the bus.", transient=True)
    working = asyncio.create_task(parts.worker(broken).run())
    for number in range(20):
        await parts.submit(f"j{number}", seeds=[1])

    async def has_said_so() -> bool:
        return [worker.state for worker in parts.services.feed.workers()] == ["broken"]

    await eventually(has_said_so)
    assert (await parts.when("j0", "queued")).error == "The worker is broken: The GPU has fallen off the bus."
    with pytest.raises(ExceptionGroup) as caught:
        await working
    assert caught.group_contains(BrokenError, match="gave up after 6 tries to work again: The GPU has fallen", depth=1)
    async with parts.working(sound):
        jobs = [await parts.when(f"j{number}", "completed") for number in range(20)]
    assert {job.failures for job in jobs} == {0}
    assert len(broken.requests) == 1


async def test_a_worker_that_works_again_goes_on(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.broken = EngineError("The GPU is busy.", transient=True)
    async with parts.working(engine):
        await parts.submit("j1", seeds=[1])

        async def is_checked() -> bool:
            return engine.checks > 2

        await eventually(is_checked)
        engine.broken = None
        job = await parts.when("j1", "completed")
    assert (job.attempt, job.failures) == (2, 0)


async def test_attempts_that_run_at_once_on_a_broken_worker_all_go_back(parts: Parts) -> None:
    engine = ManyAtOnce()
    engine.close_after(0)
    async with parts.working(engine, capacity=3):
        for number in range(3):
            await parts.submit(f"j{number}", seeds=[1])
        await in_hand(engine, 3)
        engine.broken = EngineError("The process died.", transient=True)
        engine.release()
        jobs = [await parts.when(f"j{number}", "queued") for number in range(3)]
        engine.broken = None
        jobs = [await parts.when(f"j{number}", "completed") for number in range(3)]
    assert {job.failures for job in jobs} == {0}


class Mortal(ManyAtOnce):
    """Dies, with all that it makes, of any prompt that is poison; the next request finds it alive again."""

    def __init__(self) -> None:
        super().__init__()
        self._death = asyncio.get_running_loop().create_future()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        clips = super().generate(request)
        async with aclosing(clips):
            first = await anext(clips)
            if request.prompt == "poison":
                death, self._death = self._death, asyncio.get_running_loop().create_future()
                await asyncio.sleep(0.05)
                death.set_result(None)
            else:
                death = self._death
                # While nothing is played to the end, whoever begins meanwhile dies as well.
                await asyncio.wait({death}, timeout=0.3)
            if death.done():
                raise EngineError("The process died.", transient=True)
            yield first
            async for clip in clips:
                yield clip


async def test_a_job_that_ends_its_engine_takes_those_beside_it_along_only_once(parts: Parts) -> None:
    names = [f"j{number}" for number in range(4)]
    for name in names:
        await parts.submit(name, seeds=[1])
    await parts.submit("bad", seeds=[1], prompt="poison")
    async with parts.working(Mortal(), capacity=8):
        assert (await parts.when("bad", "failed")).failures == 2
        found = [await parts.when(name, "completed") for name in names]
    assert {job.failures for job in found} == {1}


async def test_a_job_that_lost_two_workers_is_run_alone(parts: Parts) -> None:
    for attempt in (1, 2, 3):
        if attempt == 1:
            await parts.submit("bad", seeds=[1])
        await parts.journal.append(JobStarted(job_id="bad", attempt=attempt, worker_id="gone"))
    engine = ManyAtOnce()
    engine.close_after(0)
    async with parts.working(engine, capacity=8):
        await in_hand(engine, 1)
        await parts.submit("j1", seeds=[1])
        await parts.submit("j2", seeds=[1])
        await parts.when("j2", "queued")
        await asyncio.sleep(LEASE)
        assert [request.id for request in engine.requests] == ["bad/4"]
        engine.release()
        for name in ("bad", "j1", "j2"):
            await parts.when(name, "completed")


async def test_a_cancel_that_comes_between_a_claim_and_its_attempt_is_heeded(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Claims._run

    async def cancelled_first(self: Claims[Job], claimed: Run[Job]) -> None:
        await parts.journal.append(JobCancelRequested(job_id="j1"))

        async def is_over() -> bool:
            return not claimed.is_held

        await eventually(is_over)
        await run(self, claimed)

    monkeypatch.setattr(Claims, "_run", cancelled_first)
    engine = ScriptedEngine()
    async with parts.working(engine):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "cancelled")
    assert engine.requests == []


@pytest.mark.parametrize("has_landed", [False, True])
async def test_a_worker_that_is_stopped_while_it_claims_gives_the_job_back(parts: Parts, has_landed: bool) -> None:
    await parts.submit("j1", seeds=[1])
    worker = parts.worker(ScriptedEngine())
    running = asyncio.create_task(worker.run())
    append = parts.log.append

    async def stop_at_the_claim(messages: Sequence[Message]) -> list[Position]:
        is_claim = messages[0].headers["ce_type"] == "text2song.job.started.v1"
        if is_claim and not has_landed:
            running.cancel()
            await asyncio.sleep(0)
        positions = await append(messages)
        if is_claim and has_landed:
            running.cancel()
            await asyncio.sleep(0)
        return positions

    parts.log.append = stop_at_the_claim  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await running
    job = await parts.job("j1")
    assert job is not None
    assert (job.status, job.failures, job.lost) == ("queued", 0, 0)
    async with parts.working(ScriptedEngine()):
        assert (await parts.when("j1", "completed")).lost == 0


async def test_an_owner_with_many_jobs_does_not_hold_up_another(parts: Parts) -> None:
    engine = ManyAtOnce()
    engine.close_after(1)
    for number in range(12):
        await parts.submit(f"a{number}", seeds=[1], user_id="ann")
    async with parts.working(engine):

        async def second_is_held() -> bool:
            return len(engine.requests) == 2

        await eventually(second_is_held)
        for name, fields in (("b0", {"user_id": "bob"}), ("b1", {"user_id": "bob"}), ("t0", {"ab_test_id": "test"})):
            await parts.submit(name, seeds=[1], **fields)
        await parts.submit("urgent", seeds=[1], user_id="ann", priority=1)
        engine.release()
        for name in ("b1", "a11"):
            await parts.when(name, "completed")
    order = [request.id.removesuffix("/1") for request in engine.requests]
    assert order[:3] == ["a0", "a1", "urgent"]
    assert order[3:9] == ["a2", "b0", "t0", "a3", "b1", "a4"]
    assert [name for name in order if name.startswith("a")] == [f"a{number}" for number in range(12)]


async def test_workers_share_the_turns_of_owners(parts: Parts) -> None:
    """What another worker claims counts as well."""
    for number in range(20):
        await parts.submit(f"a{number}", seeds=[1], user_id="ann")
    for number in range(4):
        await parts.submit(f"b{number}", seeds=[1], user_id="bob")
    async with parts.working(ScriptedEngine(), ScriptedEngine()):
        for name in ("a19", "b3"):
            await parts.when(name, "completed")
    found = await audit.records(parts.log, "jobs")
    started = [record.key for record in found if record.headers["ce_type"] == "text2song.job.started.v1"]
    assert max(started.index(f"b{number}") for number in range(4)) < 14
