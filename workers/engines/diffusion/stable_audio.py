"""Stable Audio Open and Stable Audio 3."""

from typing import Annotated, Any, ClassVar, Final

import msgspec
import torch
from msgspec import Struct

from domain.models import Model
from workers.engine import EngineRequest
from workers.engines.diffusion.calls import Sound, Tell
from workers.engines.diffusion.recipe import Steps, generator, parameters, whole


class OpenParameters(Struct, frozen=True, forbid_unknown_fields=True):
    num_inference_steps: Steps = 100
    negative_prompt: str = ""


class StableAudioOpen:
    """It makes its longest clip each time, and cuts off what was not asked for."""

    half: ClassVar[torch.dtype] = torch.float16

    def __init__(self, pipeline: Any, model: Model) -> None:
        self._pipeline: Final = pipeline
        self._model: Final = model

    def check(self, request: EngineRequest) -> None:
        parameters(request, self._model, OpenParameters)

    def make(self, request: EngineRequest, seed: int, tell: Tell) -> Sound:
        asked = parameters(request, self._model, OpenParameters)

        def step(index: int, _time: Any, _latents: Any) -> None:
            tell((index + 1) / asked.num_inference_steps)

        made = self._pipeline(
            request.prompt,
            audio_end_in_s=whole(request.duration, self._model.sample_rate),
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=request.sampling.guidance_scale,
            negative_prompt=asked.negative_prompt or None,
            generator=generator(seed),
            callback=step,
            output_type="np",
        )
        sound: Sound = made.audios[0]
        return sound


class Parameters3(Struct, frozen=True, forbid_unknown_fields=True):
    """As many steps as the model was made for, where `num_inference_steps` is 0."""

    num_inference_steps: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    negative_prompt: str = ""


class StableAudio3:
    half: ClassVar[torch.dtype] = torch.float16

    def __init__(self, pipeline: Any, model: Model) -> None:
        self._pipeline: Final = pipeline
        self._model: Final = model

    def check(self, request: EngineRequest) -> None:
        parameters(request, self._model, Parameters3)

    def make(self, request: EngineRequest, seed: int, tell: Tell) -> Sound:
        asked = parameters(request, self._model, Parameters3)

        def step(pipeline: Any, index: int, _time: Any, _tensors: Any) -> dict[str, Any]:
            tell((index + 1) / pipeline.num_timesteps)
            return {}

        made = self._pipeline(
            request.prompt,
            duration=whole(request.duration, self._model.sample_rate),
            num_inference_steps=asked.num_inference_steps or None,
            guidance_scale=request.sampling.guidance_scale,
            negative_prompt=asked.negative_prompt or None,
            generator=generator(seed),
            callback_on_step_end=step,
            output_type="np",
        )
        sound: Sound = made.audios[0]
        return sound
