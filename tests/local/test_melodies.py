"""Music that follows the tones of a clip: what may be uploaded, what is accepted, and what workers make of it."""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import soundfile
from msgspec.structs import replace
from playwright.sync_api import expect

from domain.events.progress import LoadedModel
from domain.jobs import Job
from domain.models import NOISE, Model, capabilities
from tests.conditions import eventually_sync
from tests.local.browser import browser, window
from tests.local.conftest import Running
from tests.local.engine import RATE, ScriptedEngine
from tests.local.parts import LEASE, Parts, stop
from tests.local.test_cli import text2song
from tests.local.test_keys import House, house
from tests.local.test_models import heard as loaded
from tests.local.test_musicgen_melody import melody as tiny
from workers import chroma
from workers.generation import worker

__all__ = ["house"]

MODEL: Final = replace(
    NOISE, id="own/melody", sample_rate=RATE, capabilities=capabilities("musicgen", stereo=False, melody=True)
)
NOTES: Final = (0, 4, 7, 11)


def tune(seconds: float = 4.0, rate: int = 22050, form: str = "WAV", channels: int = 2) -> bytes:
    """A second a note, from C4 up."""
    time = np.arange(round(rate * seconds)) / rate
    tones = 261.63 * 2 ** (np.array(NOTES)[time.astype(int) % len(NOTES)] / 12)
    sound = (10_000 * np.sin(2 * np.pi * np.cumsum(tones) / rate)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, np.stack([sound * (1 - side) for side in range(channels)], 1), rate, format=form)
    return file.getvalue()


async def upload(parts: Parts, content: bytes, **headers: str) -> Any:
    return await parts.http.post("/melodies", files={"file": ("tune.wav", content)}, headers=headers)


async def post(parts: Parts, **fields: Any) -> Any:
    return await parts.http.post("/generate", json={"prompt": "rain", "duration": 1, "model_id": MODEL.id, **fields})


@pytest.fixture
async def able(parts: Parts) -> Parts:
    """A studio that has heard of a worker whose model follows melodies."""
    told = msgspec.convert(msgspec.structs.asdict(MODEL), LoadedModel)
    await loaded(parts, MODEL.id, model=told)
    return parts


@asynccontextmanager
async def working(parts: Parts, engine: ScriptedEngine, model: Model = MODEL) -> AsyncIterator[None]:
    generating = worker(
        parts.journal, parts.store, parts.objects, engine, MODEL.id, model=model, lease=LEASE, backoff=0.05
    )
    task = asyncio.create_task(generating.run())
    try:
        yield
    finally:
        await stop(task)


async def made(parts: Parts, answer: Any, status: str = "completed") -> Job:
    assert answer.status_code == 202, answer.text
    return await parts.when(answer.json()["job_id"], status)


async def test_scenario_follow_an_uploaded_melody_and_a_sample(able: Parts) -> None:
    sent = await upload(able, tune())
    stored = sent.json()
    assert (sent.status_code, sent.headers["Location"]) == (201, f"/melodies/{stored['id']}")
    assert (stored["duration_seconds"], stored["sample_rate"]) == (4.0, 22050)
    assert (await upload(able, tune(form="FLAC"))).json()["id"] == stored["id"]
    assert (await able.http.get(sent.headers["Location"])).json() == stored
    engine = ScriptedEngine()
    async with working(able, engine):
        plain = await made(able, await post(able))
        first = await made(able, await post(able, melody_from=stored["id"], seed=5))
        second = await made(able, await post(able, melody_from=first.samples[0].event.sample_id))
        again = await made(able, await able.http.post(f"/jobs/{first.id}/rerun", json={"same_seeds": True}))
        without = await made(able, await able.http.post(f"/jobs/{first.id}/rerun", json={"melody_from": None}))
    unsung, followed, sampled, repeated, left_out = (request.melody for request in engine.requests)
    step = chroma.RATE / chroma.HOP
    assert [followed[round((second + 0.5) * step)] for second in range(4)] == list(NOTES)
    # The engine makes a tone of 105 Hz for the seed 5: nearly a G sharp.
    assert set(sampled[2:-2]) == {8}
    assert (unsung, left_out, repeated) == ((), (), followed)
    assert again.request.melody == first.request.melody
    assert (plain.request.melody, without.request.melody) == (None, None)
    job = (await able.http.get(f"/jobs/{first.id}")).json()
    assert job["generation_params"]["melody_from"] == stored["id"]
    ids = [each.samples[0].event.sample_id for each in (plain, first, second)]
    comparison = (await able.http.get(f"/audio/compare?ids={','.join(ids)}")).json()
    values = next(each["values"] for each in comparison["differences"] if each["parameter"] == "melody_from")
    assert values == dict(zip(ids, (None, stored["id"], ids[1]), strict=True))
    flac = (await able.http.get(f"/audio/{ids[1]}/stream")).content
    with soundfile.SoundFile(io.BytesIO(flac)) as file:
        assert msgspec.json.decode(file.comment)["melody_from"] == stored["id"]


