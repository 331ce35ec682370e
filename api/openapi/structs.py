"""The structs that routes take and answer, as msgspec reads and writes them.

Litestar's own description of them differs: of a `tuple[str, ...]` it says that each item fits exactly one of `string`
and of anything.
"""

from collections.abc import Iterable, Iterator, Mapping
from inspect import cleandoc, isclass
from types import UnionType
from typing import Any, Final, TypeAlias, Union, get_args, get_origin

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

Schema: TypeAlias = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{name}"


def body(handler: HTTPRouteHandler) -> Any:
    """What the route takes, or None."""
    field = handler.parsed_fn_signature.parameters.get("data")
    return None if field is None else field.annotation


def answers(handler: HTTPRouteHandler) -> dict[str, tuple[Any, ...]]:
    """By status, the structs that the route answers with; no others."""
    said = {handler.status_code: handler.parsed_fn_signature.return_type.annotation}
    said |= {status: specified.data_container for status, specified in (handler.responses or {}).items()}
    found = {str(status): tuple(_structs(kind)) for status, kind in said.items()}
    return {status: kinds for status, kinds in found.items() if kinds}


def schemas(kinds: Iterable[Any]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """References to these structs, and by name the schemas of them and of all in them.

    They tell unknown fields that are refused, defaults and bounds.
    """
    distinct = list(dict.fromkeys(kinds))
    references, components = msgspec.json.schema_components(distinct, ref_template=REFERENCE)
    for schema in components.values():
        if "description" in schema:
            schema["description"] = cleandoc(schema["description"])
        _type_choices(schema)
    return dict(zip(distinct, references, strict=True)), dict(components)


def within(schema: Any, components: Mapping[str, Schema]) -> set[str]:
    """The names of what the schema refers to, and of what that does."""
    found: set[str] = set()
    open_ = [schema]
    while open_:
        match open_.pop():
            case {"$ref": str(reference)}:
                name = reference.rpartition("/")[2]
                open_ += [] if name in found else [components[name]]
                found.add(name)
            case dict(parts):
                open_ += parts.values()
            case list(parts):
                open_ += parts
    return found


def _type_choices(schema: Any) -> None:
    """Says of texts to choose from that they are texts, which generators of clients want to know."""
    if isinstance(schema, dict):
        match schema:
            case {"enum": [*choices]} if all(isinstance(choice, str) for choice in choices):
                schema.setdefault("type", "string")
        for inner in schema.values():
            _type_choices(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _type_choices(inner)


def _structs(kind: Any) -> Iterator[Any]:
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType) or (isclass(origin) and issubclass(origin, Response)):
        for each in get_args(kind):
            yield from _structs(each)
    elif isclass(origin) and issubclass(origin, Struct):
        yield kind
