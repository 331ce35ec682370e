"""Seed 002, music for campaigns and its gallery: a test for each of its endpoints, examples and recommendations."""

import json
from pathlib import Path
from typing import Any

import pytest

from domain.events.progress import LoadedModel, WorkerAlive
from tests.conditions import eventually, eventually_sync
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts
from tests.local.test_webhooks import heard, sending
from tests.receiver import receiving
from workers.engine import EngineError
from workers.outgoing import Receivers

PROMPT = "upbeat electronic dance music with heavy bass"


@pytest.fixture(scope="module")
def audio(studio: Running) -> dict[str, Any]:
    """The seed's first example, completed."""
    body = {"prompt": PROMPT, "campaign_id": "campaign_123", "client_id": "acme", "brief_id": "b7", "duration": 10}
    answer = studio.http.post("/api/v2/generate/audio", json={**body, "collection": "ads"})
    assert answer.status_code == 202, answer.text
    place = answer.headers["Location"]
    eventually_sync(lambda: studio.http.get(place).json()["status"] == "completed")
    return dict(studio.http.get(place).json())


async def has_worker(parts: Parts) -> bool:
    return bool(parts.services.feed.workers())


def test_generate_music_with_musicgen_the_default(studio: Running) -> None:
    answer = studio.http.post("/api/v2/generate/audio", json={"prompt": PROMPT, "campaign_id": "campaign_9"})
    receipt = answer.json()
    assert receipt == {"audio_id": receipt["audio_id"], "status": "queued", "model": "meta/musicgen"}
    found = studio.http.get(f"/api/audio/{receipt['audio_id']}").json()
    assert (found["duration"], found["parameters"]["output_format"], found["campaign_id"]) == (8.0, "mp3", "campaign_9")


