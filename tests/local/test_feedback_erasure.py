"""A deleted job's feedback leaves nothing, whichever comes first, and wherever what erases it is killed."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import pytest

from domain.events import Erased, Event
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot
from domain.events.jobs import JobCancelRequested, JobDeleted
from domain.feedback import FEEDBACK
from domain.jobs import JOBS
from domain.journal import Journal
from domain.ports import Query
from infra.storage.sqlite_store import SqliteStore
from projections.freshness.watermarks import Watermarks
from projections.project import project
from tests import audit
from tests.conditions import eventually
from tests.digest import digests
from tests.local.parts import Parts, open_parts, stop, submission
from workers.feedback import ErasureOfFeedback
from workers.reactions import PROGRESS, Reactions

JOB_IDS: Final = [f"job-{number}" for number in range(5)]
TOPICS: Final = ("jobs", TOPIC.name)
MANY: Final = 10_000


def given(number: int, job_id: str, other: str | None = None, revision: int = 0) -> FeedbackGiven:
    return FeedbackGiven(
        feedback_id=f"feedback-{number}",
        sample=snapshot(job_id),
        other=None if other is None else snapshot(other),
        verdict=None if other is None else "preferred",
        rating=3.0,
        notes=note(number, revision),
    )


def snapshot(job_id: str) -> SampleSnapshot:
    return SampleSnapshot(audio_id=f"audio-of-{job_id}", job_id=job_id, prompt_id="prompt", model_id="model")


def note(number: int, revision: int = 0) -> str:
    return f"<note {number}, revision {revision}>"


class Killed(BaseException):
    """As by SIGKILL: nothing else catches it."""


class Mortal:
    """A port whose calls are counted by `step`, before and after each: there the one who calls may die."""

    def __init__(self, port: Any, step: Callable[[], None]) -> None:
        self._port = port
        self._step = step

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name not in {"append", "ends", "get", "find", "save"}:
            return found

        async def call(*arguments: Any) -> Any:
            self._step()
            answer = await found(*arguments)
            self._step()
            return answer

        return call


class Life:
    """What listeners and operators do in a random order, and what must be left of it."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._numbers = count()
        self._waiting = list(JOB_IDS)
        self._revisions: dict[str, int] = {}
        self.deleted: set[str] = set()
        self.given: dict[str, FeedbackGiven] = {}
        self.erased: set[str] = set()

    def event(self) -> Event | Erased:
        present = [job_id for job_id in JOB_IDS if job_id not in self._waiting]
        match self._dice.choice(["submit", "give", "give", "give", "give", "revise", "erase", "delete", "cancel"]):
            case "submit" if self._waiting:
                return submission(self._waiting.pop())
            case "delete" if present:
                # Twice is refused, and changes nothing.
                job_id = self._dice.choice(present)
                self.deleted.add(job_id)
                return JobDeleted(job_id=job_id)
            case "cancel" if present:
                return JobCancelRequested(job_id=self._dice.choice(present))
            case "revise" if alive := self.alive:
                event = self._dice.choice(alive)
                number = int(event.feedback_id.rpartition("-")[2])
                self._revisions[event.feedback_id] = self._revisions.get(event.feedback_id, 0) + 1
                other = event.other.job_id if event.other else None
                revised = given(number, event.sample.job_id, other, self._revisions[event.feedback_id])
                self.given[event.feedback_id] = revised
                return revised
            case "erase" if alive := self.alive:
                event = self._dice.choice(alive)
                self.erased.add(event.feedback_id)
                return Erased(topic=TOPIC.name, key=event.key, given_partition_key=event.partition_key)
        # The API checks the job, and may know less of its deletion than the log.
        job_id, other = self._dice.sample(JOB_IDS, 2)
        event = given(next(self._numbers), job_id, self._dice.choice([other, None]))
        self.given[event.feedback_id] = event
        return event

    @property
    def alive(self) -> list[FeedbackGiven]:
        return [
            event
            for event in self.given.values()
            if event.feedback_id not in self.erased
            and event.sample.job_id not in self.deleted
            and (event.other is None or event.other.job_id not in self.deleted)
        ]


@contextlib.asynccontextmanager
async def folding(parts: Parts, dice: Random) -> AsyncIterator[Watermarks]:
    """Each topic folded by itself, as on a cluster, and now this, now that one is late."""

    async def fold(topic: str) -> None:
        start = (await parts.store.watermarks()).get((topic, 0), 0)
        async for batch in parts.log.follow({(topic, 0): start}):
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.05]))
            await project(parts.log, parts.store, batch.records, batch.reached)

    views = Watermarks(parts.log, parts.store)
    tasks = [asyncio.create_task(work) for work in (*map(fold, ("prompts", *TOPICS)), views.run())]
    try:
        yield views
    finally:
        await stop(*tasks)


def erasing(journal: Journal, store: SqliteStore, views: Watermarks) -> Reactions:
    return Reactions(journal, store, views, [ErasureOfFeedback(journal, store, views)])


