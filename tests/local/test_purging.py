"""Audio that is removed for good: of deleted jobs at once, of old ones when somebody asks for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from domain.errors import UnavailableError
from domain.events.feedback import FeedbackGiven, SampleSnapshot
from domain.jobs import Job
from infra import roles
from infra.settings import Settings
from tests.conditions import eventually, eventually_sync
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, stop
from tests.local.test_cli import text2song
from tests.local.test_jobs import submit, when
from workers import purging
from workers.reactions import Reactions


@contextlib.asynccontextmanager
async def removing(parts: Parts) -> AsyncIterator[None]:
    reactions = [purging.PurgeOfDeleted(parts.journal, parts.store, parts.objects)]
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, reactions).run())
    yield
    await stop(running)


async def heard(parts: Parts, *names: str) -> list[Job]:
    """Jobs that have ended, whose samples were listened to as MP3."""
    async with parts.working(ScriptedEngine()):
        for name in names:
            await parts.submit(name)
        jobs = [await parts.when(name, "completed") for name in names]
    for job in jobs:
        for sample in job.samples:
            url = f"/audio/{sample.event.sample_id}/stream"
            assert (await parts.http.get(url, params={"format": "mp3"})).status_code == 200
    return jobs


async def objects(parts: Parts, *names: str) -> int:
    return sum(
        [len(await parts.objects.list(f"{place}/{name}")) for place in ("samples", "renditions") for name in names]
    )


async def purged(parts: Parts, name: str) -> bool:
    return "job.purged.v1" in await parts.history(name)


async def test_the_audio_of_a_deleted_job_is_removed_and_that_of_others_stays(parts: Parts) -> None:
    job, other = await heard(parts, "j1", "j2")
    assert await objects(parts, "j1") == await objects(parts, "j2") == 6
    async with removing(parts):
        assert (await parts.http.delete("/jobs/j1")).status_code == 200
        await eventually(lambda: purged(parts, "j1"))
    assert (await objects(parts, "j1"), await objects(parts, "j2")) == (0, 6)
    assert (await parts.http.get("/jobs/j1")).status_code == 404
    assert (await parts.http.get(f"/audio/{job.samples[0].event.sample_id}/stream")).status_code == 404
    assert (await parts.http.get(f"/audio/{other.samples[0].event.sample_id}/stream")).status_code == 200


def test_a_running_studio_removes_the_audio_of_a_deleted_job(studio: Running) -> None:
    job_id = submit(studio, duration=0.5)
    when(studio, job_id, "completed")
    folder = studio.data / "objects" / "samples" / job_id
    assert folder.is_dir()
    assert studio.http.delete(f"/jobs/{job_id}").status_code == 200
    eventually_sync(lambda: not folder.exists())


async def test_a_removal_that_was_killed_half_way_is_finished_and_said_once(parts: Parts) -> None:
    await heard(parts, "j1")
    await parts.http.delete("/jobs/j1")
    await parts.objects.delete("samples/j1")
    async with removing(parts), removing(parts):
        await eventually(lambda: purged(parts, "j1"))
        job = await parts.job("j1")
    assert job is not None
    assert (job.purged_at is not None, job.awaits_purge, await objects(parts, "j1")) == (True, False, 0)
    assert [outcome.reason for outcome in job.outcomes if outcome.type == "JobPurged"] == [None]


async def test_a_cancelled_job_leaves_no_format_behind(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit("j1")

        async def one() -> list[str]:
            return (await parts.http.get("/jobs/j1")).json()["sample_ids"] if await parts.job("j1") else []

        [sample_id] = await eventually(one)
        assert (await parts.http.get(f"/audio/{sample_id}/stream", params={"format": "mp3"})).status_code == 200
        await parts.http.delete("/generate/j1")
        engine.release()
        await parts.when("j1", "cancelled")
    assert await objects(parts, "j1") == 0


async def test_old_jobs_lose_their_audio_and_stay(parts: Parts) -> None:
    jobs = await heard(parts, "j1", "j2")
    settings = Settings(data=str(parts.folder))
    size = sum(sample.event.size for job in jobs for sample in job.samples)
    assert await roles.purge(settings, timedelta(hours=1), dry_run=False) == (0, 0, 0)
    assert await roles.purge(settings, timedelta(0), dry_run=True) == (2, size, 0)
    assert await objects(parts, "j1", "j2") == 12
    assert await roles.purge(settings, timedelta(0), dry_run=False) == (2, size, 0)
    assert await objects(parts, "j1", "j2") == 0
    job = await parts.job("j1")
    assert job is not None
    assert await roles.purge(settings, timedelta(0), dry_run=False) == (0, 0, 0)
    shown = (await parts.http.get("/jobs/j1")).json()
    assert (shown["status"], shown["sample_ids"], shown["purged_at"]) == ("completed", [], job.purged_at)
    assert {each["id"] for each in (await parts.http.get("/jobs")).json()["items"]} == {"j1", "j2"}
    for path in ("", "/stream", "/waveform"):
        answer = await parts.http.get(f"/audio/{job.samples[0].event.sample_id}{path}")
        assert answer.status_code == 404
    assert (await parts.http.delete("/jobs/j1")).status_code == 200


async def test_jobs_with_feedback_may_be_spared(parts: Parts) -> None:
    """Whether a sample of theirs was judged, or another sample was judged against it."""
    judged, other, _ = [
        SampleSnapshot(audio_id=job.samples[0].event.sample_id, job_id=job.id, prompt_id="prompt", model_id="model")
        for job in await heard(parts, "j1", "j2", "j3")
    ]
    event = FeedbackGiven(feedback_id="f1", sample=judged, other=other, verdict="tie")
    await parts.journal.append(event)
    await parts.job("j1")
    settings = Settings(data=str(parts.folder))
    tried = await roles.purge(settings, timedelta(0), dry_run=True, keep_rated=True)
    assert (tried.jobs, tried.kept, await objects(parts, "j1", "j2", "j3")) == (1, 2, 18)
    done = await roles.purge(settings, timedelta(0), dry_run=False, keep_rated=True)
    assert (done, await objects(parts, "j1", "j2"), await objects(parts, "j3")) == (tried, 12, 0)
    assert await roles.purge(settings, timedelta(0), dry_run=True, keep_rated=True) == (0, 0, 2)


async def test_a_folder_without_a_studio_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"There is no studio in .*nowhere"):
        await roles.purge(Settings(data=str(tmp_path / "nowhere")), timedelta(0), dry_run=False)
    assert not (tmp_path / "nowhere").exists()


async def test_the_command_says_what_it_removed(parts: Parts, tmp_path: Path) -> None:
    await heard(parts, "j1")
    arguments = ("purge", "--older-than", "0d", "--data", str(parts.folder))
    tried = await asyncio.to_thread(text2song, *arguments, "--dry-run", "--keep-rated", cwd=tmp_path)
    assert (tried.returncode, tried.stdout[:32]) == (0, "The audio of 1 jobs would be rem"), tried.stderr
    assert tried.stdout.endswith("The audio of 0 jobs with feedback would stay.\n")
    done = await asyncio.to_thread(text2song, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout[:32]) == (0, "The audio of 1 jobs is gone: 0.0"), done.stderr
    assert await objects(parts, "j1") == 0


def test_an_age_that_is_none_is_refused(tmp_path: Path) -> None:
    done = text2song("purge", "--older-than", "soon", cwd=tmp_path)
    assert done.returncode == 2
    assert "'soon' is no age" in done.stderr
