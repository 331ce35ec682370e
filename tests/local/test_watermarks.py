"""What an API process knows of views that another process folds."""

import asyncio
from collections.abc import Mapping

import pytest

from domain.ports import Position
from projections.freshness import watermarks
from projections.freshness.watermarks import Watermarks
from tests.conditions import eventually
from tests.local.parts import Parts, stop, submission


async def test_a_position_is_waited_for_until_another_process_has_folded_it(parts: Parts) -> None:
    views = Watermarks(parts.log, parts.store)
    running = asyncio.create_task(views.run())
    await parts.submit("j1")
    assert await views.caught_up(10)
    ahead = Position("jobs", 0, (await parts.log.ends("jobs"))[0])
    assert not await views.wait([ahead], 0.05)
    await stop(running)


async def test_views_are_not_ready_before_the_past_is_folded(parts: Parts) -> None:
    class Stuck:
        """A store whose views are behind."""

        behind = True

        async def watermarks(self) -> dict[tuple[str, int], int]:
            return {} if self.behind else await parts.store.watermarks()

    await parts.submit("j1")
    await parts.when("j1", "queued")
    store = Stuck()
    views = Watermarks(parts.log, store)  # type: ignore[arg-type]
    running = asyncio.create_task(views.run())
    assert not await views.caught_up(0.1)
    assert not views.ready
    store.behind = False

    async def is_ready() -> bool:
        return views.ready

    await eventually(is_ready)
    await stop(running)


async def test_nobody_asks_the_store_while_nobody_waits(parts: Parts) -> None:
    looks = 0

    class Counted:
        async def watermarks(self) -> dict[tuple[str, int], int]:
            nonlocal looks
            looks += 1
            return await parts.store.watermarks()

    views = Watermarks(parts.log, Counted())  # type: ignore[arg-type]
    running = asyncio.create_task(views.run())
    assert await views.caught_up(10)
    before = looks
    await parts.submit("j1")
    await parts.when("j1", "queued")
    assert looks <= before + 1
    assert await views.caught_up(10)
    assert looks > before
    await stop(running)


async def test_a_stop_is_heard_at_the_very_moment_that_somebody_begins_to_wait(parts: Parts) -> None:
    views = Watermarks(parts.log, parts.store)
    running = asyncio.create_task(views.run())
    assert await views.caught_up(10)
    await asyncio.sleep(0.05)
    views._frontier.wanted.set()
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done == {running}


async def test_the_store_is_asked_once_in_a_while_so_that_the_tail_can_forget(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermarks, "IDLE_SECONDS", 0.01)
    views = Watermarks(parts.log, parts.store)
    running = asyncio.create_task(views.run())
    assert await views.caught_up(10)
    [position] = await parts.journal.append(submission("j1"))
    partition = position.topic, position.partition
    await eventually(lambda: asyncio.sleep(0, views.offsets[partition] > position.offset))
    await stop(running)


async def test_emptied_views_are_ready_again_only_with_all_that_they_had_shown(parts: Parts) -> None:
    class Emptied:
        offsets: dict[tuple[str, int], int] | None = None

        async def watermarks(self) -> dict[tuple[str, int], int]:
            return await parts.store.watermarks() if self.offsets is None else self.offsets

    store = Emptied()
    views = Watermarks(parts.log, store)  # type: ignore[arg-type]
    running = asyncio.create_task(views.run())
    positions = await parts.journal.append(submission("j1"), submission("j2"))
    assert await views.wait(positions, 10)
    full = dict(views.offsets)
    for offsets, ready in (({}, False), ({**full, ("jobs", positions[0].partition): 0}, False), (full, True)):
        store.offsets = offsets

        async def is_so(ready: bool = ready, offsets: Mapping[tuple[str, int], int] = offsets) -> bool:
            return views.ready == ready and views.offsets == {at: offsets.get(at, 0) for at in full}

        await eventually(is_so)
    await stop(running)