async def keep_alive(parts: Parts, views: Watermarks, dice: Random, deaths: list[int]) -> None:
    """Runs the reaction, killed after so many steps again and again, and at last left alone."""
    while True:
        left = deaths.pop() if deaths else -1

        def step() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        store = cast("SqliteStore", Mortal(parts.store, step))
        journal = Journal(cast("Any", Mortal(parts.log, step)), parts.journal.now, parts.journal.new_id)
        running = asyncio.create_task(erasing(journal, store, views).run())
        try:
            await asyncio.wait({running})
            running.result()
        except* Killed:
            await asyncio.sleep(dice.choice([0, 0.01]))
        finally:
            running.cancel()


async def has_reacted(parts: Parts) -> bool:
    ends = {topic: (await parts.log.ends(topic))[0] for topic in TOPICS}
    marks = await parts.store.watermarks()
    progress = await parts.store.get(PROGRESS, [f"erase-feedback/{topic}/0" for topic in TOPICS])
    return all(
        marks.get((topic, 0), 0) >= end
        and end <= (found.position if (found := progress.get(f"erase-feedback/{topic}/0")) else 0)
        for topic, end in ends.items()
    )


async def noted(folder: Path) -> set[str]:
    """The ids of the feedback whose notes are in any file of the log and of the views."""

    def read() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(folder.glob("*.db*")))

    numbers = re.findall(rb"<note ([0-9]+), revision", await asyncio.to_thread(read))
    return {f"feedback-{int(number)}" for number in numbers}


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_left_whatever_the_order_and_whenever_it_is_killed(tmp_path: Path, seed: int) -> None:
    dice = Random(seed)
    life = Life(dice)
    data = tmp_path / "data"
    for _ in range(2):
        async with open_parts(data, is_folded=False) as parts, folding(parts, dice) as views:
            deaths = [dice.randrange(1, 30) for _ in range(12)]
            task = asyncio.create_task(keep_alive(parts, views, dice, deaths))
            for _ in range(60):
                await parts.journal.append(life.event())
                await asyncio.sleep(dice.choice([0, 0, 0, 0.02]))
            if dice.random() < 0.5:
                await eventually(partial(has_reacted, parts))
            await stop(task)
    async with open_parts(data, is_folded=False) as parts, folding(parts, dice) as views:
        task = asyncio.create_task(keep_alive(parts, views, dice, []))
        await eventually(partial(has_reacted, parts))
        await stop(task)
        alive = {event.feedback_id: event for event in life.alive}
        shown = await parts.store.find(FEEDBACK, Query(limit=1000))
        assert {each.id for each in shown} == {each.id async for each in parts.store.scan(FEEDBACK)} == alive.keys()
        kept = [record for record in await audit.records(parts.log, TOPIC.name) if record.value is not None]
        assert {record.key for record in kept} == alive.keys()
        jobs = {job.id: job async for job in parts.store.scan(JOBS)}
        assert {id_ for id_, job in jobs.items() if job.deleted_at} == life.deleted
        assert len(alive) < len(life.given)

        async def left() -> bool:
            return await noted(data) == alive.keys()

        await eventually(left)
        assert await digests(parts.store) == await audit.replayed(parts.log, tmp_path)


async def test_feedback_of_a_job_whose_deletion_was_refused_stays(parts: Parts) -> None:
    """Nobody submitted the job, as far as the log says."""
    await parts.journal.append(JobDeleted(job_id="never"))
    await parts.journal.append(given(1, "never"))
    await with_erasure(parts, lambda: has_reacted(parts))
    assert [each.id for each in await parts.store.find(FEEDBACK, Query())] == ["feedback-1"]


async def test_two_processes_erase_the_same_and_say_it_at_most_twice(parts: Parts) -> None:
    await parts.submit("job")
    await parts.journal.append(*(given(number, "job") for number in range(50)))
    await parts.journal.append(JobDeleted(job_id="job"))
    await with_erasure(parts, lambda: is_erased(parts), times=2)
    records = await audit.records(parts.log, TOPIC.name)
    assert {record.value for record in records} == {None}
    assert 50 <= (await parts.log.ends(TOPIC.name))[0] - 50 <= 150


async def test_the_feedback_of_a_job_with_ten_thousand_is_erased(parts: Parts) -> None:
    await parts.submit("job")
    await parts.submit("other")
    for start in range(0, MANY, 500):
        await parts.journal.append(*(given(number, "job") for number in range(start, start + 500)))
    await parts.journal.append(given(MANY, "other"), given(MANY + 1, "other", "job"))
    assert await parts.host.caught_up(60)
    await parts.journal.append(JobDeleted(job_id="job"))
    await with_erasure(parts, lambda: is_erased(parts, 1))


async def with_erasure(parts: Parts, condition: Callable[[], Awaitable[bool]], times: int = 1) -> None:
    views = cast("Watermarks", parts.host)
    tasks = [asyncio.create_task(erasing(parts.journal, parts.store, views).run()) for _ in range(times)]
    await eventually(condition, 120)
    await stop(*tasks)


async def is_erased(parts: Parts, left: int = 0) -> bool:
    if await parts.store.count(FEEDBACK, Query()) != left:
        return False
    return await noted(parts.folder) == {f"feedback-{MANY}" for _ in range(left)}
