"""ACE-Step 1.5, which sings."""

import copy
from typing import Annotated, Any, ClassVar, Final

import msgspec
import torch
from msgspec import Struct

from domain.models import Model
from workers.engine import EngineError, EngineRequest
from workers.engines.diffusion.calls import Sound, Tell
from workers.engines.diffusion.recipe import Steps, generator, parameters

# The pipeline cuts off what is longer, in tokens: of the prompt that is the tempo and the key, which follow it.
PROMPT_TOKENS: Final = 256
LYRIC_TOKENS: Final = 2048


class AceStepParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """`bpm` 0 and empty texts leave it to the model."""

    bpm: Annotated[int, msgspec.Meta(ge=0, le=300)] = 0
    key: str = ""
    timesignature: str = ""
    vocal_language: str = "en"
    num_inference_steps: Steps = 8
    shift: Annotated[float, msgspec.Meta(gt=0)] = 3.0


class AceStep:
    half: ClassVar[torch.dtype] = torch.bfloat16

    def __init__(self, pipeline: Any, model: Model) -> None:
        self._pipeline: Final = pipeline
        self._model: Final = model
        # A request is checked while the pipeline reads another one, and a tokenizer serves one thread at a time.
        self._tokenizer: Final = copy.deepcopy(pipeline.tokenizer)
        # Ten minutes at once would not fit into the memory of a GPU.
        pipeline.vae.enable_tiling()

    def check(self, request: EngineRequest) -> None:
        asked = parameters(request, self._model, AceStepParameters)
        read = self._pipeline._format_prompt(  # noqa: SLF001 -- what the pipeline reads, with what it adds
            request.prompt,
            request.lyrics or "",
            asked.vocal_language or "en",
            request.duration,
            bpm=asked.bpm or None,
            keyscale=asked.key,
            timesignature=asked.timesignature,
        )
        for what, text, most in zip(("prompt", "lyrics"), read, (PROMPT_TOKENS, LYRIC_TOKENS), strict=True):
            if (tokens := len(self._tokenizer(text).input_ids)) > most:
                raise EngineError(
                    f"{self._model.id} reads {most} tokens of a text at most, and the {what} would take {tokens}, "
                    f"with what is added to them. Shorten the {what}."
                )

    def make(self, request: EngineRequest, seed: int, tell: Tell) -> Sound:
        asked = parameters(request, self._model, AceStepParameters)

        def step(_pipeline: Any, index: int, _time: Any, _tensors: Any) -> dict[str, Any]:
            tell((index + 1) / asked.num_inference_steps)
            return {}

        made = self._pipeline(
            request.prompt,
            lyrics=request.lyrics or "",
            audio_duration=request.duration,
            vocal_language=asked.vocal_language or "en",
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=request.sampling.guidance_scale,
            shift=asked.shift,
            generator=generator(seed),
            bpm=asked.bpm or None,
            keyscale=asked.key or None,
            timesignature=asked.timesignature or None,
            callback_on_step_end=step,
            output_type="np",
        )
        sound: Sound = made.audios[0]
        return sound