async def test_an_erased_melody_is_gone_and_fails_the_jobs_that_wait_for_it(able: Parts) -> None:
    id_ = (await upload(able, tune())).json()["id"]
    waiting = await post(able, melody_from=id_)
    path = f"melodies/{id_}/melody.flac"
    assert (await able.http.delete(f"/melodies/{id_}")).status_code == 204
    assert await able.objects.list("melodies") == []
    words = f"There is no uploaded melody '{id_}'."
    for method in ("GET", "DELETE"):
        gone = await able.http.request(method, f"/melodies/{id_}")
        assert (gone.status_code, gone.json()["detail"]) == (404, words)
    refused = await post(able, melody_from=id_)
    assert (refused.status_code, refused.json()["detail"]) == (
        404,
        f"There is no audio sample or uploaded melody '{id_}'.",
    )
    named = f"Melody {id_} cannot be followed: its file {path!r}"
    async with working(able, ScriptedEngine()):
        job = await made(able, waiting, "failed")
        assert job.error == (
            f"{named} is gone from the object store. Put it back, or submit the job again with another melody."
        )
        await upload(able, tune())
        damaged = await post(able, melody_from=id_)
        await able.objects.put(path, tune(form="FLAC"))
        # A worker that was fast has followed the sound one.
        other = await able.when(damaged.json()["job_id"], "failed", "completed")
    assert other.error in {None, f"{named} is damaged: its SHA-256 is not the one on record."}


async def test_a_model_that_follows_no_melody_is_refused_with_those_that_do(able: Parts) -> None:
    id_ = (await upload(able, tune())).json()["id"]
    answer = await post(able, melody_from=id_, model_id=NOISE.id)
    assert answer.status_code == 400
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/melody_from"]
    assert (
        f"{NOISE.id} follows no melody, such as {id_}; leave melody_from out, or use one that does: "
        in (answer.json()["detail"])
    )
    named = answer.json()["detail"].rpartition(": ")[2].removesuffix(".").split(", ")
    assert {"facebook/musicgen-melody", "facebook/musicgen-stereo-melody-large", MODEL.id} <= set(named)
    # A worker is told by the log alone what it may make.
    told = await post(able, melody_from=id_)
    async with working(able, ScriptedEngine(), NOISE):
        job = await made(able, told, "failed")
    assert job.error == f"There is a melody, but {NOISE.id} follows none. Submit the job again without it."


