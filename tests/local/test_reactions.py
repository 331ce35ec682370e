"""What reacts to events: it misses none, sees views at least as new as they are, and nothing keeps it from the rest."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from domain.errors import ConflictError, UncertainError
from domain.events import Recorded
from domain.events.jobs import JobCancelRequested
from domain.events.prompts import PromptCreated
from domain.jobs import JOBS
from domain.ports import View
from domain.prompts import PROMPTS
from tests import audit
from tests.conditions import eventually
from tests.local.parts import Parts, open_parts, stop
from workers.reactions import PROGRESS, Progress, Reaction, Reactions


class Listener:
    """Notes the offsets that it is given of each topic, and that the views show the aggregates of them."""

    name = "listener"
    topics = ("jobs", "prompts")

    def __init__(self, parts: Parts) -> None:
        self.heard: dict[str, list[int]] = {topic: [] for topic in self.topics}
        self.fault: Callable[[Sequence[Recorded]], None] = lambda _: None
        self._parts = parts

    async def react(self, batch: Sequence[Recorded]) -> None:
        self.fault(batch)
        for recorded in batch:
            at = recorded.position
            view: View[Any] = JOBS if at.topic == "jobs" else PROMPTS
            assert (await self._parts.store.get(view, [recorded.key]))[recorded.key].position >= at.offset
            self.heard[at.topic].append(at.offset)

    async def has_come_to(self, job: int) -> bool:
        return job in self.heard["jobs"]

    async def has_heard(self, jobs: int, prompts: int = 0) -> bool:
        return set(self.heard["jobs"]) == {*range(jobs)} and set(self.heard["prompts"]) == {*range(prompts)}


async def has_progress(parts: Parts) -> bool:
    """Of a reaction named `listener` on the jobs."""
    return bool(await parts.store.get(PROGRESS, ["listener/jobs/0"]))


@contextlib.asynccontextmanager
async def reacting(parts: Parts, *reactions: Reaction) -> AsyncIterator["asyncio.Task[None]"]:
    """Leaving stops it, at once."""
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, reactions).run())
    try:
        yield running
    finally:
        async with asyncio.timeout(1):
            await stop(running)


async def submit(parts: Parts, *names: str) -> None:
    for name in names:
        await parts.submit(name)


async def test_what_was_on_the_log_before_is_reacted_to_and_what_comes(parts: Parts) -> None:
    await submit(parts, *(f"j{number}" for number in range(700)))
    listener = Listener(parts)
    async with reacting(parts, listener):
        await eventually(lambda: listener.has_heard(700))
        await parts.journal.append(PromptCreated(prompt_id="p1", text="rain"))
        await submit(parts, "late")
        await eventually(lambda: listener.has_heard(701, 1))
    assert listener.heard == {"jobs": [*range(701)], "prompts": [0]}


async def test_it_goes_on_where_it_was_whenever_it_is_stopped(tmp_path: Path) -> None:
    """The batch that it was stopped in comes again."""
    dice, heard = Random(7), list[int]()
    for round_ in range(12):
        async with open_parts(tmp_path) as parts:
            await submit(parts, *(f"j{round_}-{number}" for number in range(40)))
            listener = Listener(parts)
            async with reacting(parts, listener):
                if round_ == 0:
                    await eventually(lambda: has_progress(parts))
                await asyncio.sleep(dice.choice([0, 0.01, 0.1]))
            heard += listener.heard["jobs"]
    async with open_parts(tmp_path) as parts:
        await submit(parts, "last")
        listener = Listener(parts)
        async with reacting(parts, listener):
            await eventually(lambda: listener.has_come_to(12 * 40))
    assert {*heard, *listener.heard["jobs"]} == {*range(12 * 40 + 1)}
    assert listener.heard["jobs"][0] > 0


async def test_an_outage_is_waited_out(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    listener, tries = Listener(parts), 0

    def away(_: Sequence[Recorded]) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UncertainError("The other side is away.")

    listener.fault = away
    async with reacting(parts, listener):
        await submit(parts, "j1")
        await eventually(lambda: listener.has_heard(1))
    assert tries == 3
    assert "The reaction 'listener' waits: The other side is away." in caplog.text


async def test_the_fault_of_one_aggregate_costs_that_one_and_is_said(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    listener, other = Listener(parts), Listener(parts)
    other.name = "other"

    def trip(batch: Sequence[Recorded]) -> None:
        if any(recorded.key == "j7" for recorded in batch):
            raise ZeroDivisionError

    listener.fault = trip
    await submit(parts, *(f"j{number}" for number in range(20)))
    await parts.journal.append(JobCancelRequested(job_id="j7"))
    with caplog.at_level(logging.ERROR):
        async with reacting(parts, listener, other):
            await eventually(lambda: other.has_heard(21))
            await submit(parts, "last")
            await eventually(lambda: listener.has_come_to(21))
    assert set(listener.heard["jobs"]) == {*range(22)} - {7, 20}
    [said] = [record.getMessage() for record in caplog.records]
    assert said == "The reaction 'listener' failed on j7 of jobs and goes on without it."


async def test_one_that_waits_holds_up_no_other(parts: Parts) -> None:
    class Stuck(Listener):
        name = "stuck"

        async def react(self, _: Sequence[Recorded]) -> None:
            await asyncio.Event().wait()

    listener = Listener(parts)
    async with reacting(parts, Stuck(parts), listener):
        await submit(parts, "j1")
        await eventually(lambda: listener.has_heard(1))


async def test_a_rebuild_keeps_progress_and_emptied_views_begin_again(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        await submit(parts, "j1", "j2")
        listener = Listener(parts)
        async with reacting(parts, listener):
            await eventually(lambda: listener.has_heard(2))

            async def saved() -> bool:
                found = await parts.store.get(PROGRESS, ["listener/jobs/0"])
                return found == {"listener/jobs/0": Progress(id="listener/jobs/0", position=2)}

            await eventually(saved)
        assert await audit.replayed(parts.log, tmp_path)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"views.db{suffix}").unlink(missing_ok=True)
    async with open_parts(tmp_path) as parts:
        listener = Listener(parts)
        async with reacting(parts, listener):
            await eventually(lambda: listener.has_heard(2))


async def test_progress_of_another_log_is_refused_in_a_sentence(parts: Parts) -> None:
    await parts.store.save([(PROGRESS, Progress(id="listener/jobs/0", position=5))], {})
    with pytest.raises(ExceptionGroup) as raised:
        await Reactions(parts.journal, parts.store, parts.host, [Listener(parts)]).run()
    [error] = raised.value.exceptions
    assert isinstance(error, ConflictError)
    assert "has read more of jobs than the log holds" in str(error)
