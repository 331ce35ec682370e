"""Adapters in use: by jobs, by A/B tests, and by workers whose store is away or has lost them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from domain.errors import UnavailableError
from domain.jobs import Job
from domain.lora import CONFIG, WEIGHTS
from domain.models import NOISE
from tests import adapter as made
from tests.conditions import eventually
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from tests.local.test_adapters import JAZZ, get, register, without_base
from tests.local.test_jobs import submit, when
from workers.adapters import UNFINISHED


async def test_scenario_submit_generation_with_adapter_selection(parts: Parts) -> None:
    await register(parts)
    engine = ScriptedEngine()
    async with parts.working(engine):
        request = {"prompt": "rain", "duration": 1, "adapter_id": JAZZ, "adapter_scale": 0.5}
        job_id = (await parts.http.post("/generate", json=request)).json()["job_id"]
        await parts.when(job_id, "completed")
    [asked] = engine.requests
    assert asked.adapter is not None
    assert asked.adapter.scale == 0.5
    assert (Path(asked.adapter.folder) / WEIGHTS).read_bytes() == made.packed(made.weights())
    job = await get(parts, f"/jobs/{job_id}")
    assert (job["adapter_id"], job["generation_params"]["adapter_scale"]) == (JAZZ, 0.5)
    assert [item["id"] for item in (await get(parts, "/jobs", adapter_id=JAZZ))["items"]] == [job_id]
    audio = await get(parts, f"/audio/{job['sample_ids'][0]}")
    assert (audio["adapter_id"], audio["adapter"]) == (JAZZ, {"name": "jazz", "version": "1.0.0"})
    assert audio["generation_params"]["adapter_scale"] == 0.5
    flac = (await parts.http.get(audio["stream_url"])).content
    assert JAZZ.encode() in flac
    assert b'"adapter_scale":0.5' in flac.replace(b'\\"', b'"')


async def test_an_unknown_inactive_or_foreign_adapter_is_refused(parts: Parts) -> None:
    await register(parts)
    foreign = await register(parts, name="foreign", base_model="local/m@1", config=without_base())
    await parts.http.patch(f"/adapters/{JAZZ}", json={"is_active": False})
    inactive = "Adapter jazz 1.0.0 is not active."
    wrong = f"Adapter requires local/m@1 but current model is {NOISE.id}"
    for adapter, status, words in (
        ("nobody", 404, "There is no adapter 'nobody'."),
        (JAZZ, 400, inactive),
        (foreign["id"], 400, wrong),
    ):
        answer = await parts.http.post("/generate", json={"prompt": "x", "adapter_id": adapter})
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        for arm in ("adapter_a", "adapter_b"):
            test = await parts.http.post("/ab-tests", json={"name": "t", "prompts": ["x"], arm: adapter})
            assert (test.status_code, words in test.json()["detail"]) == (status, True), test.text
            if status == 400:
                assert test.json()["errors"][0]["pointer"] == f"/{arm}"
    for scale in (-1, 2.5):
        answer = await parts.http.post("/generate", json={"prompt": "x", "adapter_id": JAZZ, "adapter_scale": scale})
        assert answer.status_code == 400
    alone = await parts.http.post("/generate", json={"prompt": "x", "adapter_scale": 0.5})
    assert alone.json()["detail"] == "adapter_scale is 0.5, but there is no adapter_id; give both or neither."
    assert (await get(parts, "/jobs"))["total"] == 0


async def test_scenario_generate_for_ab_test(parts: Parts) -> None:
    one, two = await register(parts), await register(parts, version="1.1.0", seed=1)
    arms = {"adapter_a": one["id"], "adapter_b": two["id"]}
    answer = await parts.http.post("/ab-tests", json={"name": "t", "prompts": ["x"], "duration": 1, **arms})
    assert answer.status_code == 202, answer.text
    assert {name: answer.json()[name] for name in arms} == arms
    for adapter in (one, two):
        assert (await get(parts, f"/adapters/{adapter['id']}"))["lineage"]["ab_tests"] == [answer.json()["id"]]
        listed = await get(parts, "/ab-tests", adapter_id=adapter["id"])
        assert [test["id"] for test in listed["items"]] == [answer.json()["id"]]
    assert (await get(parts, "/ab-tests", adapter_id="another"))["items"] == []


async def test_scenario_compare_samples_with_different_adapters(parts: Parts) -> None:
    await register(parts)
    ids = []
    async with parts.working(ScriptedEngine()):
        for adapter in (None, JAZZ):
            request = {"prompt": "rain", "duration": 1, "seed": 7, "adapter_id": adapter}
            job_id = (await parts.http.post("/generate", json=request)).json()["job_id"]
            job = await parts.when(job_id, "completed")
            ids.append(job.samples[0].event.sample_id)
    compared = await get(parts, "/audio/compare", ids=",".join(ids))
    assert [sample["adapter_id"] for sample in compared["samples"]] == [None, JAZZ]
    differences = {each["parameter"]: each["values"] for each in compared["differences"]}
    assert differences["adapter_id"] == dict(zip(ids, [None, JAZZ], strict=True))


async def test_a_job_that_waits_goes_on_with_an_adapter_that_is_deactivated_meanwhile(parts: Parts) -> None:
    await register(parts)
    request = {"prompt": "rain", "duration": 1, "adapter_id": JAZZ}
    job_id = (await parts.http.post("/generate", json=request)).json()["job_id"]
    await parts.http.patch(f"/adapters/{JAZZ}", json={"is_active": False})
    engine = ScriptedEngine()
    async with parts.working(engine):
        await parts.when(job_id, "completed")
    assert engine.requests[0].adapter is not None
    rerun = await parts.http.post(f"/jobs/{job_id}/rerun", json={})
    assert (rerun.status_code, "is not active" in rerun.json()["detail"]) == (400, True)
    assert (await parts.http.post(f"/jobs/{job_id}/rerun", json={"adapter_id": None})).status_code == 202


async def test_a_job_whose_adapter_is_gone_or_damaged_fails_with_its_name(parts: Parts) -> None:
    gone, damaged = await register(parts), await register(parts, name="blues")
    job_ids = []
    for adapter in (gone, damaged):
        request = {"prompt": "rain", "duration": 1, "adapter_id": adapter["id"]}
        job_ids.append((await parts.http.post("/generate", json=request)).json()["job_id"])
    await parts.objects.delete(gone["storage_path"])
    await parts.objects.put(f"{damaged['storage_path']}/{WEIGHTS}", made.packed(made.weights(seed=5)))
    async with parts.working(ScriptedEngine()):
        first, second = [await parts.when(job_id, "failed") for job_id in job_ids]
        await parts.submit("healthy", seeds=[1])
        await parts.when("healthy", "completed")
    assert f"Adapter jazz 1.0.0 ({JAZZ}) cannot be used: its file" in (first.error or "")
    assert "is gone from the object store. Put it back, and submit the job again." in (first.error or "")
    assert "Adapter blues 1.0.0" in (second.error or "")
    assert "are damaged" in (second.error or "")
    assert (first.failures, second.attempt) == (0, 1)


async def test_a_full_disk_for_copies_of_adapters_costs_a_job_no_attempt(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await register(parts)
    blues = await register(parts, name="blues", seed=1)

    async def ask(adapter: str) -> str:
        request = {"prompt": "rain", "duration": 1, "adapter_id": adapter}
        job_id: str = (await parts.http.post("/generate", json=request)).json()["job_id"]
        return job_id

    async with parts.working(ScriptedEngine()):
        await parts.when(await ask(JAZZ), "completed")
        [folder] = [path.parent for path in parts.folder.glob("cache/*/.lock")]
        copy = folder / f"{blues['sha256']}{UNFINISHED}"
        copy.mkdir()
        (copy / CONFIG).symlink_to("/dev/full")
        with monkeypatch.context() as patch:
            patch.setattr("workers.scratch.LEAST_FREE", 2**62)
            job_id = await ask(blues["id"])

            async def is_back() -> Job | None:
                job = await parts.job(job_id)
                return job if job and job.status == "queued" and job.error else None

            waiting = await eventually(is_back)
            assert waiting is not None
            assert "The worker is broken: " in (waiting.error or "")
            assert "No space left on device" in (waiting.error or "")

            async def is_checked() -> bool:
                return f"is still broken: {folder} has " in caplog.text

            await eventually(is_checked)
        job = await parts.when(job_id, "completed")
    assert (job.attempt, job.failures) == (2, 0)


async def test_a_worker_waits_for_a_store_that_is_away(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await register(parts)
    read, away = parts.objects.read, asyncio.Event()

    async def reading(key: str, *range_: Any) -> Any:
        if key.startswith("adapters/") and not away.is_set():
            away.set()
            raise UnavailableError("The object store does not answer.")
        async for chunk in read(key, *range_):
            yield chunk

    monkeypatch.setattr(parts.objects, "read", reading)
    async with parts.working(ScriptedEngine()):
        request = {"prompt": "rain", "duration": 1, "adapter_id": JAZZ}
        job_id = (await parts.http.post("/generate", json=request)).json()["job_id"]
        job = await parts.when(job_id, "completed")
    assert (away.is_set(), job.attempt) == (True, 1)


def test_an_adapter_is_heard_as_much_as_is_asked_for(studio: Running) -> None:
    """Through the whole studio, with a model that runs."""
    answer = studio.http.post("/adapters", **made.form(name="heard"))
    adapter = answer.json()["id"]

    def digest(**fields: Any) -> str:
        job = when(studio, submit(studio, seed=5, duration=1, **fields), "completed")
        return str(studio.http.get(f"/audio/{job['sample_ids'][0]}").json()["pcm_sha256"])

    base, whole = digest(), digest(adapter_id=adapter)
    assert base != whole
    assert digest(adapter_id=adapter, adapter_scale=0) == base
    assert digest(adapter_id=adapter) == whole
    assert digest(adapter_id=adapter, adapter_scale=0.5) not in {base, whole}
