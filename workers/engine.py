"""What a worker asks of a model, whichever process it runs in."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from domain.errors import Text2SongError
from domain.events import Sampling
from domain.models import Model


class Take(Struct, frozen=True):
    """One sample of a job that is still to be made."""

    index: int
    seed: int


class EngineRequest(Struct, frozen=True, kw_only=True):
    """`id` is unique among the requests an engine holds; `duration` is in seconds."""

    id: str
    prompt: str
    duration: float
    takes: list[Take]
    sampling: Sampling = Sampling()


class Progress(Struct, frozen=True, kw_only=True):
    """`fraction` is of the whole request, 0 to 1; `eta_seconds` is None until it can be told."""

    request_id: str
    fraction: float
    stage: str
    eta_seconds: float | None = None


class Clip(Struct, frozen=True, kw_only=True):
    """A finished take: `pcm` is float32 `[channels, samples]` within ±1."""

    request_id: str
    index: int
    seed: int
    sample_rate: int
    pcm: NDArray[np.float32]


class Failure(Struct, frozen=True, kw_only=True):
    """The request is over without all of its clips. `transient` says whether trying again can help."""

    request_id: str
    error: str
    transient: bool


Update: TypeAlias = Progress | Clip | Failure


class EngineError(Text2SongError):
    """Generation failed, or the model cannot be had; the message is for the person who asked."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Engine(Protocol):
    """A loaded model. Nothing here blocks for more than about 25 decoding steps."""

    @property
    def model(self) -> Model: ...

    @property
    def device(self) -> str: ...

    @property
    def capacity(self) -> int:
        """How many requests may be held at once."""

    def admit(self, request: EngineRequest) -> None:
        """Raises EngineError for a request the model cannot carry out."""

    def advance(self) -> Sequence[Update]:
        """Moves the held requests on; a request is over when its last clip or a failure has been returned.

        Raises only when the engine is beyond use, and its process with it.
        """

    def cancel(self, request_id: str) -> None:
        """Forgets the request; one that is not held is no error."""
