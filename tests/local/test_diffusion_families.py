"""Each family of diffusion models, tiny and random: its takes are those that its pipeline makes on its own."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from domain.events.jobs import Sampling
from domain.models import NOISE
from tests import diffusion
from tests.local.engine import updates
from workers.engine import EngineError, Failure
from workers.engines import pipelines
from workers.engines.checkpoints import resolve
from workers.engines.diffusion.engine import DiffusionEngine
from workers.engines.diffusion.weights import read

pytestmark = pytest.mark.usefixtures("one_thread")

LYRICS: Final = "[verse]\nRain on the roof"
METRE: Final = {"bpm": 92, "key": "D minor", "timesignature": "3", "vocal_language": "de"}


class Loaded:
    """A pipeline, and an engine that has read it from its folder."""

    def __init__(self, made: Any, folder: Path) -> None:
        self.folder = diffusion.saved(made, folder)
        self.pipeline = diffusion.pipeline(self.folder)
        self.engine = DiffusionEngine.load(resolve(str(folder)), "cpu")

    def takes(self, *seeds: int, **fields: Any) -> list[Any]:
        return diffusion.sing(self.engine, diffusion.request(*seeds, **fields))

    def alone(self, seed: int, **options: Any) -> Any:
        """What the pipeline makes, called as its documentation says."""
        made = self.pipeline("slow dub", generator=torch.Generator("cpu").manual_seed(seed), **options)
        return diffusion.leveled(made.audios[0].numpy())


@pytest.fixture(scope="module")
def ace(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(diffusion.ace_step(), tmp_path_factory.mktemp("pipelines") / "ace")


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(diffusion.stable_audio_3(), tmp_path_factory.mktemp("pipelines") / "third")


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_takes_of_ace_step_are_those_of_its_pipeline(ace: Loaded, guidance: float) -> None:
    made = ace.takes(
        5,
        6,
        duration=1.3,
        lyrics=LYRICS,
        sampling=Sampling(guidance_scale=guidance),
        parameters=METRE | {"num_inference_steps": 3, "shift": 2.0},
    )
    for seed, pcm in zip((5, 6), made, strict=True):
        expected = ace.alone(
            seed,
            audio_duration=1.3,
            lyrics=LYRICS,
            guidance_scale=guidance,
            num_inference_steps=3,
            shift=2.0,
            bpm=92,
            keyscale="D minor",
            timesignature="3",
            vocal_language="de",
        )
        assert np.array_equal(pcm, expected)
    assert np.abs(made[0] - made[1]).max() > 0.01


def test_ace_step_without_parameters_is_the_pipeline_without_arguments(ace: Loaded) -> None:
    (pcm,) = ace.takes(5, sampling=Sampling(guidance_scale=7.0))
    assert np.array_equal(pcm, ace.alone(5, audio_duration=1.0))


@pytest.mark.parametrize(
    "fields", [{"lyrics": LYRICS}, *({"parameters": {name: value}} for name, value in METRE.items())]
)
def test_everything_that_ace_step_is_told_is_heard(ace: Loaded, fields: dict[str, Any]) -> None:
    assert not np.array_equal(ace.takes(5, **fields), ace.takes(5))


def test_what_ace_step_would_cut_off_is_refused(ace: Loaded) -> None:
    for fields, said in (
        ({"prompt": "a" * 200}, "reads 256 tokens .* the prompt would take .* Shorten the prompt."),
        ({"lyrics": "la " * 700}, "reads 2048 tokens .* the lyrics would take .* Shorten the lyrics."),
        ({"parameters": {"bpm": 301}}, "<= 300"),
        ({"parameters": {"shift": 0}}, "> 0.0"),
        ({"duration": 601}, "up to 600 s"),
    ):
        with pytest.raises(EngineError, match=said):
            ace.engine.admit(diffusion.request(1, **fields))


def test_a_long_clip_of_ace_step_is_decoded_in_tiles(ace: Loaded) -> None:
    """More than the 512 frames of one tile."""
    (pcm,) = ace.takes(5, duration=12.0, parameters={"num_inference_steps": 1})
    assert pcm.shape == (2, 48000)
    assert np.abs(pcm).max(axis=1).min() > 0.1


@pytest.mark.parametrize("duration", [0.5, 0.517, 1.00003, 2.9999])
@pytest.mark.parametrize("family", ["ace", "third"])
def test_a_clip_has_exactly_the_length_that_was_asked_for(
    family: str, duration: float, request: pytest.FixtureRequest
) -> None:
    loaded: Loaded = request.getfixturevalue(family)
    (pcm,) = loaded.takes(5, duration=duration, parameters={"num_inference_steps": 1})
    assert pcm.shape == (2, round(duration * diffusion.RATE))
    assert pcm.any()


@pytest.mark.parametrize(("guidance", "without"), [(1.0, ""), (4.0, "drums"), (4.0, "")])
def test_takes_of_stable_audio_3_are_those_of_its_pipeline(third: Loaded, guidance: float, without: str) -> None:
    made = third.takes(
        5,
        6,
        duration=1.3,
        sampling=Sampling(guidance_scale=guidance),
        parameters={"num_inference_steps": 3, "negative_prompt": without},
    )
    for seed, pcm in zip((5, 6), made, strict=True):
        expected = third.alone(
            seed,
            duration=1.3,
            num_inference_steps=3,
            guidance_scale=guidance,
            negative_prompt=without or None,
        )
        assert np.array_equal(pcm, expected)
    assert np.abs(made[0] - made[1]).max() > 0.01


def test_stable_audio_3_takes_the_steps_that_it_was_made_for(third: Loaded) -> None:
    (pcm,) = third.takes(5, sampling=Sampling(guidance_scale=1.0))
    assert np.array_equal(pcm, third.alone(5, duration=1.0))
    assert not np.array_equal(pcm, third.alone(5, duration=1.0, num_inference_steps=7))


HALVES: Final = {"ace_step": torch.bfloat16, "stable_audio": torch.float16, "stable_audio_3": torch.float16}


@pytest.mark.parametrize("name", HALVES)
def test_in_half_precision_it_sounds_much_the_same(name: str, tmp_path: Path) -> None:
    """As on a GPU."""
    folder = diffusion.saved(getattr(diffusion, name)(), tmp_path / name)
    model, request = resolve(str(folder)).model, diffusion.request(5, parameters={"num_inference_steps": 2})
    made = []
    for precision in (torch.float32, HALVES[name]):
        pipeline = read(folder, model.family, precision)
        assert {part.dtype for part in networks(pipeline, model.family)} == {precision}
        made.append(diffusion.sing(DiffusionEngine(pipeline, model, torch.device("cpu")), request)[0])
    assert np.corrcoef(made[0].ravel(), made[1].ravel())[0, 1] > 0.9
    assert not np.array_equal(*made)


def networks(pipeline: Any, family: str) -> list[Any]:
    return [pipeline.components[part] for part in pipelines.NETWORKS[family]]


@pytest.mark.parametrize("name", ["ace_step", "stable_audio_3", "riffusion"])
def test_numbers_that_are_not_finite_never_become_sound(name: str) -> None:
    """Some pipelines bring what they made to a level, or into the range of a picture."""
    pipeline = getattr(diffusion, name)()
    [*_, last] = pipeline.vae.decoder.parameters()
    last.data.fill_(torch.nan)
    model = replace(NOISE, family=name.replace("_", "-"))
    engine = DiffusionEngine(pipeline, model, torch.device("cpu"))
    request = diffusion.request(5, duration=0.5, parameters={"num_inference_steps": 2})
    *_, update = updates(engine, request)
    assert isinstance(update, Failure)
    assert ("not finite" in update.error, update.transient) == (True, True)


def test_a_turbo_model_has_its_guidance_in_its_weights(ace: Loaded, tmp_path: Path) -> None:
    folder = shutil.copytree(ace.folder, tmp_path / "turbo")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"is_turbo": True}))
    assert resolve(str(ace.folder)).model.guidance_scale == 7
    assert resolve(str(folder)).model.guidance_scale is None


def test_a_studio_sings_with_ace_step(ace: Loaded, tmp_path: Path) -> None:
    facts = diffusion.heard(ace.folder, tmp_path, duration=10, lyrics="[verse]\nrain", parameters={"bpm": 90})
    assert facts == {"sample_rate": 4000, "channels": 2, "frames": 40000}


def test_a_studio_makes_music_with_stable_audio_3(third: Loaded, tmp_path: Path) -> None:
    facts = diffusion.heard(third.folder, tmp_path, duration=1.3)
    assert facts == {"sample_rate": 4000, "channels": 2, "frames": 5200}
