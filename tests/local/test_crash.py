"""The studio dies by SIGKILL, again and again, with some twenty jobs in flight, on one data folder.

KILLS says how often, SEED which moments. The time of a run is mostly that of the model's process starting anew.
"""

import asyncio
import io
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import soundfile

from domain.events import Recorded, decode
from domain.jobs import OPEN, Job, evolve
from infra.file_objects import FileObjects
from infra.sqlite_log import SqliteLog
from tests.conditions import eventually
from tests.digest import digests
from tests.local.conftest import Running
from tests.local.parts import open_parts

KILLS: Final = int(os.environ.get("KILLS", "4"))
SEED: Final = int(os.environ.get("SEED", Random().randrange(10**6)))
IN_FLIGHT: Final = 20
PATIENCE: Final = 90.0
ENDINGS: Final = {"JobCompleted", "JobFailed", "JobCancelled"}


class Customer:
    """Keeps the queue filled, now and then thinks better of a job, and repeats every request until it is answered."""

    def __init__(self, http: httpx.AsyncClient, dice: Random) -> None:
        self.url = ""
        self.leaving = False
        self.accepted: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.deleted: set[str] = set()
        self._http = http
        self._dice = dice

    async def order(self) -> None:
        ordered = 0
        while not self.leaving:
            counts = (await self._ask("GET", "/jobs/stats"))["counts"]
            missing = IN_FLIGHT - sum(counts.get(status, 0) for status in OPEN)
            await asyncio.gather(*(self._submit(f"{SEED}-{ordered + number}") for number in range(missing)))
            ordered += max(missing, 0)
            await asyncio.sleep(0.2)

    async def reconsider(self) -> None:
        while not self.leaving:
            await asyncio.sleep(self._dice.uniform(0, 8))
            status = self._dice.choice(["queued", "processing"])
            if not (jobs := (await self._ask("GET", "/jobs", params={"status": status}))["items"]):
                continue
            job_id = self._dice.choice(jobs)["id"]
            if not self.deleted:
                await self._ask("DELETE", f"/jobs/{job_id}", or_else=404)  # deleted by a try whose answer was lost
                self.deleted.add(job_id)
            elif await self._ask("DELETE", f"/generate/{job_id}", or_else=409):
                self.cancelled.add(job_id)

    async def is_served(self) -> bool:
        with suppress(httpx.TransportError):
            return (await self._http.get(f"{self.url}/health/ready")).status_code == 200
        return False

    async def _submit(self, key: str) -> None:
        samples, duration = self._dice.choice([1, 2]), self._dice.uniform(1, 2)
        request = {"prompt": f"rain on a tin roof, take {key}", "num_samples": samples, "duration": duration}
        answer = await self._ask("POST", "/generate", json=request, headers={"Idempotency-Key": key})
        self.accepted[answer["job_id"]] = samples

    async def _ask(self, method: str, path: str, *, or_else: int = 200, **request: Any) -> Any:
        """The answer's body, None where it is the other one that fits."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self._http.request(method, self.url + path, **request)
                    if answer.is_success:
                        return answer.json()
                    assert answer.status_code in {or_else, 503}, answer.text
                    if answer.status_code == or_else:
                        return None
                await asyncio.sleep(0.1)


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
        return set(self._objects.glob("samples/*/*/*"))


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


async def read(log: SqliteLog) -> dict[str, list[Recorded]]:
    """Every job's records."""
    histories = defaultdict(list)
    for partition in await log.ends("jobs"):
        offset = 0
        while page := await log.read("jobs", partition, offset):
            for record in page:
                histories[record.key].append(decode(record))
            offset = page[-1].position.offset + 1
    return histories


def fold(history: list[Recorded]) -> tuple[Job, list[str]]:
    """The job, and the types of its events that hold."""
    job, holding = None, []
    for recorded in history:
        job = evolve(job, recorded)
        assert job is not None
        if (outcome := job.outcome(recorded.id)) and outcome.reason is None:
            holding.append(recorded.type)
    assert job is not None
    return job, holding


def keys(job: Job) -> set[str]:
    """The objects the job may have."""
    paths = [] if job.status == "cancelled" else [sample.event.storage_path for sample in job.samples]
    return {path.removesuffix("flac") + suffix for path in paths for suffix in ("flac", "json")}


async def test_killed_at_random_moments_nothing_accepted_is_lost_or_done_twice(tmp_path: Path) -> None:
    print(f"\nSEED={SEED}")
    began, data = time.monotonic(), tmp_path / "data"
    objects = await FileObjects.open(data / "objects")
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
        customer = Customer(http, Random(SEED))
        moments = Moments(Random(SEED), customer, data / "objects")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(customer.order())
            tasks.create_task(customer.reconsider())
            for moment in islice(cycle((moments.working, moments.writing, moments.starting, moments.working)), KILLS):
                with mortal(data) as studio:
                    customer.url = studio.url
                    await moment()
            studio = stack.enter_context(mortal(data))
            customer.url, customer.leaving = studio.url, True

        log = await SqliteLog.open(data / "events.db")
        stack.push_async_callback(log.close)

        async def settled() -> dict[str, tuple[Job, list[str]]] | None:
            """Every job's fold, once none is open and no object is left that belongs to none."""
            folded = {job_id: fold(history) for job_id, history in (await read(log)).items()}
            possible = {key for job, _ in folded.values() for key in keys(job)}
            is_over = not any(job.is_open for job, _ in folded.values())
            return folded if is_over and possible.issuperset(info.key for info in await objects.list("")) else None

        folded = await eventually(settled, PATIENCE)
        assert folded is not None
        assert studio.stop() == 0, studio.errors()

    assert {job_id: len(job.request.seeds) for job_id, (job, _) in folded.items()} == customer.accepted
    for job_id, (job, holding) in folded.items():
        assert sum(type_ in ENDINGS for type_ in holding) <= 1, holding
        assert job.status == "cancelled" or job_id not in customer.cancelled
        assert (job.deleted_at is not None) == (job_id in customer.deleted)
        match job.status:
            case "completed":
                assert [sample.event.index for sample in job.samples] == [*range(customer.accepted[job_id])]
            case "failed":
                assert "vanished" in str(job.error)
        for event in (sample.event for sample in job.audible):
            audio = b"".join([chunk async for chunk in objects.read(event.storage_path)])
            assert (len(audio), sha256(audio).hexdigest()) == (event.size, event.sha256)
            pcm, rate = soundfile.read(io.BytesIO(audio))
            assert (rate, len(pcm) / rate) == (event.sample_rate, event.duration_seconds)

    async with open_parts(data) as parts:
        assert await parts.host.caught_up(PATIENCE)
        live = await digests(parts.store)
    for file in data.glob("views.db*"):
        file.unlink()
    async with open_parts(data) as parts:
        assert await parts.host.caught_up(PATIENCE)
        assert await digests(parts.store) == live

    statuses = Counter(job.status for job, _ in folded.values())
    print(
        f"{KILLS} kills, {len(folded)} jobs: {', '.join(f'{count} {status}' for status, count in statuses.items())}, "
        f"{len(customer.deleted)} deleted; {sum(job.attempt for job, _ in folded.values())} attempts, "
        f"{time.monotonic() - began:.0f} s"
    )
