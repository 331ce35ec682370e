"""Best of n: the engine's scores against a plain reference, and a job that keeps the best of its candidates."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from domain.events.jobs import JobCancelRequested, Sampling
from domain.lora import PREFERENCE
from domain.models import NOISE
from tests.conditions import eventually, eventually_sync
from tests.contract.conftest import too_many_files
from tests.local.adapters import lora
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, stop
from workers.engine import Clip, EngineError, EngineRequest, Progress, Take
from workers.engines import noise
from workers.engines.checkpoints import Checkpoint
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.liking import Liking
from workers.training.features import Ear
from workers.training.listener import TIMBRE, Listener
from workers.training.network import Network
from workers.training.preference import Hearing

CPU: Final = torch.device("cpu")
PROMPT: Final = "slow dub techno with a warm bass"
SCORES: Final = {41: 0.1, 42: 0.7, 43: -0.2, 44: 0.3}


def sing(engine: MusicgenEngine, *requests: EngineRequest) -> tuple[dict[tuple[str, int], Clip], dict[Any, Any]]:
    """The clips, and the codes that they were made of."""
    for request in requests:
        engine.admit(request)
    codes = {(id_, take.take.index): take.codes for id_, one in engine._active.items() for take in one.takes}
    clips: dict[tuple[str, int], Clip] = {}
    while len(clips) < len(codes):
        clips |= {(each.request_id, each.index): each for each in engine.advance() if isinstance(each, Clip)}
    return clips, codes


def request(ident: str, *seeds: int, is_judged: bool = True, guidance: float = 3.0, **other: Any) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds)]
    sampling = Sampling(guidance_scale=guidance)
    fields = {"prompt": PROMPT, "duration": 0.5, **other}
    return EngineRequest(id=ident, takes=takes, sampling=sampling, is_judged=is_judged, **fields)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("channels", [1, 2])
def test_likelihoods_are_those_of_a_teacher_forced_pass_in_float64(channels: int) -> None:
    """Of takes with guidance and without, of mixed lengths, beside one that is not judged."""
    network, tokenizer = noise.build(channels=channels)
    plain = Network(Checkpoint(model=NOISE), channels=channels)
    plain._whole.double()
    engine = MusicgenEngine(network, tokenizer, NOISE, CPU, 4)
    asked = [
        request("guided", 5, 6),
        request("plain", 7, guidance=1.0, duration=0.7),
        request("unjudged", 8, is_judged=False),
    ]
    clips, codes = sing(engine, *asked)
    for (ident, index), clip in clips.items():
        if ident == "unjudged":
            assert clip.likelihood is None
            continue
        own = codes[ident, index][None]
        heard = []
        for is_told in (True, False):
            logits = plain.logits(own, *plain.texts([PROMPT], [is_told]))
            heard.append(logits.double().log_softmax(-1).gather(-1, own[..., None]).mean())
        assert clip.likelihood == pytest.approx(float(heard[0] - heard[1]), abs=2e-5)
        assert clip.likelihood != 0


@pytest.mark.usefixtures("one_thread")
def test_judging_changes_neither_the_audio_nor_the_score_by_its_company() -> None:
    network, tokenizer = noise.build()
    engine = MusicgenEngine(network, tokenizer, NOISE, CPU, 4)
    together, _ = sing(engine, request("a", 5, 6, 7, guidance=1.0), request("b", 8))
    unjudged, _ = sing(engine, request("a", 5, 6, 7, guidance=1.0, is_judged=False))
    alone, _ = sing(engine, request("a", 6, guidance=1.0))
    for index in range(3):
        assert np.array_equal(together["a", index].pcm, unjudged["a", index].pcm)
    assert alone["a", 0].likelihood == pytest.approx(together["a", 1].likelihood, abs=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_a_take_that_begins_again_is_judged_once() -> None:
    """As when memory has run out: its evidence does not count twice."""
    network, tokenizer = noise.build()
    engine = MusicgenEngine(network, tokenizer, NOISE, CPU, 4)
    undisturbed, _ = sing(engine, request("a", 5))
    engine.admit(request("a", 5))
    engine.advance()
    engine._halve()
    clips: list[Clip] = []
    while not clips:
        clips = [each for each in engine.advance() if isinstance(each, Clip)]
    assert clips[0].likelihood == undisturbed["a", 0].likelihood


def listener(rate: int, latent: int) -> Listener:
    ear, dice = Ear(rate), torch.Generator().manual_seed(3)
    sizes = {**{group: len(names) for group, names in ear.names.items()}, TIMBRE: latent}
    slopes = {group: torch.randn(size, generator=dice) for group, size in sizes.items()}
    hearing = Hearing.of(torch.ones(20))
    return Listener(ear=ear, slopes=slopes, hearing=hearing, ridge=1.0, opinions=[])


def test_a_preference_is_what_the_preference_model_says_of_the_clip(tmp_path: Path) -> None:
    network = Network(Checkpoint(model=NOISE))
    kept = listener(network.sample_rate, 16)
    kept.save(tmp_path)
    dice = torch.Generator().manual_seed(1)
    codes = torch.randint(0, noise.CODES, (4, 50), generator=dice)
    pcm = network.sound(network.latents(codes[None]))[0].numpy()
    heard = {**Ear(network.sample_rate).hear(torch.from_numpy(pcm.mean(0))[None])}
    heard[TIMBRE] = network.latents(codes[None]).mean((1, 3))
    liking = Liking.load(tmp_path, network.sample_rate)
    assert liking is not None
    assert liking.score(pcm, codes, network.codec, 1) == pytest.approx(float(kept.score(heard)), rel=1e-4)
    assert Liking.load(tmp_path / "another", network.sample_rate) is None
    with pytest.raises(EngineError, match="cannot be read") as refused, too_many_files():
        Liking.load(tmp_path, network.sample_rate)
    assert refused.value.transient
    (tmp_path / PREFERENCE[0]).write_bytes(b"{")
    with pytest.raises(EngineError, match="cannot be read") as damaged:
        Liking.load(tmp_path, network.sample_rate)
    assert not damaged.value.transient


@pytest.mark.usefixtures("one_thread")
def test_an_adapters_candidates_are_judged_by_its_preference_model(tmp_path: Path) -> None:
    network, tokenizer = noise.build()
    engine = MusicgenEngine(network, tokenizer, NOISE, CPU, 4)
    plain = Network(Checkpoint(model=NOISE))
    kept = listener(plain.sample_rate, 16)
    adapter = lora(tmp_path, 1, rank=4)
    kept.save(tmp_path)
    clips, codes = sing(engine, request("a", 5, 6, adapter=adapter), request("unjudged", 5, is_judged=False))
    assert clips["unjudged", 0].preference is None
    for index in range(2):
        heard = {**Ear(plain.sample_rate).hear(torch.from_numpy(clips["a", index].pcm.mean(0))[None])}
        heard[TIMBRE] = plain.latents(codes["a", index][None]).mean((1, 3))
        assert clips["a", index].preference == pytest.approx(float(kept.score(heard)), rel=1e-4)
    (tmp_path / "preference.json").write_text("{")
    engine.admit(request("whole", 7))
    with pytest.raises(EngineError, match="preference model cannot be read"):
        engine.admit(request("damaged", 7, adapter=adapter))


class JudgingEngine(ScriptedEngine):
    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        async for update in super().generate(request):
            if isinstance(update, Clip) and request.is_judged:
                yield Clip(
                    request_id=update.request_id,
                    index=update.index,
                    seed=update.seed,
                    sample_rate=update.sample_rate,
                    pcm=update.pcm,
                    likelihood=SCORES[update.seed],
                )
            else:
                yield update


async def keys(parts: Parts, job_id: str) -> list[str]:
    return [info.key for info in await parts.objects.list(f"samples/{job_id}")]


async def test_a_worker_that_takes_over_makes_the_candidates_that_are_missing_and_keeps_the_best(parts: Parts) -> None:
    """The first worker dies after two of four candidates, of which the second is the best of all."""
    dying, heir = JudgingEngine(), JudgingEngine()
    dying.close_after(2)
    async with parts.working(dying) as (task,):
        await parts.submit("j1", seeds=[41, 42, 43, 44], best_of=4, best_of_by="likelihood")

        async def made() -> bool:
            job = await parts.job("j1")
            return job is not None and len(job.samples) == 2

        await eventually(made)
        await parts.host.caught_up(10)
        shown = (await parts.http.get("/jobs/j1")).json()
        assert (shown["sample_ids"], shown["progress"]) == ([], 50.0)
        await stop(task)
        async with parts.working(heir):
            job = await parts.when("j1", "completed")
    assert [take.index for take in heir.requests[0].takes] == [2, 3]
    assert [sample.event.seed for sample in job.kept] == [42]
    assert [key.rpartition("/")[2] for key in await keys(parts, "j1")] == ["1.flac", "1.json"]
    await parts.host.caught_up(10)
    shown = (await parts.http.get("/jobs/j1")).json()
    (sample_id,) = shown["sample_ids"]
    sample = (await parts.http.get(f"/audio/{sample_id}")).json()
    assert sample["generation_params"]["seed"] == 42
    assert sample["picked_by"] == "likelihood"
    assert {score["seed"]: score["likelihood"] for score in sample["scores"]} == SCORES
    others = [each.event.sample_id for each in job.samples if each.event.sample_id != sample_id]
    assert [(await parts.http.get(f"/audio/{each}")).status_code for each in others] == [404] * 3


async def test_a_cancelled_job_leaves_no_candidate(parts: Parts) -> None:
    engine = JudgingEngine()
    engine.close_after(1)
    async with parts.working(engine):
        await parts.submit("j1", seeds=[41, 42], best_of=2, best_of_by="likelihood")
        await eventually(lambda: keys(parts, "j1"))
        await parts.journal.append(JobCancelRequested(job_id="j1"))
        await parts.when("j1", "cancelled")
        assert await keys(parts, "j1") == []
        engine.release()


async def test_candidates_without_the_score_to_pick_by_are_said_to_be_so(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[41, 42], best_of=2, best_of_by="likelihood")
        job = await parts.when("j1", "failed")
    assert job.error == "No likelihood is known of candidates, so that none can be picked: the engine gave none."


def test_the_best_is_the_one_of_the_highest_score_and_can_be_made_again_alone(studio: Running) -> None:
    body = {"prompt": "rain", "duration": 0.5, "seed": 20, "best_of": 3, "guidance_scale": 2.0}
    best = _made(studio, body)
    scores: dict[int, float] = {score["seed"]: score["likelihood"] for score in best["scores"]}
    seed = best["generation_params"]["seed"]
    assert list(scores) == [20, 21, 22]
    assert seed == max(scores, key=lambda each: scores[each])
    again = _made(studio, {**body, "seed": seed, "best_of": None})
    assert again["pcm_sha256"] == best["pcm_sha256"]
    assert (again["scores"], again["picked_by"]) == ([], None)


def test_a_refusal_names_the_limit(studio: Running) -> None:
    refused = studio.http.post("/generate", json={"prompt": "rain", "best_of": 17})
    assert refused.status_code == 400
    assert refused.json()["errors"] == [
        {"pointer": "/best_of", "detail": "best_of is 17; ask for 2 to 16, or leave it out."}
    ]


def _made(studio: Running, body: dict[str, Any]) -> dict[str, Any]:
    job_id = studio.http.post("/generate", json=body).json()["job_id"]
    eventually_sync(lambda: studio.http.get(f"/jobs/{job_id}").json()["status"] == "completed")
    (sample_id,) = studio.http.get(f"/jobs/{job_id}").json()["sample_ids"]
    sample: dict[str, Any] = studio.http.get(f"/audio/{sample_id}").json()
    return sample
