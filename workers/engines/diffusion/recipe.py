"""What the families of diffusion models have in common: how one of their pipelines makes a take."""

import math
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec
import torch
from msgspec import Struct

from domain.models import Model
from workers.engine import EngineError, EngineRequest
from workers.engines.diffusion.calls import Sound, Tell

P = TypeVar("P", bound=Struct)
Steps = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Recipe(Protocol):
    """`half` is what the family's weights are run in on a GPU, where it can."""

    half: ClassVar[torch.dtype]

    def __init__(self, pipeline: Any, model: Model) -> None: ...

    def check(self, request: EngineRequest) -> None:
        """Raises EngineError if the model cannot carry it out."""

    def make(self, request: EngineRequest, seed: int, tell: Tell) -> Sound:
        """The audio, `[channels, samples]`; the same seed gives the same."""


def parameters(request: EngineRequest, model: Model, kind: type[P]) -> P:
    """The request's, those that are left out at their defaults. Raises EngineError for others than the family has."""
    try:
        return msgspec.convert(dict(request.parameters), kind)
    except msgspec.ValidationError as error:
        names = ", ".join(kind.__struct_fields__)
        raise EngineError(f"{model.id} cannot be asked so: {error}. Its parameters are {names}.") from error


def generator(seed: int) -> torch.Generator:
    """On the CPU wherever the model is, so that a seed gives the same noise on every device."""
    return torch.Generator("cpu").manual_seed(seed)


def whole(seconds: float, rate: int) -> float:
    """The duration to ask of a pipeline that cuts off what is left of a sample: it would lack the last one."""
    samples = round(seconds * rate)
    if int(seconds * rate) == samples:
        return seconds
    exact = samples / rate
    return exact if int(exact * rate) == samples else math.nextafter(exact, math.inf)
