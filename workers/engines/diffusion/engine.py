"""Pipelines of diffusers behind the interface of the engines: one take at a time, each by its own seed."""

import time
import warnings
from collections import deque
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, Self

import numpy as np
import torch
from msgspec import Struct

from domain.models import Model
from workers.engine import Clip, EngineError, EngineRequest, Failure, Progress, Take, Update
from workers.engines.checkpoints import Checkpoint
from workers.engines.diffusion.adapters import Adapters
from workers.engines.diffusion.calls import Call, Sound, Tell
from workers.engines.diffusion.recipe import Recipe
from workers.engines.diffusion.weights import read
from workers.engines.faults import NOT_FINITE, failed, unloadable, usable
from workers.engines.pipelines import DENOISERS

RECIPES: Final = {
    "stable-audio": ("stable_audio", "StableAudioOpen"),
    "stable-audio-3": ("stable_audio", "StableAudio3"),
    "ace-step": ("ace_step", "AceStep"),
    "riffusion": ("riffusion", "Riffusion"),
}
DENOISING_SHARE: Final = 0.95
# On a CPU a step can take minutes, and a silent engine is taken for one that hangs; a GPU that is silent does hang.
BEAT_SECONDS: Final = 2.0
# In seconds, what a codec may lose at the end of a clip; silence takes its place.
TOLERANCE: Final = 0.01
# What libraries say of each other, and torchsde of its own roundings.
IGNORED: Final = ("Should have t[ab]", ".torch.nn.utils.weight_norm. is deprecated")


class ActiveRequest(Struct, eq=False):
    """`share` is how much of the take that is being made is denoised; `started` is on the monotonic clock."""

    request: EngineRequest
    takes: deque[Take]
    share: float = 0.0
    started: float | None = None

    def progress(self, stage: str) -> Progress:
        of_all = len(self.request.takes)
        fraction = (of_all - len(self.takes) + DENOISING_SHARE * self.share) / of_all
        eta = None
        if fraction and self.started is not None:
            eta = (time.monotonic() - self.started) * (1 - fraction) / fraction
        return Progress(request_id=self.request.id, fraction=fraction, stage=stage, eta_seconds=eta)

    @property
    def stage(self) -> str:
        if not self.share:
            return "encoding"
        return "denoising" if self.share < 1 else "rendering"


