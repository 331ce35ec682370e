"""Riffusion: a Stable Diffusion that paints spectrograms over a picture to start from."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Final

import msgspec
import numpy as np
import torch
from msgspec import Struct

from domain.models import Model
from workers.engine import EngineError, EngineRequest
from workers.engines.diffusion.calls import Sound, Tell
from workers.engines.diffusion.recipe import Steps, generator, parameters
from workers.engines.diffusion.seed_images import COLUMNS, DEFAULT, PICTURES, SECONDS, seed_image
from workers.engines.diffusion.spectrograms import HOP, RATE, Picture, sound

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
# From one picture to the next, the part of the way to the next seed's noise.
STRIDE: Final = 0.25
# In columns, what is painted beyond the end, so that the sound does not end where the picture does.
MARGIN: Final = 16


class RiffusionParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """`alpha` is the way from the prompt to `prompt_b`, if there is one; `denoising` how much of the picture is new."""

    prompt_b: str = ""
    alpha: Share = 0.5
    denoising: Share = 0.75
    num_inference_steps: Steps = 50
    seed_image_id: str = DEFAULT


class Riffusion:
    """A picture is 5.12 s. Longer clips are rows of pictures over the same one, which are sounded as one: their noises
    lie on a way through those of the seed, the next seed and so on, so that each picture resembles the one before.
    """

    half: ClassVar[torch.dtype] = torch.float16

    def __init__(self, pipeline: Any, model: Model) -> None:
        self._pipeline: Final = pipeline
        self._model: Final = model

    def check(self, request: EngineRequest) -> None:
        asked = parameters(request, self._model, RiffusionParameters)
        if asked.seed_image_id not in PICTURES:
            raise EngineError(
                f"There is no picture {asked.seed_image_id!r} to start from; there are {', '.join(PICTURES)}."
            )

    def make(self, request: EngineRequest, seed: int, tell: Tell) -> Sound:
        asked = parameters(request, self._model, RiffusionParameters)
        guidance = request.sampling.guidance_scale
        words = self._words(request.prompt, asked, guidance > 1)
        pictures = math.ceil(request.duration / SECONDS)
        painted = []
        for number in range(pictures):
            # The pipeline would take the noise of one seed.
            self._pipeline.prepare_latents = self._mixed(seed, _way(asked) + STRIDE * number)
            steps = partial(_told, tell, number, pictures)
            painted.append(self._painted(asked, steps, guidance_scale=guidance, **words))
        columns = math.ceil(request.duration * RATE / HOP) + MARGIN
        strip = np.concatenate(painted, axis=1)[:, :columns]
        return sound(strip, self._pipeline.device, partial(tell, 1.0))[None]

    def _words(self, prompt: str, asked: RiffusionParameters, guided: bool) -> dict[str, Any]:
        """The embedding on the way from one prompt to the other."""
        encode, device = self._pipeline.encode_prompt, self._pipeline.device
        with torch.no_grad():
            one, without = encode(prompt, device, 1, guided)
            other, _ = encode(asked.prompt_b or prompt, device, 1, guided)
        return {"prompt_embeds": torch.lerp(one, other, _way(asked)), "negative_prompt_embeds": without}

    def _painted(self, asked: RiffusionParameters, steps: Callable[..., Any], **options: Any) -> Picture:
        start = seed_image(asked.seed_image_id)
        if int(asked.num_inference_steps * asked.denoising) == 0:
            return start
        made = self._pipeline(
            image=np.repeat(start[None, :, :, None] / 255, 3, axis=3),
            strength=asked.denoising,
            num_inference_steps=asked.num_inference_steps,
            callback_on_step_end=steps,
            output_type="np",
            **options,
        )
        painted: Picture = 255 * made.images[0, :, :COLUMNS, 0]
        return painted

    def _mixed(self, seed: int, place: float) -> Callable[..., torch.Tensor]:
        """Starts from a picture under the noises of two neighbouring seeds, `place` seeds after the first."""

        def latents(image: Any, time: Any, _batch: int, _each: int, dtype: Any, device: Any, *_: Any) -> torch.Tensor:
            codec = self._pipeline.vae
            seen = codec.encode(image.to(device, dtype)).latent_dist
            pair = [generator(seed + math.floor(place) + further) for further in (0, 1)]

            def noise() -> torch.Tensor:
                one, other = (torch.randn(seen.mean.shape, generator=dice, dtype=dtype) for dice in pair)
                return _between(one, other, place % 1).to(device)

            start = codec.config.scaling_factor * (seen.mean + seen.std * noise())
            mixed: torch.Tensor = self._pipeline.scheduler.add_noise(start, noise(), time)
            return mixed

        return latents


def _told(
    tell: Tell, number: int, pictures: int, pipeline: Any, index: int, _time: Any, _tensors: Any
) -> dict[str, Any]:
    tell((number + (index + 1) / pipeline.num_timesteps) / pictures)
    return {}


def _way(asked: RiffusionParameters) -> float:
    return asked.alpha if asked.prompt_b else 0.0


def _between(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """On the great circle, as a straight way would lead through weaker noise."""
    if not share:
        return one
    start, end = one.float(), other.float()
    angle = torch.arccos((start * end).sum() / (start.norm() * end.norm()))
    mixed = (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)
    return mixed.to(one.dtype)
