"""Clips that go on where a stored sample ends: what is accepted, what workers do with it, and how it sounds."""

import asyncio
import copy
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from msgspec.structs import replace

from domain.errors import UnavailableError
from domain.events.jobs import Sampling
from domain.jobs import Job
from domain.models import NANO, NOISE
from tests.local.conftest import Running
from tests.local.engine import RATE, ScriptedEngine, tone
from tests.local.parts import Parts
from tests.local.test_cli import text2song
from tests.local.test_jobs import submit, when
from tests.local.test_models import heard as loaded
from workers.engine import Clip, EngineError, EngineRequest, Failure, Opening, Take
from workers.engines import noise
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.listening import CHUNK, heard

CPU = torch.device("cpu")
MODEL = replace(NOISE, sample_rate=RATE)


@pytest.fixture
async def source(parts: Parts) -> Job:
    """A job with a sample of 1 s."""
    async with parts.working(ScriptedEngine(), model=MODEL):
        await parts.submit("source", seeds=[5])
        return await parts.when("source", "completed")


async def post(parts: Parts, **fields: Any) -> Any:
    return await parts.http.post("/generate", json={"prompt": "rain", "duration": 3, **fields})


async def test_scenario_continue_a_sample(parts: Parts, source: Job) -> None:
    [sample] = source.samples
    engine = ScriptedEngine()
    async with parts.working(engine, model=MODEL):
        answer = await post(parts, continue_from=sample.event.sample_id, continue_seconds=0.75, num_samples=2)
        assert answer.status_code == 202, answer.text
        job = await parts.when(answer.json()["job_id"], "completed")
    [request] = engine.requests
    assert request.opening is not None
    assert (request.opening.kept, request.opening.pcm.shape, request.duration) == (0.75 * RATE, (1, RATE), 3)
    middle = slice(RATE // 4, RATE - 100)
    assert np.abs(request.opening.pcm[:, middle] - tone(5)[:, middle]).max() < 1e-4
    kept = {"continue_from": sample.event.sample_id, "continue_seconds": 0.75}
    params = (await parts.http.get(f"/jobs/{job.id}")).json()["generation_params"]
    assert {name: params[name] for name in kept} == kept
    for made in job.samples:
        audio = (await parts.http.get(f"/audio/{made.event.sample_id}")).json()
        assert {name: audio["generation_params"][name] for name in kept} == kept
        flac = (await parts.http.get(audio["stream_url"])).content
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            assert kept.items() <= msgspec.json.decode(file.comment).items()
    # What was made of it stays when the source is deleted.
    await parts.http.delete("/jobs/source")
    assert (await parts.http.get(f"/audio/{job.samples[0].event.sample_id}/stream")).status_code == 200
    rerun = await parts.http.post(f"/jobs/{job.id}/rerun", json={})
    assert (rerun.status_code, rerun.json()["detail"]) == (404, f"There is no audio sample '{sample.event.sample_id}'.")
    assert (await parts.http.post(f"/jobs/{job.id}/rerun", json={"continue_from": None})).status_code == 202


async def test_by_default_as_much_is_kept_as_a_window_keeps(parts: Parts, source: Job) -> None:
    [sample] = source.samples
    answer = await post(parts, continue_from=sample.event.sample_id)
    job = await parts.job(answer.json()["job_id"])
    assert job is not None
    assert job.request.continuation is not None
    assert job.request.continuation.seconds == min(1.0, NOISE.kept_duration)
    again = await parts.http.post(f"/jobs/{job.id}/rerun", json={"same_seeds": True})
    other = await parts.job(again.json()["job_id"])
    assert other is not None
    assert other.request.continuation == job.request.continuation


async def test_what_cannot_be_continued_is_refused(parts: Parts, source: Job) -> None:
    [sample] = source.samples
    ident = sample.event.sample_id
    for fields, status, pointer, words in (
        ({"continue_from": "nobody"}, 404, None, "There is no audio sample 'nobody'."),
        ({"continue_from": ident, "continue_seconds": 0.25}, 400, "continue_seconds", "from 0.5 s to all its 1 s"),
        ({"continue_from": ident, "continue_seconds": 1.01}, 400, "continue_seconds", "continue_seconds is 1.01"),
        ({"continue_from": ident, "continue_seconds": -1}, 400, "continue_seconds", "continue_seconds is -1"),
        ({"continue_from": ident, "duration": 1}, 400, "continue_seconds", "1 s, of which 1 s are kept of sample"),
        ({"continue_seconds": 1}, 400, "continue_seconds", "but there is no continue_from; give both."),
        ({"continue_from": 7}, 400, "continue_from", ""),
    ):
        answer = await post(parts, **fields)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        if pointer:
            assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"/{pointer}"]
    await parts.http.delete("/jobs/source")
    gone = await post(parts, continue_from=ident)
    assert (gone.status_code, gone.json()["detail"]) == (404, f"There is no audio sample '{ident}'.")
    assert (await parts.http.get("/jobs")).json()["total"] == 0