class DiffusionEngine:
    """Requests are carried out in the order in which they come. Each `advance` waits for one step of the denoising."""

    capacity: Final = 1

    def __init__(self, pipeline: Any, model: Model, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._recipe = _recipe(model.family)(pipeline.to(device), model)
        self._adapters = Adapters(getattr(pipeline, DENOISERS[model.family]))
        self._beat = None if device.type == "cuda" else BEAT_SECONDS
        self._active: dict[str, ActiveRequest] = {}
        self._call: Call | None = None
        self._leaving: Call | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | None = None) -> Self:
        """As MusicgenEngine's."""
        place = usable(device)
        for said in IGNORED:
            warnings.filterwarnings("ignore", said)
        model, folder = checkpoint.model, checkpoint.folder
        if folder is None:
            raise EngineError(f"Model {model.id} has no folder.")
        # With a damaged file the libraries can raise any exception.
        try:
            pipeline = read(folder, model.family, _precision(_recipe(model.family), place))
            return cls(pipeline, model, place)
        except Exception as error:
            raise unloadable(model, place, error) from error

    @property
    def device(self) -> str:
        return str(self._device)

    def admit(self, request: EngineRequest) -> None:
        model = self.model
        if request.id in self._active:
            raise EngineError(f"Request {request.id} is already running.")
        if not request.takes:
            raise EngineError("The request has no takes.")
        if not 0 < request.duration <= model.max_extended_duration:
            raise EngineError(
                f"The duration is {request.duration:g} s; {model.id} makes clips of up to "
                f"{model.max_extended_duration:g} s. Ask for a shorter clip."
            )
        if request.opening is not None:
            raise EngineError(f"{model.id} cannot continue other audio. Ask for a clip from its beginning.")
        if request.melody:
            raise EngineError(f"{model.id} follows no melody. Ask one of MusicGen's melody models.")
        if request.is_judged:
            raise EngineError(f"{model.id} cannot tell how likely a clip is, so that it picks no best of several.")
        if request.lyrics and "lyrics" not in model.capabilities:
            raise EngineError(f"{model.id} sings no lyrics. Leave them out, or choose a model of ACE-Step.")
        self._recipe.check(request)
        self._active[request.id] = ActiveRequest(request, deque(request.takes))

    def cancel(self, request_id: str) -> None:
        if request_id not in self._active:
            return
        if self._call is not None and request_id == next(iter(self._active)):
            self._call.drop()
            self._call, self._leaving = None, self._call
        del self._active[request_id]

    def advance(self) -> Sequence[Update]:
        """Raises only torch.AcceleratorError: the device is then unusable, and the process must end."""
        active = next(iter(self._active.values()), None)
        if active is None:
            return []
        if self._call is None:
            return self._begin(active)
        match self._call.news(self._beat):
            case None:
                return [active.progress(active.stage)]
            case float(share):
                active.share = share
                return [active.progress(active.stage)]
            case torch.AcceleratorError() as error:
                raise error
            case Exception() as error:
                return [self._fail(active, error)]
            case sound:
                return self._finish(active, sound)

    def _begin(self, active: ActiveRequest) -> Sequence[Update]:
        """A call that was dropped may be at a step yet, and has the device until that is done."""
        if self._leaving is not None:
            if not self._leaving.has_ended(self._beat):
                return [active.progress("waiting")]
            self._leaving = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        active.share = 0.0
        active.started = active.started or time.monotonic()
        self._call = Call(partial(self._make, active.request, active.takes[0]))
        return [active.progress("encoding")]

    def _make(self, request: EngineRequest, take: Take, tell: Tell) -> Sound:
        self._adapters.use(request.adapter)
        return self._sound(self._recipe.make(request, take.seed, tell), request.duration)

    def _sound(self, made: Sound, duration: float) -> Sound:
        """Of exactly the duration, and within full scale. Raises EngineError for numbers that are not finite."""
        samples = round(duration * self.model.sample_rate)
        if not np.isfinite(made).all():
            raise EngineError(NOT_FINITE, transient=True)
        made = made[:, :samples]
        if (missing := samples - made.shape[1]) > TOLERANCE * self.model.sample_rate:
            raise EngineError(f"The model made {made.shape[1] / self.model.sample_rate:g} s of {duration:g} s.")
        made = np.pad(made, ((0, 0), (0, missing)))
        return np.ascontiguousarray(made / max(1.0, np.abs(made).max()), dtype=np.float32)

    def _finish(self, active: ActiveRequest, sound: Sound) -> Sequence[Update]:
        take = active.takes.popleft()
        self._call, active.share = None, 0.0
        if not active.takes:
            del self._active[active.request.id]
        clip = Clip(
            request_id=active.request.id,
            index=take.index,
            seed=take.seed,
            sample_rate=self.model.sample_rate,
            pcm=sound,
        )
        return [active.progress("rendering"), clip]

    def _fail(self, active: ActiveRequest, error: Exception) -> Failure:
        self._call = None
        del self._active[active.request.id]
        return failed(active.request, self.device, error)


def _recipe(family: str) -> type[Recipe]:
    """Only the family that is asked for is imported."""
    module, name = RECIPES[family]
    recipe: type[Recipe] = getattr(import_module(f"workers.engines.diffusion.{module}"), name)
    return recipe


def _precision(recipe: type[Recipe], place: torch.device) -> torch.dtype:
    if place.type != "cuda":
        return torch.float32
    if recipe.half == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return recipe.half
