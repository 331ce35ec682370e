from collections.abc import Sequence
from typing import Any, Final

from litestar import Response, get, patch
from litestar.params import JSONBody
from msgspec import Struct, convert
from msgspec.structs import asdict

from api.http import positions
from api.http.access import ADMIN
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected
from commands import models as commands
from domain.events.jobs import MAX_SAMPLES, RANGES, Sampling
from domain.families import Kind, Parameter
from domain.models import MIN_DURATION, Model, Registry
from domain.parameters import DRAWING


class Range(Struct, frozen=True, kw_only=True):
    """Both ends are within."""

    default: float
    minimum: float
    maximum: float


class ModelParameter(Struct, frozen=True, kw_only=True):
    """Both ends are within. A default outside of them leaves the value to the model; a choice is one of `choices`."""

    name: str
    kind: Kind
    default: bool | int | float | str
    minimum: float | None
    maximum: float | None
    choices: list[str]
    max_length: int | None
    description: str


class ModelBody(Struct, frozen=True, kw_only=True):
    """`is_active` marks the model that requests get which name none, `is_loaded` those that live workers have;
    `workers` counts these. What they make at once is `capacity` samples, of which `occupancy`, from 0 to 1, are in use.
    Together they make `real_time_factor` seconds of audio in a second of work, as measured lately. Each of the three is
    null where one of them does not say.

    Durations are in seconds. `parameters` are the fields of `POST /generate` that the model has a use for,
    `own_parameters` those that go into its field `parameters`. `capabilities` are some of text-to-music, adapters,
    lyrics, melody, continuation, stereo, seeds and best_of. `tempi` are the slowest and the fastest that it plays, in
    beats a minute, or null where they are not known.
    """

    id: str
    family: str
    revision: str | None
    min_duration: float
    max_duration: float
    max_extended_duration: float
    sample_rate: int
    channels: int
    vram_gb: float
    capabilities: list[str]
    parameters: dict[str, Range]
    own_parameters: list[ModelParameter]
    license: str
    notice: str | None
    tempi: tuple[int, int] | None
    is_active: bool
    is_loaded: bool
    workers: int
    capacity: int | None
    occupancy: float | None
    real_time_factor: float | None


class ModelChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model_id: str


@get("/models", operation_id="listModels", opt=CURRENT, tags=["models"])
async def list_models(services: Injected) -> Page[ModelBody]:
    """Every supported model with its limits, the active one first, and those that live workers have loaded."""
    models = bodies(await services.models())
    return Page(items=models, total=len(models), limit=len(models), offset=0, next_cursor=None)


@patch("/models/active", operation_id="activateModel", opt={**CURRENT, **ADMIN}, tags=["models"])
async def activate_model(services: Injected, data: JSONBody[ModelChange]) -> Response[ModelBody]:
    """Makes a model that a worker has loaded the one that requests get which name none, in every API process."""
    registry = await services.models()
    receipt = await commands.activate(services.journal, services.views, registry, data.model_id)
    await services.views.show(receipt.positions)
    active = bodies(registry.now(registry.activable(data.model_id).id, services.feed.workers()))[0]
    return Response(active, headers=positions.headers(*receipt.positions))


ROUTES: Final = (list_models, activate_model)


def bodies(registry: Registry) -> list[ModelBody]:
    return [_body(registry, model) for model in registry.models]


def _body(registry: Registry, model: Model) -> ModelBody:
    workers = registry.workers.get(model.id, [])
    capacity = _total([alive.capacity for alive in workers])
    busy = _total([alive.busy for alive in workers])
    factor = _total([alive.real_time_factor for alive in workers])
    computed: dict[str, Any] = {
        "parameters": _parameters(model),
        "own_parameters": [_own(parameter) for parameter in model.parameters],
        "is_loaded": bool(workers),
        "workers": len(workers),
        "capacity": capacity,
        "occupancy": round(min(1.0, busy / capacity), 3) if capacity and busy is not None else None,
        "real_time_factor": None if factor is None else round(factor, 2),
    }
    return convert(asdict(model) | computed, ModelBody, from_attributes=True)


def _total(numbers: Sequence[float | None]) -> float | None:
    """None where there are none, or one is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _parameters(model: Model) -> dict[str, Range]:
    defaults = {**asdict(Sampling()), "guidance_scale": model.guidance_scale, "priority": 0, "adapter_scale": 1}
    left_out = {*(() if model.draws_tokens else DRAWING), *(name for name in defaults if defaults[name] is None)}
    found = {name: _range(defaults[name], RANGES[name]) for name in RANGES if name not in left_out}
    if not model.may("adapters"):
        del found["adapter_scale"]
    found["duration"] = _range(model.usual_duration, (model.min_duration, model.max_extended_duration))
    if model.may("continuation"):
        found["continue_seconds"] = _range(model.kept_duration, (MIN_DURATION, model.max_extended_duration))
    found["num_samples"] = _range(1, (1, MAX_SAMPLES))
    return found


def _range(default: float | None, bounds: Sequence[float]) -> Range:
    return Range(default=default or 0, minimum=bounds[0], maximum=bounds[1])


def _own(parameter: Parameter) -> ModelParameter:
    return convert(
        {**asdict(parameter), "minimum": parameter.low, "maximum": parameter.high}, ModelParameter, from_attributes=True
    )