async def test_a_sample_of_another_model_is_refused_with_both_names(parts: Parts, source: Job) -> None:
    [sample] = source.samples
    await loaded(parts, NANO.id)
    answer = await post(parts, continue_from=sample.event.sample_id, model_id=NANO.id)
    assert answer.status_code == 400
    assert f"was made by {NOISE.id}, but the current model is {NANO.id}" in answer.json()["detail"]


async def test_a_retry_under_one_key_is_one_job_even_when_the_source_is_gone(parts: Parts, source: Job) -> None:
    body = {"prompt": "rain", "duration": 3, "continue_from": source.samples[0].event.sample_id}
    first = await parts.http.post("/generate", json=body, headers={"Idempotency-Key": "k"})
    await parts.http.delete("/jobs/source")
    again = await parts.http.post("/generate", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])


async def test_a_source_that_is_gone_or_damaged_fails_the_job_with_its_name(parts: Parts, source: Job) -> None:
    [sample] = source.samples
    path = sample.event.storage_path
    flac = b"".join([chunk async for chunk in parts.objects.read(path)])
    for stored, words in (
        (b"", f"its file {path!r} is gone from the object store. Put it back, or continue another sample."),
        (flac[:-5], f"its file {path!r} is damaged: its SHA-256 is not the one on record."),
        (flac, None),
    ):
        answer = await post(parts, continue_from=sample.event.sample_id)
        await (parts.objects.put(path, stored) if stored else parts.objects.delete(path))
        async with parts.working(ScriptedEngine(), model=MODEL):
            job = await parts.when(answer.json()["job_id"], "failed" if words else "completed")
        assert (job.error, job.failures) == (
            f"Sample {sample.event.sample_id} cannot be continued: {words}" if words else None,
            0,
        )


async def test_a_worker_waits_for_a_store_that_is_away(
    parts: Parts, source: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, away = parts.objects.read, asyncio.Event()

    async def reading(key: str, *range_: Any) -> Any:
        if not away.is_set():
            away.set()
            raise UnavailableError("The object store does not answer.")
        async for chunk in read(key, *range_):
            yield chunk

    answer = await post(parts, continue_from=source.samples[0].event.sample_id)
    monkeypatch.setattr(parts.objects, "read", reading)
    async with parts.working(ScriptedEngine(), model=MODEL):
        job = await parts.when(answer.json()["job_id"], "completed")
    assert (away.is_set(), job.attempt) == (True, 1)


async def test_a_file_that_does_not_fit_the_model_fails_the_job(parts: Parts, source: Job) -> None:
    answer = await post(parts, continue_from=source.samples[0].event.sample_id)
    async with parts.working(ScriptedEngine(), model=NOISE):
        job = await parts.when(answer.json()["job_id"], "failed")
    assert "has 8000 Hz and 1 channel(s), but the model makes 32000 Hz and 1." in (job.error or "")


@pytest.fixture(scope="module")
def short() -> MusicgenEngine:
    """A model whose window is 2 s."""
    network, tokenizer = noise.build()
    return MusicgenEngine(network, tokenizer, replace(NOISE, max_duration=2.0), CPU, 4)


def asked(ident: str, *seeds: int, duration: float, opening: Opening | None = None, **sampling: Any) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds)]
    return EngineRequest(
        id=ident, prompt="dub", duration=duration, takes=takes, sampling=Sampling(**sampling), opening=opening
    )


def sing(engine: MusicgenEngine, *requests: EngineRequest) -> dict[tuple[str, int], Any]:
    for request in requests:
        engine.admit(request)
    made: dict[tuple[str, int], Any] = {}
    while len(made) < sum(len(request.takes) for request in requests):
        for update in engine.advance():
            assert not isinstance(update, Failure), update.error
            if isinstance(update, Clip):
                made[update.request_id, update.index] = update.pcm
    return made


def end(pcm: Any, seconds: float) -> Opening:
    return Opening(pcm=pcm, kept=round(seconds * 32000))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("channels", [1, 2])
def test_a_greedy_continuation_is_that_of_generate_after_the_same_codes(channels: int) -> None:
    network, tokenizer = noise.build(channels=channels)
    engine = MusicgenEngine(
        copy.deepcopy(network), tokenizer, replace(NOISE, channels=channels, max_duration=4.0), CPU, 2
    )
    before = sing(engine, asked("a", 3, duration=2.0))["a", 0]
    whole = sing(engine, asked("b", 0, duration=3.0, opening=end(before, 1.0), temperature=0.0))["b", 0]
    [codes] = heard(end(before, 1.0), network)
    assert codes.shape == (4 * channels, 49)
    model: Any = network
    with torch.inference_mode():
        expected = model.generate(
            **tokenizer("dub", return_tensors="pt"),
            decoder_input_ids=codes,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=150 - 49 + 3,
        )[0].numpy()
    assert np.abs(whole - expected / max(1.0, np.abs(expected).max())).max() < 1e-5