def test_generate_with_riffusion_names_the_model_that_no_worker_has(studio: Running) -> None:
    body = {"prompt": "ambient lo-fi hip hop beats", "campaign_id": "campaign_123", "model": "riffusion/riffusion"}
    answer = studio.http.post("/api/v2/generate/audio", json={**body, "denoising": 0.5, "seed_image_id": "og_beat"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "No worker has the model riffusion/riffusion" in answer.json()["detail"]


async def test_a_version_that_no_worker_has_is_named(parts: Parts) -> None:
    body = {"prompt": PROMPT, "model_version": "stereo-melody-large"}
    answer = await parts.http.post("/api/v2/generate/audio", json=body)
    assert answer.status_code == 503
    assert "No worker has the model facebook/musicgen-stereo-melody-large" in answer.json()["detail"]
    loaded = LoadedModel(
        family="musicgen", max_duration=30, sample_rate=32000, channels=2, vram_gb=18, license="CC-BY-NC-4.0"
    )
    alive = WorkerAlive(worker_id="w1", model_id="facebook/musicgen-stereo-melody-large", state="ready", model=loaded)
    await parts.journal.append(alive)
    await eventually(lambda: has_worker(parts))
    answer = await parts.http.post("/api/v2/generate/audio", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202
    # A retry is the same audio, although the worker has gone.
    await parts.journal.append(WorkerAlive(worker_id="w1", model_id="x", state="stopped"))

    async def is_gone() -> bool:
        return not parts.services.feed.workers()

    await eventually(is_gone)
    again = await parts.http.post("/api/v2/generate/audio", json=body, headers={"Idempotency-Key": "k"})
    assert again.json() == answer.json()


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "/prompt", "The prompt is empty"),
    ({"model": "suno/bark"}, "/model", "it is one of meta/musicgen, riffusion/riffusion"),
    ({"duration": 1.5}, "/duration", "duration is 1.5; it must be from 2 to 12"),
    ({"duration": 12.5}, "/duration", "from 2 to 12"),
    ({"temperature": 5.1}, "/temperature", "from 0 to 5"),
    ({"top_k": -1}, "/top_k", "from 0 to 100000"),
    ({"top_p": 1.1}, "/top_p", "from 0 to 1"),
    ({"classifier_free_guidance": 0}, "/classifier_free_guidance", "from 1 to 20"),
    ({"output_format": "flac"}, "/output_format", "it is one of mp3, wav"),
    ({"seed": -2}, "/seed", "from -1 to 4294967295"),
    ({"model_version": "tiny"}, "/model_version", "it is one of large, melody-large"),
    ({"denoising": 0.5}, "/denoising", "denoising is no parameter of meta/musicgen"),
    ({"input_audio": "https://example.org/a.wav"}, "/input_audio", "There is no field 'input_audio'"),
    ({"model": "riffusion/riffusion", "top_k": 3}, "/top_k", "top_k is no parameter of riffusion/riffusion"),
    ({"model": "riffusion/riffusion", "denoising": 1.1}, "/denoising", "from 0 to 1"),
    ({"model": "riffusion/riffusion", "alpha": -0.1}, "/alpha", "from 0 to 1"),
    ({"model": "riffusion/riffusion", "num_inference_steps": 0}, "/num_inference_steps", "from 1 to 1000"),
    ({"model": "riffusion/riffusion", "seed_image_id": "cat"}, "/seed_image_id", "vibes"),
    ({"webhook": "http://10.0.0.1/"}, "/webhook_url", "not public"),
    ({"webhook": "https://8.8.8.8/", "webhook_url": "https://8.8.4.4/"}, "/webhook", "are one address"),
    ({"campaign_id": ""}, "/campaign_id", "it must have 1 to 200"),
]


# No more at one studio than are taken in a minute.
@pytest.mark.parametrize("cases", [BAD[:8], BAD[8:16], BAD[16:]], ids=["first", "second", "third"])
async def test_a_parameter_out_of_its_range_is_refused_naming_the_range(
    parts: Parts, cases: list[tuple[dict[str, Any], str, str]]
) -> None:
    async with parts.working(ScriptedEngine()):
        await eventually(lambda: has_worker(parts))
        for body, pointer, words in cases:
            answer = await parts.http.post("/api/v2/generate/audio", json={"prompt": PROMPT, **body})
            problem = answer.json()
            assert answer.status_code == 400, (body, problem)
            assert problem["errors"][0]["pointer"] == pointer, problem
            assert words in problem["errors"][0]["detail"], problem
    assert (await parts.http.get("/api/audio")).json()["total"] == 0


async def test_the_models_own_parameters_reach_it(parts: Parts) -> None:
    engine = ScriptedEngine()
    chosen = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "classifier_free_guidance": 4, "seed": 77}
    async with parts.working(engine):
        await eventually(lambda: has_worker(parts))
        body = {"prompt": PROMPT, "output_format": "wav", "duration": 2, **chosen}
        answer = await parts.http.post("/api/v2/generate/audio", json=body)
        await parts.when(answer.json()["audio_id"], "completed")
    found = (await parts.http.get(f"/api/audio/{answer.json()['audio_id']}")).json()
    assert found["parameters"] == {
        **chosen,
        "model": "text2song/wiring-noise",
        "duration": 2.0,
        "output_format": "wav",
    }
    assert [take.seed for take in engine.requests[0].takes] == [77]


async def test_ten_requests_a_minute_are_taken(parts: Parts) -> None:
    answers = [await parts.http.post("/api/v2/generate/audio", json={"prompt": ""}) for _ in range(21)]
    # A window may have ended in between, and the next one begun.
    assert [answer.status_code for answer in answers[:10]] == [400] * 10
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["RateLimit-Policy"].endswith(";q=10;w=60")


def test_list_generated_audio_with_full_metadata(studio: Running, audio: dict[str, Any]) -> None:
    page = studio.http.get("/api/audio", params={"limit": 200}).json()
    assert page.keys() == {"items", "total", "limit", "offset", "next_cursor"}
    assert audio in page["items"]


def test_filter_by_campaign(studio: Running, audio: dict[str, Any]) -> None:
    page = studio.http.get("/api/audio?campaign_id=campaign_123&status=completed").json()
    assert page["items"] == [audio]


@pytest.mark.parametrize(
    ("query", "is_found"),
    [
        ({"model_id": "meta/musicgen"}, True),
        ({"model_id": "text2song/wiring-noise"}, True),
        ({"model_id": "riffusion/riffusion"}, False),
        ({"collection": "ads"}, True),
        ({"client_id": "acme"}, True),
        ({"campaign_id": "campaign_123"}, True),
        ({"brief_id": "b7"}, True),
        ({"status": "completed"}, True),
        ({"status": "failed"}, False),
        ({"client_id": "somebody else"}, False),
        ({"offset": 200}, False),
    ],
)
def test_gallery_filtering_and_pagination(
    studio: Running, audio: dict[str, Any], query: dict[str, Any], is_found: bool
) -> None:
    page = studio.http.get("/api/audio", params={"limit": 200, **query}).json()
    assert (audio["id"] in [item["id"] for item in page["items"]]) is is_found


