"""What is wrong with a request that does not fit the types of its route: the value as it was sent, and the way out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec
from litestar import Request
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import HeaderParameter, ParameterKwarg, PathParameter, QueryParameter
from msgspec import inspect

from domain.errors import Fault

Path: TypeAlias = tuple[str | int, ...]

BODY: Final = "body"  # where a request's state has its JSON
SHOWN: Final = 100  # characters of a value, at most
ABSENT: Final = object()
UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
LACKING: Final = re.compile(r"Missing required query parameter '(.*)' for path .*", re.DOTALL)
STEP: Final = re.compile(r"\[([0-9]+)\]|([^.\[\]]+)")


def validation_faults(request: Request[Any, Any, Any], error: ValidationException) -> list[Fault]:
    extra: Any = error.extra
    found = msgspec.convert(extra if isinstance(extra, list) else [], list[dict[str, str]])
    if lacking := LACKING.fullmatch(error.detail):
        return [Fault(pointer((lacking[1],)), f"{lacking[1]} is missing.")]
    return [_fault(request, item) for item in found] or [Fault("", error.detail)]


def unknown_parameters(request: Request[Any, Any, Any]) -> list[Fault]:
    """Those of the query that the route does not take."""
    known = query_parameters(request.route_handler)
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    return [
        Fault(pointer((name,)), f"There is no query parameter {shown(name)} at this address; {takes}.")
        for name in dict.fromkeys(request.query_params)
        if name not in known
    ]


@cache
def query_parameters(handler: BaseRouteHandler) -> tuple[str, ...]:
    """The names as clients write them."""
    parameters = handler.parsed_fn_signature.parameters.values()
    return tuple(
        field.kwarg_definition.name or field.name
        for field in parameters
        if isinstance(field.kwarg_definition, QueryParameter)
    )


def pointer(path: Path) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def spoken(path: Path) -> str:
    """How a sentence names it: `seeds[1]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "The body"


def shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _fault(request: Request[Any, Any, Any], item: Mapping[str, str]) -> Fault:
    key, message = item.get("key", ""), item.get("message", "")
    fields = request.route_handler.parsed_fn_signature.parameters
    if item.get("source") != "body" and key in fields:
        definition = fields[key].kwarg_definition
        name = (definition.name if isinstance(definition, ParameterKwarg) else None) or key
        kinds = list(_kinds(inspect.type_info(fields[key].annotation), ()))
        return _misfit((name,), _parameter(request, definition, name), kinds, message)
    if message == "'data'":
        return Fault("", "The body is missing; send one JSON object.")
    path = () if key == "data" else tuple(int(index) if index else name for index, name in STEP.findall(key))
    kinds = list(_kinds(inspect.type_info(fields["data"].annotation), path))
    return _misfit(path, _at(request.scope["state"].get(BODY, ABSENT), path), kinds, message)


def _misfit(path: Path, value: Any, kinds: Sequence[inspect.Type], message: str) -> Fault:
    if unknown := UNKNOWN.fullmatch(message):
        known = [field.encode_name for kind in kinds if isinstance(kind, inspect.StructType) for field in kind.fields]
        owner = spoken(path) if path else "the body"
        detail = f"There is no field {shown(unknown[1])}; {owner} takes {', '.join(known)}."
        return Fault(pointer((*path, unknown[1])), detail)
    if missing := MISSING.fullmatch(message):
        return Fault(pointer((*path, missing[1])), f"{spoken((*path, missing[1]))} is missing.")
    said = spoken(path) if value is ABSENT else f"{spoken(path)} is {shown(value)}"
    if choices := [str(value) for kind in kinds if isinstance(kind, inspect.LiteralType) for value in kind.values]:
        return Fault(pointer(path), f"{said}; it is one of {', '.join(choices)}.")
    return Fault(pointer(path), f"{said}: {message}.")


def _parameter(request: Request[Any, Any, Any], definition: Any, name: str) -> Any:
    match definition:
        case HeaderParameter():
            return request.headers.get(name, ABSENT)
        case PathParameter():
            return request.path_params.get(name, ABSENT)
        case _:
            return request.query_params.get(name, ABSENT)


def _at(content: Any, path: Path) -> Any:
    for step in path:
        try:
            content = content[step]
        except (LookupError, TypeError):
            return ABSENT
    return content


def _kinds(kind: inspect.Type, path: Path) -> Iterator[inspect.Type]:
    """The types that a value at the path may have."""
    match kind, path:
        case inspect.UnionType(types=types), _:
            for inner in types:
                yield from _kinds(inner, path)
        case _, ():
            yield kind
        case inspect.StructType(fields=fields), (str(name), *rest):
            for field in fields:
                if field.encode_name == name:
                    yield from _kinds(field.type, tuple(rest))
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item), (int(), *rest):
            yield from _kinds(item, tuple(rest))
