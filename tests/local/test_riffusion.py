"""Riffusion, tiny and random: its pictures are those of the pipeline, and of the prompts and seeds it goes between."""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from PIL import Image

from domain.events.jobs import Sampling
from tests import diffusion
from tests.local.engine import updates
from workers.engine import Clip, EngineError, Progress
from workers.engines.checkpoints import resolve
from workers.engines.diffusion import spectrograms
from workers.engines.diffusion.engine import DiffusionEngine
from workers.engines.diffusion.riffusion import _between
from workers.engines.diffusion.seed_images import seed_image

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS: Final = 0.5
SHORT: Final[dict[str, Any]] = {"num_inference_steps": 2, "seed_image_id": "mask_gradient_dark"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion.saved(diffusion.riffusion(), tmp_path_factory.mktemp("pipelines") / "riffusion")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return diffusion.pipeline(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> DiffusionEngine:
    return DiffusionEngine.load(resolve(str(folder)), "cpu")


def painted(engine: DiffusionEngine, *seeds: int, prompt: str = "slow dub", **parameters: Any) -> list[Any]:
    fields = {"prompt": prompt, "duration": SECONDS, "parameters": SHORT | parameters}
    return diffusion.sing(engine, diffusion.request(*seeds, **fields))


def sounded(picture: Any) -> Any:
    columns = round(SECONDS * 100) + 16
    made = spectrograms.sound(picture[:, :columns])[None, : round(SECONDS * spectrograms.RATE)]
    return diffusion.leveled(made)


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_takes_are_those_of_the_pipeline(engine: DiffusionEngine, pipeline: Any, guidance: float) -> None:
    fields = {"duration": SECONDS, "sampling": Sampling(guidance_scale=guidance), "parameters": SHORT}
    made = diffusion.sing(engine, diffusion.request(5, 6, **fields))
    start = Image.fromarray(seed_image("mask_gradient_dark").astype(np.uint8)).convert("RGB")
    for seed, pcm in zip((5, 6), made, strict=True):
        expected = pipeline(
            "slow dub",
            image=start,
            strength=0.75,
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        ).images[0]
        assert np.array_equal(pcm, sounded(255 * expected[:, :, 0]))
    assert np.abs(made[0] - made[1]).max() > 0.01


def test_at_both_ends_of_the_way_there_is_one_prompt_alone(engine: DiffusionEngine) -> None:
    """The second prompt has the next seed."""
    first, second = painted(engine, 5)[0], painted(engine, 6, prompt="a piano")[0]
    assert np.array_equal(painted(engine, 5, prompt_b="a piano", alpha=0)[0], first)
    assert np.array_equal(painted(engine, 5, prompt_b="a piano", alpha=1)[0], second)
    between = painted(engine, 5, prompt_b="a piano", alpha=0.5)[0]
    assert not np.array_equal(between, first)
    assert not np.array_equal(between, second)


@pytest.mark.parametrize(
    "parameters",
    [{"denoising": 1}, {"num_inference_steps": 3}, {"seed_image_id": "mask_top_third_75"}, {"prompt_b": "a piano"}],
)
def test_each_parameter_is_heard(engine: DiffusionEngine, parameters: dict[str, Any]) -> None:
    assert not np.array_equal(painted(engine, 5, **parameters)[0], painted(engine, 5)[0])


def test_without_denoising_the_picture_is_left_as_it_is(engine: DiffusionEngine) -> None:
    assert np.array_equal(painted(engine, 5, denoising=0)[0], sounded(seed_image("mask_gradient_dark")))


def test_a_clip_longer_than_a_picture_is_a_row_of_pictures(engine: DiffusionEngine) -> None:
    request = diffusion.request(5, duration=6.0, parameters=SHORT | {"num_inference_steps": 4})
    seen = list(updates(engine, request))
    shares = {update.fraction for update in seen if isinstance(update, Progress)}
    assert len(shares) == 1 + 2 * 3 + 1
    [clip] = [update for update in seen if isinstance(update, Clip)]
    assert (clip.sample_rate, clip.pcm.shape) == (44_100, (1, 6 * 44_100))


def test_noise_between_two_seeds_is_as_strong_as_theirs_and_resembles_both() -> None:
    """A sum of halves would be weaker by a third, and a pipeline would paint less from it."""
    dice = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 1, 4, 64, 64, generator=dice)
    for share in (0.25, 0.5, 0.75):
        mixed = _between(one, other, share)
        assert mixed.std().item() == pytest.approx(1, abs=0.02)
        likeness = (mixed * one).mean().item()
        assert likeness == pytest.approx(math.cos(share * math.pi / 2), abs=0.03)
    half = _between(one.half(), other.half(), 0.5)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), _between(one, other, 0.5), atol=0.01)


def test_a_picture_that_is_not_there_is_refused(engine: DiffusionEngine) -> None:
    with pytest.raises(EngineError, match=r"no picture 'moon' to start from; there are agile, .*, vibes."):
        engine.admit(diffusion.request(1, parameters={"seed_image_id": "moon"}))
    with pytest.raises(EngineError, match="<= 1"):
        engine.admit(diffusion.request(1, parameters={"alpha": 1.5}))


def test_a_studio_paints_music(folder: Path, tmp_path: Path) -> None:
    facts = diffusion.heard(folder, tmp_path, duration=1.3)
    assert facts == {"sample_rate": 44_100, "channels": 1, "frames": 57_330}
