import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from domain.events.jobs import Sampling
from domain.models import NOISE
from tests.local.engine import updates
from workers.engine import Clip, EngineError, EngineRequest, Failure, Progress, Take
from workers.engines import noise
from workers.engines.checkpoints import Checkpoint, resolve
from workers.engines.musicgen.engine import MusicgenEngine

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PROMPT = "slow dub techno with a warm bass"


@pytest.fixture(scope="module")
def loaded() -> MusicgenEngine:
    return MusicgenEngine.load(resolve(NOISE.id), "cpu")


@pytest.fixture
def engine(loaded: MusicgenEngine) -> Iterator[MusicgenEngine]:
    yield loaded
    loaded.cancel("r")


def request(*seeds: int, duration: float = 1.0, prompt: str = PROMPT, **sampling: Any) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds)]
    return EngineRequest(id="r", prompt=prompt, duration=duration, takes=takes, sampling=Sampling(**sampling))


def sing(engine: MusicgenEngine, request: EngineRequest) -> list[NDArray[np.float32]]:
    return [update.pcm for update in updates(engine, request) if isinstance(update, Clip)]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_greedy_audio_is_that_of_transformers_generate(channels: int, guidance_scale: float) -> None:
    """One other token would differ by far more; 6 s are more than one rendering chunk."""
    (pcm,) = sing(
        MusicgenEngine(*noise.build(channels=channels), NOISE, CPU),
        request(1, duration=6.0, temperature=0.0, guidance_scale=guidance_scale),
    )
    model: Any
    model, tokenizer = noise.build(channels=channels)
    encoded = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**encoded, do_sample=False, guidance_scale=guidance_scale, max_new_tokens=300 + 3)
    assert pcm.shape == (channels, 6 * 32000)
    assert np.abs(pcm - expected[0].numpy()).max() < 1e-5


def test_the_same_request_gives_the_same_audio_and_another_seed_another(engine: MusicgenEngine) -> None:
    first, second = sing(engine, request(5, 6))
    again, alone = sing(engine, request(5)), sing(engine, request(6))
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, alone[0])
    assert np.abs(first - second).max() > 0.05


def test_the_prompt_is_heard(engine: MusicgenEngine) -> None:
    assert not np.array_equal(sing(engine, request(5)), sing(engine, request(5, prompt="a piano")))


def test_a_prompt_longer_than_the_text_encoder_reads_is_cut(engine: MusicgenEngine) -> None:
    assert np.array_equal(
        sing(engine, request(5, duration=0.5, prompt="a" * 4000)),
        sing(engine, request(5, duration=0.5, prompt="a" * 4001)),
    )


@pytest.mark.parametrize("duration", [0.5, 0.517, 1.00003, 1.2345])
def test_a_clip_has_exactly_the_length_that_was_asked_for(engine: MusicgenEngine, duration: float) -> None:
    (pcm,) = sing(engine, request(5, duration=duration))
    assert pcm.shape == (1, round(duration * 32000))
    assert pcm.dtype == np.float32


def test_the_noise_is_plainly_audible_and_within_full_scale(engine: MusicgenEngine) -> None:
    (pcm,) = sing(engine, request(5, duration=3.0))
    loudness = [np.sqrt(np.mean(part**2)) for part in np.split(pcm, 6, axis=1)]
    assert min(loudness) > 0.03
    assert np.abs(pcm).max() <= 1


def test_progress_is_over_all_takes_and_only_goes_forward(engine: MusicgenEngine) -> None:
    seen = list(updates(engine, request(5, 6)))
    fractions = [update.fraction for update in seen if isinstance(update, Progress)]
    assert [update.index for update in seen if isinstance(update, Clip)] == [0, 1]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    stages = {update.stage: update for update in seen if isinstance(update, Progress)}
    assert list(stages) == ["encoding", "decoding", "rendering"]
    assert stages["decoding"].eta_seconds is not None


