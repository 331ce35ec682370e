"""The parameters that a model takes besides those of every request, and whether it can do what is asked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from msgspec import UNSET, UnsetType

from domain.errors import Fault, plain
from domain.events.jobs import MAX_LYRICS, MAX_PARAMETERS, Sampling
from domain.families import Parameter
from domain.models import Model
from domain.prompts import control_faults, is_visible

Value: TypeAlias = bool | int | float | str
DRAWING: Final = ("temperature", "top_k", "top_p")  # of models that draw tokens
SHOWN: Final = 40  # characters of a name or value that is not as it should be
KINDS: Final = {"number": "a number", "integer": "a whole number", "text": "text", "switch": "true or false"}


class Request(Protocol):
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def guidance_scale(self) -> float | UnsetType: ...
    @property
    def parameters(self) -> Mapping[str, Value] | None: ...
    @property
    def lyrics(self) -> str | None: ...


def sampling(request: Request, model: Model) -> Sampling:
    """With the model's own guidance where the request names none; 1 is no guidance."""
    own = 1.0 if model.guidance_scale is None else model.guidance_scale
    return Sampling(
        temperature=float(request.temperature),
        top_k=request.top_k,
        top_p=float(request.top_p),
        guidance_scale=own if request.guidance_scale is UNSET else float(request.guidance_scale),
    )


def settled(request: Request, model: Model) -> dict[str, Value]:
    """All parameters of the model, those left out at their defaults. The request has no faults."""
    given = request.parameters or {}
    return {each.name: _typed(each, given.get(each.name, each.default)) for each in model.parameters}


def faults(request: Request, model: Model, known: Sequence[Model]) -> Iterator[Fault]:
    """`known` are the models to name instead of one that cannot do it."""
    yield from _sampling_faults(request, model)
    yield from _parameter_faults(request, model)
    if request.lyrics is not None:
        yield from _lyrics_faults(request.lyrics, model, known)


def _sampling_faults(request: Request, model: Model) -> Iterator[Fault]:
    usual = Sampling()
    for name in () if model.draws_tokens else DRAWING:
        value = getattr(request, name)
        if value != getattr(usual, name):
            detail = f"{name} is {plain(value)}, but {model.id} draws no tokens. Leave it out; {_takes(model)}."
            yield Fault(f"/{name}", detail)
    guidance = request.guidance_scale
    if model.guidance_scale is None and guidance is not UNSET and guidance != 1:
        detail = f"guidance_scale is {plain(guidance)}, but {model.id} has its guidance in its weights. Leave it out"
        yield Fault("/guidance_scale", f"{detail}; {_takes(model)}.")


def _parameter_faults(request: Request, model: Model) -> Iterator[Fault]:
    given = request.parameters or {}
    own = {each.name: each for each in model.parameters}
    for name, value in list(given.items())[:MAX_PARAMETERS]:
        pointer = f"/parameters/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in own:
            yield Fault(pointer, f"{_shown(name)} is no parameter of {model.id}; {_takes(model)}.")
        elif (limit := _limit(own[name], value)) is not None:
            yield Fault(pointer, f"{name} is {_shown(value)}; it must be {limit}.")
        elif isinstance(value, str):
            yield from control_faults(value, pointer, f" of {name}")
    if len(given) > MAX_PARAMETERS:
        yield Fault("/parameters", f"parameters has {len(given):,} entries; {_takes(model)}.")
    if given.get("negative_prompt") and "negative_prompt" in own and sampling(request, model).guidance_scale == 1:
        detail = "There is a negative_prompt, but guidance_scale is 1, which is no guidance, and nothing would be kept"
        yield Fault("/parameters/negative_prompt", f"{detail} away. Give a guidance_scale over 1, or leave it out.")


def _lyrics_faults(lyrics: str, model: Model, known: Sequence[Model]) -> Iterator[Fault]:
    if "lyrics" not in model.capabilities:
        names = ", ".join(other.id for other in known if "lyrics" in other.capabilities)
        detail = f"There are lyrics, but {model.id} does not sing. Send no lyrics (null)"
        yield Fault("/lyrics", f"{detail}, or use one that does: {names}." if names else f"{detail}.")
    elif not any(map(is_visible, lyrics)):
        yield Fault("/lyrics", "The lyrics are empty; say what is to be sung, or leave them out.")
    elif len(lyrics) > MAX_LYRICS:
        yield Fault("/lyrics", f"The lyrics have {len(lyrics):,} characters; the limit is {MAX_LYRICS:,}.")
    else:
        yield from control_faults(lyrics, "/lyrics", " of the lyrics")


def _limit(parameter: Parameter, value: Value) -> str | None:
    """What the value would have to be, None where it is that."""
    low, high = parameter.low, parameter.high
    match parameter.kind:
        case "choice":
            named = ", ".join(choice or "empty" for choice in parameter.choices)
            return None if _typed(parameter, value) in parameter.choices else f"one of {named}"
        case "text":
            limit = parameter.max_length
            if isinstance(value, str):
                return f"of up to {limit:,} characters" if limit is not None and len(value) > limit else None
        case "switch":
            if isinstance(value, bool):
                return None
        case "number" | "integer":
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if parameter.kind == "integer" and value % 1:
                    return KINDS["integer"]
                outside = (low is not None and not low <= value) or (high is not None and not value <= high)
                return _range(parameter) if outside and value != parameter.default else None
    return KINDS[parameter.kind]


def _range(parameter: Parameter) -> str:
    low, high, default = parameter.low, parameter.high, parameter.default
    if low is None or high is None:
        said = f"at least {plain(low)}" if low is not None else f"at most {plain(high or 0)}"
    else:
        said = f"from {plain(low)} to {plain(high)}"
    is_outside = isinstance(default, (int, float)) and (
        (low is not None and default < low) or (high is not None and default > high)
    )
    return f"{said}, or {plain(float(default))}" if is_outside else said


def _typed(parameter: Parameter, value: Value) -> Value:
    match parameter.kind:
        case "number":
            return float(value)
        case "integer":
            return int(value)
        # That of a bar's beats may come as a number.
        case "choice" if not isinstance(value, (str, bool)):
            return plain(value)
    return value


def _takes(model: Model) -> str:
    names = [each.name for each in model.parameters]
    return f"it takes {', '.join(names)}" if names else "it takes none"


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{value[:SHOWN]!r}" if len(value) <= SHOWN else f"{value[:SHOWN]!r} and {len(value) - SHOWN:,} more"
    return plain(value)
