"""The interface between a worker and a model, which may run in another process."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from domain.errors import Text2SongError
from domain.events.jobs import Sampling
from domain.models import Model


class Take(Struct, frozen=True):
    """One sample that a job still has to make."""

    index: int
    seed: int


class Adapter(Struct, frozen=True, kw_only=True):
    """A LoRA as PEFT writes it: `folder` holds adapter_model.safetensors and adapter_config.json, checked before.

    `sha256` tells adapters apart. `scale` 0 is the base model, 1 the adapter as it was trained.
    """

    sha256: str
    folder: str
    scale: float = 1.0


class Opening(Struct, frozen=True, eq=False):
    """Audio that each take begins with: the last `kept` samples of `pcm`, float32 `[channels, samples]` at the model's
    rate. What lies before them is heard as well, but not kept. It ends as a master does, which may be faded out.
    """

    pcm: NDArray[np.float32]
    kept: int


class EngineRequest(Struct, frozen=True, kw_only=True):
    """`id` is unique among an engine's requests; `duration` is in seconds, with the opening.

    Where it `is_judged`, its clips say how likely they are, and how much they are to the adapter's taste.
    `melody` has the strongest tone of each moment, as `chroma.tones` finds them; empty is none.
    `parameters` are those that the model's family has beside the sampling.
    """

    id: str
    prompt: str
    duration: float
    takes: list[Take]
    sampling: Sampling = Sampling()
    adapter: Adapter | None = None
    opening: Opening | None = None
    melody: tuple[int, ...] = ()
    is_judged: bool = False
    parameters: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    lyrics: str | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """`fraction` is of the whole request, 0 to 1; `eta_seconds` is None until it can be estimated."""

    request_id: str
    fraction: float
    stage: str
    eta_seconds: float | None = None


class Clip(Struct, frozen=True, kw_only=True):
    """A finished take: `pcm` is float32 `[channels, samples]` within ±1.

    `likelihood` is by how many nats a code the prompt makes it likelier, on average; `preference` are its log-odds to
    be preferred, by the adapter's preference model. Both mean something beside other takes of the same request.
    """

    request_id: str
    index: int
    seed: int
    sample_rate: int
    pcm: NDArray[np.float32]
    likelihood: float | None = None
    preference: float | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """The request ended without all of its clips. `transient` says that the request need not be the cause."""

    request_id: str
    error: str
    transient: bool


Update: TypeAlias = Progress | Clip | Failure


class EngineError(Text2SongError):
    """Generation failed, or the model cannot be loaded. The message is shown to the user.

    `transient` says that the request need not be the cause: the next try may go well, or none may.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Engine(Protocol):
    """A loaded model. No method blocks for longer than about 25 decoding steps."""

    @property
    def model(self) -> Model: ...

    @property
    def device(self) -> str: ...

    @property
    def capacity(self) -> int:
        """The number of takes that it can make at once; further ones wait for the first to end."""

    def admit(self, request: EngineRequest) -> None:
        """Starts a request. Raises EngineError if the model cannot carry it out."""

    def advance(self) -> Sequence[Update]:
        """Continues the admitted requests. A request ends when its last clip or a failure is returned.

        Raises only if the engine has become unusable: its process must end.
        """

    def cancel(self, request_id: str) -> None:
        """Drops the request, and ignores unknown ids."""
