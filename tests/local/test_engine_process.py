import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from domain.models import NOISE, Model
from tests.conditions import eventually_sync
from workers.engine import Clip, Engine, EngineError, EngineRequest, Failure, Progress, Take, Update
from workers.engine_places import Places
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import resolve
from workers.engines.loading import load

pytestmark = pytest.mark.asyncio(loop_scope="module")


def request(*seeds: int, ident: str = "r", duration: float = 1.0) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds)]
    return EngineRequest(id=ident, prompt="dub", duration=duration, takes=takes)


async def sing(process: EngineProcess, request: EngineRequest) -> list[NDArray[np.float32]]:
    return await drain(process.generate(request))


async def drain(updates: AsyncIterator[Progress | Clip]) -> list[NDArray[np.float32]]:
    return [update.pcm async for update in updates if isinstance(update, Clip)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real() -> AsyncIterator[EngineProcess]:
    process = EngineProcess(load, resolve(NOISE.id), "cpu")
    await process.start()
    yield process
    await process.stop()


async def test_a_model_in_another_process_sings_the_takes_in_order(real: EngineProcess) -> None:
    updates = [update async for update in real.generate(request(1, 2))]
    assert [(update.index, update.seed) for update in updates if isinstance(update, Clip)] == [(0, 1), (1, 2)]
    assert all(update.pcm.shape == (1, 32000) for update in updates if isinstance(update, Clip))
    assert isinstance(updates[0], Progress)
    assert (real.alive, real.device) == (True, "cpu")


async def test_requests_made_at_once_take_turns_and_get_their_own_audio(real: EngineProcess) -> None:
    together = await asyncio.gather(*(sing(real, request(seed, ident=f"r{seed}")) for seed in range(3)))
    for seed, pcm in enumerate(together):
        assert np.array_equal(pcm, await sing(real, request(seed)))


async def test_closing_early_stops_the_request_and_the_next_is_unaffected(real: EngineProcess) -> None:
    undisturbed = await sing(real, request(1))
    async with aclosing(real.generate(request(1, 2, 3, duration=30.0))) as updates:
        async for update in updates:
            if isinstance(update, Progress) and update.fraction > 0.01:
                break
    async with asyncio.timeout(5):
        assert np.array_equal(await sing(real, request(1)), undisturbed)


async def test_cancelling_the_task_stops_the_request(real: EngineProcess) -> None:
    task = asyncio.create_task(sing(real, request(1, duration=30.0)))
    waiting = asyncio.create_task(sing(real, request(2, ident="waiting")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await waiting) == 1


async def test_signals_to_stop_are_left_to_the_parent(real: EngineProcess) -> None:
    pid = real.pid
    assert pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert len(await sing(real, request(1))) == 1
    assert real.pid == pid


async def test_a_killed_child_fails_its_request_and_its_successor_sings_the_same(real: EngineProcess) -> None:
    before, pid = await sing(real, request(1)), real.pid
    assert pid
    updates = real.generate(request(1, duration=30.0))
    await anext(updates)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"died \(signal 9, out of memory\?\)") as caught:
        await drain(updates)
    assert caught.value.transient
    assert not real.alive
    assert np.array_equal(await sing(real, request(1)), before)
    assert real.pid != pid


def loads_once(mark: Path) -> Engine:
    if mark.exists():
        raise EngineError("The weights are gone.")
    mark.touch()
    return Scripted()


async def test_a_check_tells_a_request_that_failed_from_an_engine_that_cannot_work(
    tmp_path: Path, real: EngineProcess
) -> None:
    await real.check()
    process = EngineProcess(loads_once, tmp_path / "mark")
    await process.check()
    with pytest.raises(EngineError, match="too long"):
        await sing(process, request(1, duration=31))
    await process.check()
    await process.stop()
    for call in (process.check(), sing(process, request(1))):
        with pytest.raises(EngineError, match="The weights are gone") as caught:
            await call
        assert caught.value.transient


class Scripted:
    """An engine whose n-th step is the n-th action; each take ends with a clip."""

    model: Model = NOISE
    device = "cpu"

    def __init__(self, *actions: Callable[[], object], capacity: int = 1) -> None:
        self.capacity = capacity
        self.actions = actions
        self.held: dict[str, list[Take]] = {}

    def admit(self, request: EngineRequest) -> None:
        if request.duration > 30:
            raise EngineError("The duration is too long.")
        self.held[request.id] = list(request.takes)

    def advance(self) -> Sequence[Update]:
        for action in self.actions:
            action()
        updates: list[Update] = []
        for ident, takes in list(self.held.items()):
            take = takes.pop(0)
            pcm = np.full((1, 10), take.seed, np.float32)
            updates.append(Clip(request_id=ident, index=take.index, seed=take.seed, sample_rate=10, pcm=pcm))
            if not takes:
                del self.held[ident]
        return updates

    def cancel(self, request_id: str) -> None:
        self.held.pop(request_id, None)


def sings() -> Engine:
    return Scripted(capacity=2)


def refuses() -> Engine:
    raise EngineError("Model x has no weights.")


def exits_while_loading() -> Engine:
    os._exit(3)


def sleeps() -> None:
    print("asleep", flush=True)
    time.sleep(600)


def loads_for_ever() -> Engine:
    sleeps()
    raise AssertionError


def hangs() -> Engine:
    return Scripted(sleeps)


def exits() -> Engine:
    return Scripted(lambda: os._exit(3))


class Slow(Scripted):
    """Its steps tell of nothing and take their time; cancelling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def advance(self) -> Sequence[Update]:
        time.sleep(0.05)
        return [Progress(request_id=ident, fraction=0.5, stage="decoding") for ident in self.held]

    def cancel(self, request_id: str) -> None:
        super().cancel(request_id)
        time.sleep(0.2)
        self.mark.write_text(request_id)


class Stuck(Scripted):
    """Hangs in its first step, once it has left a mark."""

    def __init__(self, mark: Path) -> None:
        super().__init__(mark.touch, sleeps)


class Failing(Scripted):
    def advance(self) -> Sequence[Update]:
        (ident,) = self.held
        self.held.clear()
        return [Failure(request_id=ident, error="No memory is left.", transient=True)]


async def test_requests_share_the_engine_up_to_its_capacity() -> None:
    process = EngineProcess(sings)
    try:
        together = await asyncio.gather(*(sing(process, request(n, n + 10, ident=str(n))) for n in range(5)))
        assert [[clip[0, 0] for clip in clips] for clips in together] == [[n, n + 10] for n in range(5)]
        with pytest.raises(EngineError, match="too long") as caught:
            await sing(process, request(1, duration=31.0))
        assert not caught.value.transient
        first = process.pid
        await process.stop()
        await process.start()
        assert process.pid != first
    finally:
        await process.stop()
    assert not process.alive


async def test_one_free_place_is_enough_for_a_request_with_many_takes() -> None:
    places = Places()
    places.resize(2)
    await places.take(1)
    await places.take(5)
    waiting = [asyncio.create_task(places.take(count)) for count in (1, 2, 1)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    places.free(4)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    places.free(1)
    await waiting[1]
    assert not waiting[2].done()
    places.free(2)
    await waiting[2]


async def test_closing_returns_only_when_the_child_has_let_go(tmp_path: Path) -> None:
    process = EngineProcess(Slow, tmp_path / "cancelled")
    try:
        async with aclosing(process.generate(request(1))) as updates:
            await anext(updates)
        assert (tmp_path / "cancelled").read_text() == "r"
    finally:
        await process.stop()


async def test_a_listener_who_dawdles_is_not_taken_for_a_child_that_hangs() -> None:
    process = EngineProcess(sings, stall_timeout=0.1)
    try:
        async with aclosing(process.generate(request(1, 2))) as updates:
            await anext(updates)
            await asyncio.sleep(0.5)
            assert isinstance(await anext(updates), Clip)
        assert process.alive
    finally:
        await process.stop()


async def test_cancelling_what_hangs_ends_the_child(tmp_path: Path) -> None:
    process = EngineProcess(Stuck, tmp_path / "stuck", stall_timeout=1.0)
    await process.start()
    singing = asyncio.create_task(sing(process, request(1)))
    await asyncio.to_thread(eventually_sync, (tmp_path / "stuck").exists)
    singing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await singing
    assert not process.alive


async def test_a_failure_is_raised_as_the_engine_tells_it() -> None:
    process = EngineProcess(Failing)
    try:
        for _ in range(2):
            with pytest.raises(EngineError, match="No memory is left") as caught:
                await sing(process, request(1))
            assert caught.value.transient
        assert process.alive
    finally:
        await process.stop()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (refuses, "Model x has no weights."),
        (exits_while_loading, r"died \(exit code 3\)"),
        (loads_for_ever, "not loaded within 2 s"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_a_sentence(build: Callable[[], Engine], said: str) -> None:
    process = EngineProcess(build, load_timeout=2.0 if build is loads_for_ever else 60.0)
    with pytest.raises(EngineError, match=said):
        await process.start()
    assert not process.alive


@pytest.mark.parametrize(("build", "said"), [(hangs, "did not respond for 0.5 s"), (exits, r"died \(exit code 3\)")])
async def test_a_child_that_hangs_or_ends_at_work_is_a_transient_failure(
    build: Callable[[], Engine], said: str
) -> None:
    process = EngineProcess(build, stall_timeout=0.5)
    with pytest.raises(EngineError, match=said) as caught:
        await sing(process, request(1))
    assert caught.value.transient
    assert not process.alive


async def test_stopping_ends_a_child_that_hangs() -> None:
    process = EngineProcess(hangs)
    await process.start()
    singing = asyncio.create_task(sing(process, request(1)))
    await asyncio.sleep(0)
    await process.stop()
    with pytest.raises(EngineError, match="was stopped"):
        await singing
    assert not process.alive


@pytest.mark.parametrize("turns", [1, 3])
async def test_a_start_that_is_cancelled_at_once_leaves_no_child_behind(turns: int) -> None:
    others = set(multiprocessing.active_children())
    process = EngineProcess(loads_for_ever)
    starting = asyncio.create_task(process.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert set(multiprocessing.active_children()) == others


PARENT = """
import asyncio
from tests.local.test_engine_process import EngineProcess, hangs, request, sing, sings

async def killed():
    process = EngineProcess(hangs)
    await sing(process, request(1))

async def forgetful():
    await sing(EngineProcess(sings), request(1))

if __name__ == "__main__":
    asyncio.run({}())
"""


async def test_a_child_in_the_middle_of_a_step_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Both hold the pipe that is read here, so it ends when both are gone."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format("killed"))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    assert parent.stdout
    async with asyncio.timeout(60):
        assert await parent.stdout.readline() == b"asleep\n"
        parent.kill()
        assert await parent.stdout.read() == b""
        await parent.wait()


async def test_a_parent_that_forgets_its_child_ends_it_when_it_exits(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format("forgetful"))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    async with asyncio.timeout(60):
        assert await parent.wait() == 0


class Shrinking(Scripted):
    """Memory runs out at the first step."""

    def advance(self) -> Sequence[Update]:
        self.capacity = 2
        return super().advance()


def shrinks() -> Engine:
    return Shrinking(capacity=8)


async def test_an_engine_that_has_shrunk_says_so_and_how_fast_and_how_busy_it_is() -> None:
    process = EngineProcess(shrinks)
    await process.start()
    assert (process.capacity, process.busy, process.real_time_factor) == (8, 0, None)
    async with aclosing(process.generate(request(*range(5)))) as updates:
        assert isinstance(await anext(updates), Clip)
        assert 0 < process.busy <= 4
    assert process.busy == 0
    while process.capacity == 8:
        await sing(process, request(1))
    assert process.capacity == 2
    assert (process.real_time_factor or 0) > 0
    await process.stop()


async def test_a_model_that_nobody_needs_is_unloaded_and_there_again_for_the_next_request() -> None:
    process = EngineProcess(sings, unload_after=0.1)
    try:
        await process.start()
        for seed in range(3):
            await asyncio.to_thread(eventually_sync, lambda: not process.alive)
            assert (process.capacity, process.device, await process.memory()) == (2, "cpu", None)
            assert [clip[0, 0] for clip in await sing(process, request(seed))] == [seed]
    finally:
        await process.stop()


async def test_a_model_is_not_unloaded_while_it_is_needed(tmp_path: Path) -> None:
    process = EngineProcess(Slow, tmp_path / "cancelled", unload_after=0.1)
    try:
        async with aclosing(process.generate(request(1))) as updates:
            for _ in range(10):
                await anext(updates)
        assert process.alive
    finally:
        await process.stop()


async def test_a_request_that_comes_as_the_model_is_unloaded_is_carried_out() -> None:
    process = EngineProcess(sings, unload_after=0.0)
    try:
        for turns in range(6):
            singing = asyncio.create_task(sing(process, request(turns)))
            assert [clip[0, 0] for clip in await singing] == [turns]
            for _ in range(turns):
                await asyncio.sleep(0)
    finally:
        await process.stop()
    assert not process.alive


async def test_a_child_tells_how_much_memory_it_took(real: EngineProcess) -> None:
    first = await real.memory()
    both = await asyncio.gather(real.memory(), sing(real, request(1)), real.memory())
    assert first is not None
    assert 50e6 < first <= min(memory for memory in both if isinstance(memory, int)) < 10e9
    process = EngineProcess(hangs)
    await process.start()
    singing = asyncio.create_task(sing(process, request(1)))
    # It answers until it hangs.
    await asyncio.sleep(0.5)
    asking = asyncio.create_task(process.memory())
    await asyncio.sleep(0)
    await process.stop()
    assert await asking is None
    with pytest.raises(EngineError, match="was stopped"):
        await singing