def test_bad_filters_are_refused(studio: Running) -> None:
    assert studio.http.get("/api/audio?status=done").status_code == 400
    assert studio.http.get("/api/audio?limit=0").status_code == 400
    assert studio.http.get("/api/audio?colour=red").status_code == 400


def test_retrieve_specific_audio_by_id_with_its_parameters(studio: Running, audio: dict[str, Any]) -> None:
    assert (audio["prompt"], audio["model_id"], audio["client_id"]) == (PROMPT, "meta/musicgen", "acme")
    assert (audio["brief_id"], audio["collection"], audio["campaign_id"]) == ("b7", "ads", "campaign_123")
    assert audio["parameters"]["model"] == "text2song/wiring-noise"
    assert audio["audio_url"] == f"/api/audio/{audio['id']}/data"
    assert (audio["download_attempted"], audio["download_retries"], audio["download_error"]) == (True, 0, None)
    assert studio.http.get("/api/audio/nobody").status_code == 404


async def test_download_attempts_are_counted(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [EngineError("The disk was full.", transient=True)]
    async with parts.working(engine):
        await eventually(lambda: has_worker(parts))
        audio_id = (await parts.http.post("/api/v2/generate/audio", json={"prompt": PROMPT})).json()["audio_id"]
        await parts.when(audio_id, "completed")
    found = (await parts.http.get(f"/api/audio/{audio_id}")).json()
    assert (found["download_attempted"], found["download_retries"]) == (True, 1)


def test_the_data_itself_with_ranges(studio: Running, audio: dict[str, Any]) -> None:
    whole = studio.http.get(audio["audio_url"])
    assert (whole.status_code, whole.headers["Content-Type"]) == (200, "audio/mpeg")
    part = studio.http.get(audio["audio_url"], headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, whole.content[:10])


async def test_data_that_is_not_there_yet_is_no_404(parts: Parts) -> None:
    await parts.submit("waiting")
    assert await parts.host.caught_up(10)
    answer = await parts.http.get("/api/audio/waiting/data")
    assert (answer.status_code, "ask again" in answer.json()["detail"]) == (409, True)


def test_validate_audio_status_polling(studio: Running) -> None:
    receipt = studio.http.post("/api/v2/generate/audio", json={"prompt": PROMPT, "duration": 2}).json()
    seen: list[str] = []

    def is_completed() -> bool:
        seen.append(studio.http.get(f"/api/audio/{receipt['audio_id']}").json()["status"])
        return seen[-1] == "completed"

    eventually_sync(is_completed)
    assert set(seen) <= {"queued", "processing", "completed"}


def test_remove_audio(studio: Running) -> None:
    receipt = studio.http.post("/api/v2/generate/audio", json={"prompt": PROMPT, "duration": 2}).json()
    place = f"/api/audio/{receipt['audio_id']}"
    assert studio.http.delete(place).json() == {"audio_id": receipt["audio_id"], "deleted": True}
    for path in (place, f"{place}/data"):
        assert studio.http.get(path).status_code == 404
    assert studio.http.delete(place).status_code == 404


async def test_webhook_support_for_async_processing(tmp_path: Path) -> None:
    async with (
        open_parts(tmp_path, receivers=Receivers(loopback=True)) as parts,
        sending(parts),
        parts.working(ScriptedEngine()),
    ):
        await eventually(lambda: has_worker(parts))
        with receiving() as receiver:
            body = {"prompt": PROMPT, "campaign_id": "spring", "webhook": receiver.url}
            audio_id = (await parts.http.post("/api/v2/generate/audio", json=body)).json()["audio_id"]
            [message] = await heard(receiver)
            told = json.loads(message.body)
            assert (told["type"], told["data"]["job_id"]) == ("job.completed", audio_id)
            assert told["data"]["campaign_id"] == "spring"
