import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from domain.events.progress import LoadedModel, WorkerAlive
from domain.jobs import JOBS
from domain.models import KNOWN, NANO, NOISE
from tests.conditions import eventually
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts

LARGE = "facebook/musicgen-large"
OTHER = LoadedModel(
    family="musicgen", max_duration=12, sample_rate=16000, channels=1, vram_gb=1, license="MIT", revision="5d5d5d5d"
)


def test_scenario_list_available_models(studio: Running) -> None:
    models = studio.http.get("/models").json()["items"]
    assert sorted(model["id"] for model in models) == sorted(model.id for model in KNOWN)
    assert [model["id"] for model in models if model["is_active"]] == [models[0]["id"]] == [NOISE.id]
    assert [model["id"] for model in models if model["is_loaded"]] == [NOISE.id]
    assert (models[0]["workers"], models[0]["capacity"] >= 1) == (1, True)
    for model in models:
        assert 0 < model["max_duration"] <= model["max_extended_duration"]
        assert model["sample_rate"] in {16000, 32000, 44100, 48000}
        assert model["vram_gb"] > 0
        assert model["license"]
        assert model["tempi"] == ([70, 140] if model["id"] == NANO.id else None)
        assert model["parameters"]["duration"]["minimum"] == model["min_duration"]
    for model in (model for model in models if model["family"] == "musicgen"):
        assert model["parameters"]["temperature"] == {"default": 1, "minimum": 0, "maximum": 5}
        assert model["parameters"]["adapter_scale"] == {"default": 1, "minimum": 0, "maximum": 2}
        assert model["min_duration"] == 0.5


def test_scenario_get_model_configuration(studio: Running) -> None:
    """The limits that requests are held to are those the registry shows."""
    (active,) = [model for model in studio.http.get("/models").json()["items"] if model["is_active"]]
    longest = active["max_extended_duration"]
    assert active["parameters"]["duration"]["maximum"] == longest
    over = {"prompt": "x", "duration": longest + 0.5}
    assert f"to {longest:g} s" in studio.http.post("/generate", json=over).json()["detail"]


def test_a_model_of_noise_says_that_it_is_one(studio: Running) -> None:
    assert "noise" in studio.http.get("/").json()["notice"]
    assert "noise" in studio.http.get("/models").json()["items"][0]["notice"]


def test_a_model_that_is_not_loaded_is_refused_with_the_way_out(studio: Running) -> None:
    for method, path in (("POST", "/generate"), ("PATCH", "/models/active")):
        body = {"model_id": "facebook/musicgen-small"} | ({"prompt": "x"} if method == "POST" else {})
        answer = studio.http.request(method, path, json=body)
        assert answer.status_code == 400
        assert "TEXT2SONG_MODEL=facebook/musicgen-small" in answer.json()["detail"]


async def heard(parts: Parts, model_id: str, state: str = "ready", **fields: Any) -> None:
    """Until the API has heard of a worker that has the model."""
    alive = WorkerAlive(worker_id=f"worker-{model_id[-1]}-{state}", model_id=model_id, state=state, **fields)
    await parts.journal.append(alive)

    async def known() -> bool:
        return alive in parts.services.feed.workers()

    await eventually(known)


async def models(parts: Parts) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in (await parts.http.get("/models")).json()["items"]}


async def submitted(parts: Parts, **fields: Any) -> Any:
    answer = await parts.http.post("/generate", json={"prompt": "x", "duration": 1, **fields})
    assert answer.status_code == 202, answer.text
    return (await parts.services.views.get(JOBS, [answer.json()["job_id"]]))[answer.json()["job_id"]].request


@contextlib.asynccontextmanager
async def beside(parts: Parts) -> AsyncIterator[Parts]:
    """Another API process of the same studio."""
    other = Parts(parts.folder, parts.log, parts.store, parts.objects)
    tasks = [asyncio.create_task(other.host.run()), asyncio.create_task(other.services.feed.run())]
    try:
        await other.services.feed.started.wait()
        assert await other.host.caught_up(10)
        yield other
    finally:
        await other.http.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_a_live_worker_has_loaded_may_be_asked_for_by_name(parts: Parts) -> None:
    refused = await parts.http.post("/generate", json={"prompt": "x", "model_id": LARGE})
    assert refused.status_code == 400
    await heard(parts, LARGE, "broken")
    assert (await parts.http.post("/generate", json={"prompt": "x", "model_id": LARGE})).status_code == 400
    await heard(parts, LARGE, "busy", capacity=3, model=replace(OTHER, revision="4c83"))
    await heard(parts, LARGE, "ready", capacity=2)
    large = (await models(parts))[LARGE]
    assert (large["is_loaded"], large["workers"], large["capacity"], large["is_active"]) == (True, 2, 5, False)
    assert (await submitted(parts, model_id=LARGE)).model_id == LARGE
    assert (await submitted(parts)).model_id == NOISE.id