def test_a_decoder_in_half_precision_sings_as_loudly() -> None:
    network: Any
    network, tokenizer = noise.build()
    network.decoder.to(torch.bfloat16)
    (pcm,) = sing(MusicgenEngine(network, tokenizer, NOISE, CPU), request(5))
    assert np.sqrt(np.mean(pcm**2)) > 0.03


def test_a_cancelled_request_leaves_no_trace(engine: MusicgenEngine) -> None:
    (undisturbed,) = sing(engine, request(5))
    engine.admit(request(9, duration=30.0))
    for _ in range(4):
        engine.advance()
    engine.cancel("another")
    assert isinstance(engine.advance()[0], Progress)
    engine.cancel("r")
    assert engine.advance() == []
    assert np.array_equal(sing(engine, request(5)), [undisturbed])


def test_what_the_model_cannot_do_is_refused_at_once(engine: MusicgenEngine) -> None:
    with pytest.raises(EngineError, match=r"The duration is 301 s; text2song/wiring-noise makes clips of up to 300 s."):
        engine.admit(request(1, duration=301.0))
    with pytest.raises(EngineError, match="no takes"):
        engine.admit(request())
    engine.admit(request(1))
    with pytest.raises(EngineError, match="already running"):
        engine.admit(request(2))


def test_building_gives_the_same_weights_and_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    one, other = noise.build()[0].state_dict(), noise.build()[0].state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], weight) for name, weight in noise.build(seed=1)[0].state_dict().items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in noise.build():
        part.save_pretrained(folder)
    return folder


def test_a_saved_model_sings_like_the_one_it_was_saved_from(engine: MusicgenEngine, saved: Path) -> None:
    checkpoint = resolve(str(saved))
    assert (checkpoint.model.sample_rate, checkpoint.model.max_duration) == (32000, 30.0)
    assert np.array_equal(sing(MusicgenEngine.load(checkpoint, "cpu"), request(5)), sing(engine, request(5)))


def test_damaged_weights_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(EngineError, match=rf"Model local/{tmp_path.name}@[0-9a-f]{{12}} cannot be loaded: "):
        MusicgenEngine.load(resolve(str(tmp_path)), "cpu")


def test_weights_that_lack_a_part_of_the_decoder_are_refused(tmp_path: Path) -> None:
    network, tokenizer = noise.build()
    state = network.state_dict()
    del state["decoder.lm_heads.3.weight"]
    network.save_pretrained(tmp_path, state_dict=state)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"its weights lack decoder.lm_heads.3.weight"):
        MusicgenEngine.load(resolve(str(tmp_path)), "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "banana"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(EngineError, match=f"Device {device} cannot be used"):
        MusicgenEngine.load(Checkpoint(model=NOISE), device)


@pytest.mark.parametrize("part", ["decoder.lm_heads.0.weight", "audio_encoder.decoder.layers.0.conv.bias"])
def test_numbers_that_are_not_finite_are_no_fault_of_the_request(part: str) -> None:
    network, tokenizer = noise.build()
    network.get_parameter(part).data.fill_(torch.nan)
    *_, last = updates(MusicgenEngine(network, tokenizer, NOISE, CPU), request(1))
    assert isinstance(last, Failure)
    assert "not finite" in last.error
    assert last.transient


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cpu ran out of memory on a clip of 1 s"),
        (ZeroDivisionError("by zero"), "Generation failed: by zero"),
    ],
)
def test_a_step_that_fails_ends_the_request_and_frees_the_engine(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = noise.build()
    engine = MusicgenEngine(network, tokenizer, NOISE, CPU)

    def fail(_: int) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine._decoder, "run", fail)
        patched.setattr(engine, "_rows", 1)
        *_, last = updates(engine, request(1))
    assert isinstance(last, Failure)
    assert last.transient
    assert said in last.error
    assert len(sing(engine, request(1))) == 1


def test_five_seconds_take_a_few(engine: MusicgenEngine) -> None:
    """A bound against accidents such as decoding without a cache, not a measure of speed."""
    started = time.monotonic()
    sing(engine, request(5, duration=5.0))
    assert time.monotonic() - started < 30