async def test_what_cannot_be_followed_is_refused_with_its_limit(parts: Parts) -> None:
    unsound = io.BytesIO()
    soundfile.write(unsound, np.full(16000, np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    for content, words in (
        (b"no audio at all", "The file cannot be read as audio: "),
        (b"", "The file cannot be read as audio: "),
        (tune(0.5), "The clip has 0.5 s; at least 1 s can be followed."),
        (tune(301, 8000, channels=1), "The clip has more than 300 s, which is the limit."),
        (tune(1, 4000), "The clip has a sample rate of 4,000 Hz; it can be from 8,000 to 192,000 Hz."),
        (tune(1, 8000, channels=9), "The clip has 9 channels; it can have up to 8. Mix it to stereo."),
        (unsound.getvalue(), "The clip has samples that are not finite."),
    ):
        answer = await upload(parts, content)
        assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/file"]
    large = await upload(parts, bytes(50_000_001))
    assert (large.status_code, large.json()["detail"]) == (413, "The field file is over its limit of 50,000,000 bytes.")
    raw = await parts.http.post("/melodies", content=tune(), headers={"Content-Type": "audio/wav"})
    assert (raw.status_code, "send multipart/form-data" in raw.json()["detail"]) == (415, True)
    for form, words in (
        ({"files": {"clip": ("x.wav", tune(1, 8000))}}, "The field clip is not UTF-8"),
        ({"files": {"file": ("x", tune(1))}, "data": {"name": "x"}}, "name is no field of an upload; it takes file."),
        ({"files": {"name": (None, "x")}}, "name is no field of an upload; it takes file."),
    ):
        answer = await parts.http.post("/melodies", **form)
        assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text
    assert await parts.objects.list("melodies") == []


async def test_melodies_are_their_owners(house: House) -> None:
    keys, parts = house.keys, house.parts
    await loaded(parts, MODEL.id, model=msgspec.convert(msgspec.structs.asdict(MODEL), LoadedModel))
    mine, other = [(await upload(parts, tune(), **{"X-API-Key": keys[owner]})).json()["id"] for owner in ("ann", "bob")]
    assert mine != other
    for owner, status in (("ann", 200), ("ops", 200), ("bob", 404)):
        assert (await house.ask(owner, "GET", f"/melodies/{mine}")).status_code == status
    body = {"prompt": "x", "model_id": MODEL.id, "melody_from": mine}
    assert (await house.ask("bob", "POST", "/generate", body)).status_code == 404
    assert (await house.ask("bob", "DELETE", f"/melodies/{mine}")).status_code == 404
    assert (await house.ask("cem", "DELETE", f"/melodies/{mine}")).status_code == 403
    assert (await house.ask("ann", "POST", "/generate", body)).status_code == 202
    assert (await house.ask("ann", "DELETE", f"/melodies/{mine}")).status_code == 204


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A studio whose model is a melody model of random weights, and beside its data a tune."""
    folder = tmp_path_factory.mktemp("melodies")
    for part in tiny():
        part.save_pretrained(folder / "model")
    (folder / "tune.ogg").write_bytes(tune(3, form="OGG"))
    running = Running(folder / "data", TEXT2SONG_MODEL=str(folder / "model"))
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.errors()


def test_from_a_file_at_the_command_line_to_stored_audio(room: Running, tmp_path: Path) -> None:
    (active,) = [model for model in room.http.get("/models").json()["items"] if model["is_active"]]
    assert "melody" in active["capabilities"]
    generate = ("generate", "rain", "--url", room.url, "--seed", "6", "--duration", "1")
    said = text2song(*generate, "--melody", str(room.data.parent / "tune.ogg"), cwd=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    followed, _ = soundfile.read(next(tmp_path.glob("*.wav")))
    plain = f"/jobs/{room.http.post('/generate', json={'prompt': 'rain', 'seed': 6, 'duration': 1}).json()['job_id']}"
    eventually_sync(lambda: room.http.get(plain).json()["status"] == "completed")
    [sample] = room.http.get(plain).json()["sample_ids"]
    wav = room.http.get(f"/audio/{sample}/stream", params={"format": "wav"}).content
    unled, _ = soundfile.read(io.BytesIO(wav))
    assert np.abs(followed - unled).max() > 0.01
    missing = text2song(*generate, "--melody", "nothing.wav", cwd=tmp_path)
    assert missing.returncode == 1
    assert "There is no file nothing.wav." in missing.stdout + missing.stderr


def test_a_clip_that_is_uploaded_on_the_page_is_followed(room: Running) -> None:
    with browser() as opened, window(opened, room.url) as page:
        page.goto("/studio")
        page.get_by_label("What do you want to hear?").fill("a slow song")
        page.get_by_label("Seconds").fill("1")
        page.get_by_label("Upload a clip").set_input_files(room.data.parent / "tune.ogg")
        melody = page.get_by_label("Melody", exact=True)
        expect(melody).to_have_value(re.compile("^melody-"))
        page.get_by_role("button", name="Make", exact=True).click()
        expect(page.get_by_role("article", name="a slow song", exact=True)).to_contain_text("Done")
        newest = room.http.get("/jobs", params={"limit": 1}).json()["items"][0]
        assert newest["generation_params"]["melody_from"] == melody.input_value()
        page.get_by_text("Model, adapter, seed, sampling").click()
        page.get_by_label("Model", exact=True).select_option("facebook/musicgen-small")
        expect(melody).to_be_hidden()