async def test_what_workers_tell_of_their_load_is_shown_of_all_together(parts: Parts) -> None:
    def load(model: dict[str, Any]) -> tuple[Any, ...]:
        return model["capacity"], model["occupancy"], model["real_time_factor"]

    await heard(parts, LARGE, "busy", capacity=12, busy=3, real_time_factor=8.25)
    assert load((await models(parts))[LARGE]) == (12, 0.25, 8.25)
    await heard(parts, LARGE, "ready", capacity=4, busy=9, real_time_factor=2)
    assert load((await models(parts))[LARGE]) == (16, 0.75, 10.25)
    await heard(parts, LARGE, "busy", capacity=4, busy=1_000, real_time_factor=0)
    assert load((await models(parts))[LARGE]) == (8, 1, 2)
    # One that is older, or has made nothing yet, does not say.
    await heard(parts, LARGE, "busy", capacity=12)
    assert load((await models(parts))[LARGE]) == (16, None, None)


async def test_a_worker_tells_of_its_load(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.busy, engine.real_time_factor = 2, 3.5
    async with parts.working(engine, capacity=lambda: 8):

        async def told() -> Any:
            model = (await models(parts))[NOISE.id]
            return model["is_loaded"] and (model["capacity"], model["occupancy"], model["real_time_factor"])

        assert await eventually(told) == (8, 0.25, 3.5)


async def test_a_model_that_only_a_worker_knows_has_the_limits_it_tells(parts: Parts) -> None:
    await heard(parts, "local/mine@1", model=OTHER)
    mine = (await models(parts))["local/mine@1"]
    assert (mine["max_duration"], mine["revision"], mine["license"]) == (12, "5d5d5d5d", "MIT")
    request = await submitted(parts, model_id="local/mine@1", duration=12)
    assert (request.model_id, request.model_revision) == ("local/mine@1", "5d5d5d5d")
    longest = mine["parameters"]["duration"]["maximum"]
    over = {"prompt": "x", "model_id": "local/mine@1", "duration": longest + 1}
    assert f"to {longest:g} s" in (await parts.http.post("/generate", json=over)).json()["detail"]


async def test_the_default_is_chosen_for_every_process_and_outlives_a_restart(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts, beside(parts) as other:
        assert (await other.http.get("/")).json()["model"] == NOISE.id
        await heard(parts, LARGE)
        chosen = await parts.http.patch("/models/active", json={"model_id": LARGE})
        assert (chosen.status_code, chosen.json()["id"], chosen.json()["is_active"]) == (200, LARGE, True)
        position = {"If-Event-Position": chosen.headers["X-Event-Position"]}
        assert chosen.headers["X-Event-Position"] == "models/0/0"
        listed = (await other.http.get("/models", headers=position)).json()["items"]
        assert [model["id"] for model in listed if model["is_active"]] == [listed[0]["id"]] == [LARGE]
        assert (await other.http.get("/")).json()["model"] == LARGE
        assert (await submitted(parts)).model_id == LARGE
        again = await other.http.patch("/models/active", json={"model_id": LARGE})
        assert (again.status_code, again.headers["X-Event-Position"]) == (200, "models/0/0")
        test = await other.http.post("/ab-tests", json={"name": "t", "prompts": ["x"], "duration": 1})
        assert test.json()["model_id"] == LARGE
    async with open_parts(tmp_path) as parts:
        assert (await submitted(parts)).model_id == LARGE
        assert (await models(parts))[LARGE]["is_loaded"] is False
        back = await parts.http.patch("/models/active", json={"model_id": NOISE.id})
        assert (back.status_code, (await submitted(parts)).model_id) == (200, NOISE.id)
        for bad in ({}, {"model_id": 5}, {"model_id": "nobody/knows"}, {"model_id": NANO.id, "more": 1}):
            assert (await parts.http.patch("/models/active", json=bad)).status_code == 400, bad


async def test_while_the_worker_of_the_chosen_model_is_away_no_other_model_makes_its_jobs(tmp_path: Path) -> None:
    own = "local/own@5d5d5d5d"
    async with open_parts(tmp_path) as parts:
        await heard(parts, own, model=OTHER)
        assert (await parts.http.patch("/models/active", json={"model_id": own})).status_code == 200
        assert (await submitted(parts)).model_id == own
    async with open_parts(tmp_path) as parts:
        for body in ({}, {"model_id": own}):
            answer = await parts.http.post("/generate", json={"prompt": "x", "duration": 1, **body})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), body
            assert answer.json()["detail"].startswith(f"The active model {own} has no worker just now.")
        assert [model["id"] for model in (await models(parts)).values() if model["is_active"]] == []
        await heard(parts, NOISE.id)
        assert (await submitted(parts, model_id=NOISE.id)).model_id == NOISE.id
        await heard(parts, own, model=OTHER)
        assert (await submitted(parts)).model_id == own


async def test_a_worker_takes_no_job_of_another_revision_of_its_model(parts: Parts) -> None:
    engine = ScriptedEngine()
    async with parts.working(engine, model=replace(NOISE, revision="5d5d")):
        await parts.submit("other", seeds=[1], model_revision="4c83", priority=9)
        await parts.submit("same", seeds=[1], model_revision="5d5d")
        await parts.submit("any", seeds=[1])
        await parts.when("same", "completed")
        await parts.when("any", "completed")
        job = await parts.job("other")
        assert job is not None
        assert job.status == "queued"

        async def told() -> Any:
            return (await models(parts))[NOISE.id]

        shown = await eventually(told)
        assert (shown["is_loaded"], shown["revision"], shown["capacity"]) == (True, "5d5d", 1)