@pytest.mark.usefixtures("one_thread")
def test_a_continuation_is_the_same_alone_and_in_company_and_begins_with_what_was_kept(short: MusicgenEngine) -> None:
    before = sing(short, asked("a", 3, duration=3.0))["a", 0]
    opening = end(before, 1.5)
    alone = sing(short, asked("b", 1, duration=5.0, opening=opening))["b", 0]
    assert alone.shape == (1, 5 * 32000)
    together = sing(
        short,
        asked("c", 8, duration=0.7),
        asked("b", 1, 2, duration=5.0, opening=opening),
        asked("d", 1, duration=0.9, opening=end(before, 0.6)),
    )
    assert np.array_equal(alone, together["b", 0])
    kept = slice(0, round(1.3 * 32000))
    assert np.abs(alone[:, kept] - together["b", 1][:, kept]).max() < 1e-5
    assert np.abs(alone[:, 2 * 32000 :] - together["b", 1][:, 2 * 32000 :]).max() > 0.05


@pytest.mark.usefixtures("one_thread")
def test_memory_that_runs_out_while_the_source_is_heard_loses_nothing(
    short: MusicgenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked("a", 1, 2, duration=2.0, opening=end(tone_of(1.0), 1.0))
    expected = sing(short, request)
    network, tokenizer = noise.build()
    engine = MusicgenEngine(network, tokenizer, short.model, CPU, 4)
    quantizer: Any = network.audio_encoder.quantizer
    encode, faults = quantizer.encode, [torch.OutOfMemoryError("CUDA out of memory")]

    def hungry(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return encode(*arguments)

    monkeypatch.setattr(quantizer, "encode", hungry)
    made = sing(engine, request)
    assert engine.capacity == 2
    assert all(np.array_equal(pcm, made[name]) for name, pcm in expected.items())


@pytest.mark.usefixtures("one_thread")
def test_a_continuation_that_is_cancelled_while_the_source_is_heard_leaves_nothing(short: MusicgenEngine) -> None:
    short.admit(asked("a", 1, duration=200.0, opening=end(tone_of(150.0), 150.0)))
    for _ in range(3):
        short.advance()
    assert short._joining is not None
    short.cancel("a")
    assert short.advance() == []
    assert sing(short, asked("b", 1, duration=0.5)).keys() == {("b", 0)}


@pytest.mark.usefixtures("one_thread")
def test_an_opening_that_no_clip_can_have_is_refused(short: MusicgenEngine) -> None:
    sound = tone_of(1.0)
    for pcm, kept, duration, words in (
        (sound, 1.0, 1.0, "1 s of audio cannot be continued to a clip of 1 s."),
        (sound, 2.0, 9.0, "2 s of audio cannot be continued"),
        (np.concatenate([sound, sound]), 1.0, 3.0, "must be 1 channel(s) of finite numbers"),
        (sound * np.nan, 1.0, 3.0, "must be 1 channel(s) of finite numbers"),
    ):
        with pytest.raises(EngineError) as caught:
            short.admit(asked("x", 1, duration=duration, opening=end(pcm, kept)))
        assert words in str(caught.value)


def tone_of(seconds: float) -> Any:
    return (0.3 * np.sin(np.arange(round(seconds * 32000)) / 20)).astype(np.float32)[None]


def test_codes_of_a_long_source_are_about_those_of_the_whole_at_once() -> None:
    """In pieces: the recurrent layer forgets what lies further back than a second."""
    network: Any = MusicgenEngine.load(resolve(NANO.id), "cpu").network
    rng = np.random.default_rng(0)
    sound = (0.2 * rng.standard_normal((1, 12 * 16000))).cumsum(1).clip(-0.8, 0.8).astype(np.float32)
    with torch.inference_mode():
        codes = torch.cat(list(heard(Opening(pcm=sound, kept=sound.shape[1]), network)), dim=1)
        whole = network.audio_encoder.encode(torch.from_numpy(sound)[None]).audio_codes[0, 0]
    frames = codes.shape[1]
    assert frames == 12 * 50 - 1 > 2 * CHUNK
    assert (codes[0] == whole[0, :frames]).float().mean() > 0.95


def test_from_the_command_line_to_stored_audio(studio: Running, tmp_path: Path) -> None:
    """Through the whole studio, with a model that runs."""
    first = when(studio, submit(studio, seed=5, duration=2), "completed")["sample_ids"][0]
    said = text2song(
        *("generate", "rain", "--url", studio.url, "--seed", "6", "--duration", "3"),
        *("--continue-from", first, "--continue-seconds", "1"),
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    [path] = tmp_path.glob("*.wav")
    made, rate = soundfile.read(path)
    assert len(made) == 3 * rate
    refused = text2song("generate", "x", "--url", studio.url, "--continue-from", "nobody", cwd=tmp_path)
    assert refused.returncode == 1
    assert "There is no audio sample 'nobody'." in refused.stdout + refused.stderr
