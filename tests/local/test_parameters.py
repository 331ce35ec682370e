"""Lyrics, and the parameters that only some models take, from the request to the engine and into the files."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import soundfile

from domain.ab_tests import AB_TESTS, submissions
from domain.families import SEED_IMAGES
from domain.models import KNOWN, NOISE, Model
from tests.conditions import eventually
from tests.local.engine import ScriptedEngine
from tests.local.parts import LEASE, Parts, stop
from workers import comments
from workers.generation import worker

ACE = next(model for model in KNOWN if model.family == "ace-step")
RIFFUSION = next(model for model in KNOWN if model.family == "riffusion")
VERSES = "[verse]\nRegen auf dem Dach\n\n[chorus]\nBleib “noch” 🎛"
SONG = {"prompt": "rain", "model_id": ACE.id, "duration": 10, "seed": 5}


@contextlib.asynccontextmanager
async def singing(parts: Parts, model: Model = ACE) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    claims = worker(parts.journal, parts.store, parts.objects, engine, model.id, model=model, lease=LEASE, backoff=0.05)
    task = asyncio.create_task(claims.run())
    try:

        async def is_there() -> bool:
            return any(alive.model_id == model.id for alive in parts.services.feed.workers())

        await eventually(is_there)
        yield engine
    finally:
        await stop(task)


async def made(parts: Parts, **fields: Any) -> dict[str, Any]:
    answer = await parts.http.post("/generate", json={**SONG, **fields})
    assert answer.status_code == 202, answer.text
    await parts.when(answer.json()["job_id"], "completed")
    return dict((await parts.http.get(f"/jobs/{answer.json()['job_id']}")).json())


async def test_what_a_song_was_made_with_reaches_the_engine_and_stays_with_it(parts: Parts) -> None:
    async with singing(parts) as engine:
        job = await made(parts, lyrics=VERSES, parameters={"bpm": 90, "key": "C major"})
    own = {"key": "C major", "timesignature": "", "vocal_language": "en", "num_inference_steps": 8, "shift": 3.0}
    (asked,) = engine.requests
    assert (asked.parameters, asked.lyrics) == ({"bpm": 90, **own}, VERSES)
    assert (job["lyrics"], job["generation_params"]["parameters"]) == (VERSES, {"bpm": 90, **own})
    sample = (await parts.http.get(f"/audio/{job['sample_ids'][0]}")).json()
    assert (sample["lyrics"], sample["generation_params"]["parameters"]) == (VERSES, {"bpm": 90, **own})
    flac = (await parts.http.get(sample["stream_url"])).content
    assert comments.read(flac, "LYRICS") == VERSES
    with soundfile.SoundFile(io.BytesIO(flac)) as file:
        assert msgspec.json.decode(file.comment)["parameters"] == {"bpm": 90, **own}
    for output_format in ("mp3", "ogg"):
        copy = (await parts.http.get(sample["stream_url"], params={"format": output_format})).content
        assert VERSES.encode() in copy


async def test_a_song_made_again_differs_in_what_was_changed(parts: Parts) -> None:
    async with singing(parts):
        first = await made(parts, lyrics=VERSES, parameters={"bpm": 90})
        changes = {"same_seeds": True, "parameters": {"bpm": 120}}
        again = (await parts.http.post(f"/jobs/{first['id']}/rerun", json=changes)).json()["job_id"]
        await parts.when(again, "completed")
        second = (await parts.http.get(f"/jobs/{again}")).json()
        third = await made(parts)
    ids = [job["sample_ids"][0] for job in (first, second, third)]
    one, two = [(await parts.http.get("/audio/compare", params={"ids": ids[n : n + 2]})).json() for n in (0, 1)]
    told = [{each["parameter"]: list(each["values"].values()) for each in found["differences"]} for found in (one, two)]
    assert told[0] == {"parameters.bpm": [90, 120]}
    assert told[1] == {"lyrics": [VERSES, None], "parameters.bpm": [120, 0]}


async def test_samples_of_models_that_take_other_things_are_compared_in_all_of_them(parts: Parts) -> None:
    async with singing(parts), parts.working(ScriptedEngine()):
        song = await made(parts)
        noise = await made(parts, model_id=NOISE.id)
    ids = [job["sample_ids"][0] for job in (song, noise)]
    found = (await parts.http.get("/audio/compare", params={"ids": ids})).json()
    told = {each["parameter"]: list(each["values"].values()) for each in found["differences"]}
    assert told["parameters.shift"] == [3.0, None]
    assert told["guidance_scale"] == [1.0, 3.0]


async def test_models_are_listed_with_what_they_take(parts: Parts) -> None:
    models = {model["id"]: model for model in (await parts.http.get("/models")).json()["items"]}
    song = models[ACE.id]
    assert song["capabilities"] == ["text-to-music", "adapters", "lyrics", "seeds", "stereo"]
    assert song["parameters"].keys() == {"priority", "adapter_scale", "duration", "num_samples"}
    assert song["parameters"]["duration"] == {"default": 10, "minimum": 10, "maximum": 600}
    assert {each["name"]: each for each in song["own_parameters"]}["bpm"] == {
        "name": "bpm",
        "kind": "integer",
        "default": 0,
        "minimum": 30,
        "maximum": 300,
        "choices": [],
        "max_length": None,
        "description": "Beats a minute; 0 leaves the tempo to the model.",
    }
    assert models[RIFFUSION.id]["parameters"]["guidance_scale"]["default"] == 7
    assert models["facebook/musicgen-stereo-melody-large"]["capabilities"][-1] == "stereo"
    assert models[NOISE.id]["own_parameters"] == []
    # Whatever a model takes by default, it takes.
    for model in models.values():
        named = {each["name"]: each["default"] for each in model["own_parameters"]}
        refused = await parts.http.post("/generate", json={"prompt": "", "parameters": named, "model_id": model["id"]})
        assert "/parameters" not in refused.text, refused.text


async def test_bodies_that_are_no_parameters_are_refused(parts: Parts) -> None:
    for bad, words in (
        ({"parameters": {"bpm": [90]}}, "/parameters"),
        ({"parameters": {"bpm": None}}, "/parameters"),
        ({"parameters": ["bpm"]}, "/parameters"),
        ({"lyrics": 5}, "/lyrics"),
        ({"guidance_scale": None}, "/guidance_scale"),
    ):
        answer = await parts.http.post("/generate", json={"prompt": "rain", **bad})
        assert answer.status_code == 400, answer.text
        assert answer.json()["errors"][0]["pointer"].startswith(words), answer.text


async def test_riffusion_is_made_with_its_own_parameters(parts: Parts) -> None:
    body = {"prompt": "ambient lo-fi hip hop beats", "campaign_id": "campaign_123", "model": "riffusion/riffusion"}
    async with singing(parts, RIFFUSION) as engine:
        answers = [
            await parts.http.post("/api/v2/generate/audio", json={**body, **more})
            for more in ({}, {"prompt_b": "a brass band", "alpha": 1, "seed_image_id": "og_beat"})
        ]
        assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
        for answer in answers:
            await parts.when(answer.json()["audio_id"], "completed")
    defaults = {"prompt_b": "", "alpha": 0.5, "denoising": 0.75, "num_inference_steps": 50, "seed_image_id": "vibes"}
    chosen = {**defaults, "prompt_b": "a brass band", "alpha": 1.0, "seed_image_id": "og_beat"}
    assert [asked.parameters for asked in engine.requests] == [defaults, chosen]
    assert {asked.sampling.guidance_scale for asked in engine.requests} == {7}
    found = (await parts.http.get(answers[1].headers["Location"])).json()
    assert (found["model_id"], found["parameters"]["model"]) == ("riffusion/riffusion", RIFFUSION.id)
    assert {name: found["parameters"][name] for name in chosen} == chosen
    assert "top_k" not in found["parameters"]
    listed = (await parts.http.get("/api/audio?model_id=riffusion/riffusion")).json()
    assert listed["total"] == 2


async def test_every_seed_image_may_be_named_at_the_door(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    schema = document["components"]["schemas"]["AudioGenerationRequest"]["properties"]["seed_image_id"]
    named = [value for part in schema.get("anyOf") or schema["oneOf"] for value in part.get("enum", [])]
    assert sorted(filter(None, named)) == sorted(SEED_IMAGES)


async def test_diffrhythm_is_answered_by_ace_step_and_told_so(parts: Parts) -> None:
    refused = await parts.http.post("/generate", json={"prompt": "rain", "model_id": "diffrhythm"})
    assert (refused.status_code, ACE.id in refused.json()["detail"]) == (400, True)
    async with singing(parts):
        answer = await parts.http.post("/generate", json={"prompt": "rain", "model_id": "diffrhythm", "lyrics": VERSES})
        assert answer.status_code == 202
        (warning,) = answer.json()["warnings"]
        assert warning.startswith(f"diffrhythm has no engine here: {ACE.id}")
        job = await parts.when(answer.json()["job_id"], "completed")
        chosen = await parts.http.patch("/models/active", json={"model_id": "diffrhythm"})
        assert (chosen.status_code, chosen.json()["id"]) == (200, ACE.id)
    assert (job.request.model_id, job.request.lyrics) == (ACE.id, VERSES)


async def test_both_arms_of_a_blind_test_sing_the_same(parts: Parts) -> None:
    async with singing(parts):
        body = {"name": "t", "prompts": ["rain"], "model_id": ACE.id, "lyrics": VERSES, "parameters": {"bpm": 90}}
        answer = await parts.http.post("/ab-tests", json=body)
        assert answer.status_code == 202, answer.text
        over = await parts.http.post("/ab-tests", json={**body, "parameters": {"bpm": 301}})
        assert (over.status_code, over.json()["errors"][0]["pointer"]) == (400, "/parameters/bpm")
    (test,) = (await parts.services.views.get(AB_TESTS, [answer.json()["id"]])).values()
    jobs = list(submissions(test.request))
    assert [(job.lyrics, job.parameters["bpm"], job.parameters["shift"]) for job in jobs] == [(VERSES, 90, 3.0)] * 2
    assert [(job.sampling.guidance_scale, job.duration) for job in jobs] == [(1.0, 10.0)] * 2


async def test_a_job_that_somebody_else_wrote_is_not_made_without_what_it_asks_for(parts: Parts) -> None:
    async with parts.working(ScriptedEngine(), model=NOISE):
        await parts.submit("sung", lyrics=VERSES)
        await parts.submit("fast", parameters={"bpm": 90})
        sung, fast = await parts.when("sung", "failed"), await parts.when("fast", "failed")
    assert f"There are lyrics, but {NOISE.id} does not sing." in str(sung.error)
    assert f"bpm is no parameter of {NOISE.id}." in str(fast.error)
