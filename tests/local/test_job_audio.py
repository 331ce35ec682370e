"""All samples of a job as one ZIP file."""

import io
import zipfile

import httpx
import pytest

from tests.conditions import eventually
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from workers.engine import EngineError

JOB = "01980000-0000-7000-8000-000000abcdef"
PATH = f"/jobs/{JOB}/audio.zip"


@pytest.fixture
async def made(parts: Parts) -> Parts:
    async with parts.working(ScriptedEngine()):
        await parts.submit(JOB, prompt="Дождь, on a tin roof", seeds=[1, 2], output_format="wav")
        await parts.when(JOB, "completed")
    return parts


def files(answer: httpx.Response) -> dict[str, bytes]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in found.infolist())
        return {info.filename: found.read(info) for info in found.infolist()}


@pytest.mark.parametrize("output_format", ["flac", "wav", "mp3", "ogg"])
async def test_every_sample_is_in_it_as_it_streams_alone(made: Parts, output_format: str) -> None:
    sample_ids = (await made.http.get(f"/jobs/{JOB}")).json()["sample_ids"]
    alone = [await made.http.get(f"/audio/{sample}/stream", params={"format": output_format}) for sample in sample_ids]
    found = files(await made.http.get(PATH, params={"format": output_format}))
    assert found == {
        f"дождь-on-a-tin-roof-abcdef-{index}.{output_format}": answer.content for index, answer in enumerate(alone)
    }


async def test_the_format_asked_for_at_submission_is_the_default(made: Parts) -> None:
    assert all(name.endswith(".wav") for name in files(await made.http.get(PATH)))


async def test_head_tells_what_get_would_and_validators_save_the_bytes(made: Parts) -> None:
    got, head = await made.http.get(PATH), await made.http.head(PATH)
    assert (head.status_code, head.content, head.headers) == (200, b"", got.headers)
    assert f'filename="{JOB}.zip"' in got.headers["Content-Disposition"]
    same = await made.http.get(PATH, headers={"If-None-Match": got.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    other = await made.http.head(PATH, params={"format": "flac"})
    assert other.headers["ETag"] != got.headers["ETag"]


async def test_a_job_that_is_open_or_silent_has_no_archive(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit(JOB)
        await parts.when(JOB, "processing")
        answer = await parts.http.get(PATH)
        assert answer.status_code == 409
        assert answer.json()["detail"].endswith("of 2 samples; ask again when it has ended.")
        await parts.http.delete(f"/generate/{JOB}")
        engine.release()
        await parts.when(JOB, "cancelled")
    answer = await parts.http.get(PATH)
    assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no audio of job '{JOB}'.")
    await parts.http.delete(f"/jobs/{JOB}")
    for job_id in (JOB, "unknown"):
        answer = await parts.http.get(f"/jobs/{job_id}/audio.zip")
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no job '{job_id}'.")


async def test_a_job_that_failed_gives_what_it_had_made(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit(JOB)

        async def has_a_sample() -> bool:
            job = await parts.job(JOB)
            return job is not None and len(job.samples) == 1

        await eventually(has_a_sample)
        engine.broken = EngineError("The prompt has no words this model knows.")
        engine.release()
        await parts.when(JOB, "failed")
    assert list(files(await parts.http.get(PATH))) == ["rain-on-a-tin-roof-abcdef-0.flac"]


async def test_an_unknown_format_is_refused_by_name(made: Parts) -> None:
    answer = await made.http.get(PATH, params={"format": "aiff"})
    assert answer.status_code == 400
    assert "aiff" in answer.json()["detail"]
