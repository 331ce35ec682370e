"""The studio dies by SIGKILL, again and again, with some twenty jobs in flight, on one data folder.

KILLS says how often, SEED which moments. The time of a run is mostly that of the model's process starting anew.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Final

import httpx

from infra.storage.file_objects import FileObjects
from infra.storage.sqlite_log import SqliteLog
from tests import audit
from tests.conditions import eventually
from tests.customer import PATIENCE, Customer
from tests.digest import digests
from tests.local.conftest import Running
from tests.local.parts import open_parts

KILLS: Final = int(os.environ.get("KILLS", "3"))
SEED: Final = int(os.environ.get("SEED", Random().randrange(10**6)))


class Moments:
    """Random moments of a studio's life: while it starts, while it generates, and while it writes a result down."""

    def __init__(self, dice: Random, customer: Customer, objects: Path) -> None:
        self._dice = dice
        self._customer = customer
        self._objects = objects

    async def starting(self) -> None:
        await asyncio.sleep(self._dice.uniform(0, 8))

    async def working(self) -> None:
        await eventually(self._customer.is_served, PATIENCE)
        await asyncio.sleep(self._dice.uniform(0, 2))

    async def writing(self) -> None:
        await self.working()
        known = self._files()
        await eventually(lambda: asyncio.to_thread(lambda: self._files() - known))
        await asyncio.sleep(self._dice.uniform(0, 0.05))

    def _files(self) -> set[Path]:
        # The walk passes over folders that the studio removes meanwhile.
        return {Path(folder, name) for folder, _, names in os.walk(self._objects / "samples") for name in names}


@contextmanager
def mortal(data: Path) -> Iterator[Running]:
    """A studio that is killed in the end.

    Over once nobody holds its output any more: the model's process, which nobody killed, is gone too.
    """
    studio = Running(data)
    try:
        yield studio
    finally:
        studio.process.kill()
        studio.process.communicate(timeout=20)
        studio.http.close()


async def test_killed_at_random_moments_nothing_accepted_is_lost_or_done_twice(tmp_path: Path) -> None:
    print(f"\nSEED={SEED}")
    began, data = time.monotonic(), tmp_path / "data"
    objects = await FileObjects.open(data / "objects")
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
        customer = Customer(http, Random(SEED), str(SEED))
        moments = Moments(Random(SEED), customer, data / "objects")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(customer.order())
            tasks.create_task(customer.reconsider())
            tasks.create_task(customer.judge())
            tasks.create_task(customer.compare())
            for moment in islice(cycle((moments.working, moments.writing, moments.starting, moments.working)), KILLS):
                with mortal(data) as studio:
                    customer.urls = [studio.url]
                    await moment()
            studio = stack.enter_context(mortal(data))
            customer.urls, customer.leaving = [studio.url], True

        log = await SqliteLog.open(data / "events.db")
        stack.push_async_callback(log.close)
        folded = await eventually(lambda: audit.settled(log, objects, customer), PATIENCE)
        assert folded is not None
        await eventually(lambda: audit.is_erased(log, customer), PATIENCE)
        assert studio.stop() == 0, studio.errors()
        await audit.compare(folded, customer, objects)
        await audit.compare_feedback(log, customer)
        await audit.compare_votes(log, customer)
        replayed = await audit.replayed(log, tmp_path)

    async with open_parts(data) as parts:
        assert await parts.host.caught_up(PATIENCE)
        assert await digests(parts.store) == replayed

    statuses = Counter(job.status for job, _ in folded.values())
    print(
        f"{KILLS} kills, {len(folded)} jobs: {', '.join(f'{count} {status}' for status, count in statuses.items())}, "
        f"{len(customer.deleted)} deleted; {len(customer.feedback)} times feedback, "
        f"{len(customer.standing)} stand; {len(customer.votes)} votes; "
        f"{sum(job.attempt for job, _ in folded.values())} attempts, "
        f"{time.monotonic() - began:.0f} s"
    )
