"""A studio is killed while every row of its engine is in use by several jobs. KILLS says how often."""

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import httpx

from infra.storage.file_objects import FileObjects
from infra.storage.sqlite_log import SqliteLog
from tests import audit
from tests.conditions import eventually
from tests.local.conftest import Running

KILLS: Final = int(os.environ.get("KILLS", "1"))
SAMPLES: Final = 6


def order(studio: Running, number: int) -> str:
    body = {"prompt": "rain", "duration": 4, "num_samples": SAMPLES, "seed": number, "user_id": f"user {number % 3}"}
    answer = studio.http.post("/generate", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def full(studio: Running) -> None:
    """Until all rows are in use, by jobs of which some have samples already."""

    async def reached() -> bool:
        try:
            model = (await asyncio.to_thread(studio.http.get, "/models")).json()["items"][0]
        except httpx.RequestError:
            return False
        return bool(model["occupancy"] == 1)

    await eventually(reached, 180)


async def test_killed_with_all_rows_in_use_every_job_is_made_once(tmp_path: Path) -> None:
    data, orders = tmp_path / "data", list[str]()
    for kill in range(KILLS):
        studio = Running(data)
        studio.wait_until_ready()
        orders += [order(studio, 10 * kill + number) for number in range(4)]
        await full(studio)
        studio.process.kill()
        # The engine's process, which nobody killed, ends by itself, and with it the last to hold the output.
        studio.process.communicate(timeout=30)
        studio.http.close()
    studio = Running(data)
    log, objects = await SqliteLog.open(data / "events.db"), await FileObjects.open(data / "objects")
    try:

        async def made() -> Any:
            folded = await audit.jobs(log)
            return folded if all(job.status == "completed" for job, _ in folded.values()) else None

        folded = await eventually(made, 300)
        assert sorted(folded) == sorted(orders)
        for job, holding in folded.values():
            assert holding.count("JobCompleted") == 1
            assert holding.count("SampleGenerated") == SAMPLES
            assert [sample.event.index for sample in job.samples] == [*range(SAMPLES)]
            assert job.failures == 0
        assert max(job.attempt for job, _ in folded.values()) > 1

        async def tidy() -> bool:
            paths = [sample.event.storage_path for job, _ in folded.values() for sample in job.samples]
            return {info.key for info in await objects.list("samples")} == audit.keys(paths)

        await eventually(tidy)
    finally:
        await log.close()
        assert studio.stop() == 0, studio.errors()
