"""The OpenAPI document: what Litestar reads off the routes, and what every request can meet before and around them.

It is derived: from a route's scope, parameters and body follow the refusals that it can answer. `answers` and `bounds`
have what cannot be derived.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec
from litestar import Litestar, Request
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.routes import HTTPRoute
from msgspec import Struct

from api.events import Changed
from api.http.access import demand
from api.http.problems import Problem
from api.http.services import given
from api.job_events import JobProgress
from api.openapi import bounds, structs
from api.openapi.answers import ANSWERS, PLAIN, Answers
from api.openapi.structs import REFERENCE
from api.trainings import TrainingProgress

Described: TypeAlias = dict[str, Any]

PROBLEM: Final = "application/problem+json"
STREAM: Final = "text/event-stream"
POSITIONS: Final = r"^[a-z]+/[0-9]{1,9}/[0-9]{1,18}(, *[a-z]+/[0-9]{1,9}/[0-9]{1,18})*$"
# Any request may meet them, before it has a route.
ALWAYS: Final = (403, 431)
PARTLY: Final = ("Range", "If-Range", "If-None-Match")
UNCHECKED: Final = frozenset({"/health", "/health/live", "/health/ready"})  # take any query
BODILESS: Final = frozenset({204, 302, 304})
EMPTY: Final[Mapping[int, str]] = {
    202: "Taken, and not done yet",
    204: "There is nothing to send",
    206: "The part that Range asks for",
    302: "A browser is sent to the page",
    304: "The client has this version",
}
EXAMPLES: Final[Mapping[int, tuple[str, str]]] = {
    400: ("invalid_request", "num_samples is 17; ask for 1 to 16."),
    401: ("unauthorized", "This studio needs a key. Send one as X-API-Key or as Authorization: Bearer."),
    403: ("missing_scope", "This key has the scope read, and this address needs write."),
    404: ("not_found", "There is no job 'unknown'."),
    408: ("request_timeout", "The body came at less than 512 bytes a second; send it again, faster."),
    409: ("conflict", "Job j1 is completed; only a queued or processing job can be cancelled."),
    410: ("damaged", "The file 'adapters/a1/adapter_model.safetensors' is gone. Put a sound copy in its place."),
    413: ("too_large", "The body is over the limit of 1,000,000 bytes."),
    415: ("unsupported_media_type", "The body is text/plain; send application/json."),
    416: ("requested_range_not_satisfiable", "The range begins after the end; the file has 1,024 bytes."),
    422: ("idempotency_key_reused", "This Idempotency-Key was sent before with another request."),
    429: ("too_many_requests", "That was more than 6,000 requests in 60 s (read); go on in 12 s."),
    431: ("request_header_fields_too_large", "The request's address and headers have over 65,536 bytes; send less."),
    500: ("generation_failed", "Track t1 could not be generated: the device ran out of memory."),
    503: ("unavailable", "The views are still being folded from the log; ask again soon."),
}
HEADERS: Final[Mapping[str, tuple[str, Described]]] = {
    "X-Event-Position": (
        "Where the events that the answer shows stand on the log; any process shows them to `If-Event-Position`",
        {"type": "string", "pattern": POSITIONS},
    ),
    "Location": ("The address of what was made, or is being made", {"type": "string", "format": "uri-reference"}),
    "ETag": ("The version; If-None-Match and If-Range take it", {"type": "string", "pattern": '^(W/)?"[^"]*"$'}),
    "Accept-Ranges": ("Ranges are of bytes", {"type": "string", "const": "bytes"}),
    "Content-Range": (
        "The part that this is, or the size",
        {"type": "string", "pattern": r"^bytes ([0-9]+-[0-9]+|\*)/[0-9]+$"},
    ),
    "Content-Disposition": ("The name to save it under", {"type": "string"}),
    "Retry-After": ("Seconds after which to ask again", {"type": "integer", "minimum": 1}),
    "RateLimit-Policy": ("How many requests there may be in how many seconds", {"type": "string"}),
    "RateLimit": ("How many are left, and the seconds until there are more", {"type": "string"}),
    "WWW-Authenticate": ("How to send a key", {"type": "string"}),
    "Allow": ("The methods that the address answers to", {"type": "string"}),
    "X-Request-ID": ("The request's own, or one made for it; the studio's log has it", {"type": "string"}),
}
SENT: Final[Mapping[str, tuple[str, Described]]] = {
    "If-Event-Position": (
        "`X-Event-Position` of earlier answers, with commas between: the answer waits until it shows those events",
        {"type": "string", "pattern": POSITIONS, "examples": ["jobs/0/0"]},
    ),
    "Range": ("One range of bytes; anything else is answered with the whole", {"type": "string"}),
    "If-Range": ("An ETag: the range is honoured where it is that version's", {"type": "string"}),
    "If-None-Match": ("ETags: 304 where one of them is the version at hand", {"type": "string"}),
}
# Of the problems, those that say something in a header of their own.
SAYING: Final[Mapping[int, tuple[str, ...]]] = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
KEYS: Final[Described] = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`text2song keys create` makes one"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key, as `Authorization: Bearer`"},
}


class Nothing(Struct, frozen=True):
    """There is nothing more to say."""


# Bodies that no route's type names.
SAID: Final = (Problem, Nothing, JobProgress, TrainingProgress, Changed)


class Json(JsonRenderPlugin):
    def __init__(self) -> None:
        super().__init__()
        self._written: dict[bool, bytes] = {}

    def render(self, request: Request[Any, Any, Any], openapi_schema: Described) -> bytes:
        is_open = _is_open(request)
        if is_open not in self._written:
            document = described(request.app, openapi_schema, is_open=is_open)
            self._written[is_open] = msgspec.json.encode(document)
        return self._written[is_open]


class Yaml(YamlRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: Described) -> bytes:
        return super().render(request, described(request.app, openapi_schema, is_open=_is_open(request)))


def _is_open(request: Request[Any, Any, Any]) -> bool:
    return given(request).feed.keys.is_open


def described(app: Litestar, read: Described, *, is_open: bool) -> Described:
    """`read` is Litestar's document. `is_open` says that the studio has no keys, so that no request needs one."""
    document: Described = msgspec.to_builtins(read)
    components = document["components"]
    handlers = [handler for handler, _, _ in _routes(app)]
    bodies = [body for handler in handlers if (body := structs.body(handler)) is not None]
    said = [kind for handler in handlers for kinds in structs.answers(handler).values() for kind in kinds]
    references, components["schemas"] = structs.schemas([*bodies, *said, *SAID])
    _narrow_bodies([references[body] for body in bodies], components["schemas"])
    components["securitySchemes"] = KEYS
    components["headers"] = {name: _header(*given) for name, given in HEADERS.items()}
    components["parameters"] = {
        name: {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in SENT.items()
    }
    components["responses"] = {str(status): _problem(status) for status in EXAMPLES}
    for handler, method, path in _routes(app):
        operation = document["paths"][path][method.lower()]
        for status, kinds in structs.answers(handler).items():
            _answer(operation["responses"][status], [references[kind] for kind in kinds])
        _describe(operation, handler, method, is_open=is_open)
    return document


def _routes(app: Litestar) -> Iterator[tuple[HTTPRouteHandler, str, str]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if handler.resolve_include_in_schema():
                    yield handler, method, route.path_format or "/"


def _narrow_bodies(bodies: list[Described], schemas: dict[str, Described]) -> None:
    """Adds the bounds of what is sent, which routes check in words of their own."""
    for name in structs.within(bodies, schemas):
        own = bounds.OWN.get(name, {})
        for field, inner in schemas[name].get("properties", {}).items():
            if narrowed := {**own, field: own.get(field) or bounds.FIELDS.get(field, {})}[field]:
                bounds.narrow(inner, narrowed)


def _describe(operation: Described, handler: HTTPRouteHandler, method: str, *, is_open: bool) -> None:
    answers = ANSWERS.get(operation["operationId"], PLAIN)
    needed = demand(handler, method)
    parameters = operation.setdefault("parameters", [])
    problems = set(_problems(operation, handler, method)) | set(answers.problems)
    for parameter in parameters:
        _narrow(operation["operationId"], parameter)
    if needed != "open":
        operation["security"] = [*([{}] if is_open else []), *({name: [needed]} for name in KEYS)]
        operation["description"] = f"{operation.get('description', '')}\n\nScope: `{needed}`.".lstrip()
        parameters.append(_reference("parameters", "If-Event-Position"))
    else:
        operation["security"] = []
    if answers.is_file:
        parameters.extend(_reference("parameters", name) for name in PARTLY)
        problems.add(416)
    elif answers.is_versioned:
        parameters.append(_reference("parameters", "If-None-Match"))
    if not parameters:
        del operation["parameters"]
    if answers.example is not None:
        for media in operation["requestBody"]["content"].values():
            media["example"] = answers.example
    responses = {status: response for status, response in operation["responses"].items() if int(status) < 400}
    _succeed(responses, answers, is_limited=needed != "open")
    for status in sorted(problems):
        responses[str(status)] = _reference("responses", str(status))
    if answers.is_unready:
        [ready] = [response for status, response in responses.items() if status == "200"]
        responses["503"] = {**deepcopy(ready), "description": "Not yet: the body says what is missing"}
    operation["responses"] = responses


def _answer(response: Described, choices: list[Described]) -> None:
    for media in response["content"].values():
        media["schema"] = choices[0] if len(choices) == 1 else {"anyOf": choices}


def _problems(operation: Described, handler: HTTPRouteHandler, method: str) -> Iterator[int]:
    """Those that follow from what the route takes."""
    yield from ALWAYS
    places = {(parameter["in"], parameter["name"]) for parameter in operation["parameters"]}
    if demand(handler, method) != "open":
        yield from (400, 401, 429, 503)
    elif not handler.paths & UNCHECKED:
        yield 400
    if any(place == "path" for place, _ in places):
        yield 404
    if ("header", "Idempotency-Key") in places:
        yield 422
    if method == "POST":
        yield 415
    if "requestBody" in operation:
        yield from (408, 413)


def _succeed(responses: Described, answers: Answers, *, is_limited: bool) -> None:
    """Puts in order what success looks like: its statuses, its media types and its headers."""
    [first, *_] = responses
    body = responses[first]
    if answers.media_types:
        text = {"schema": {"type": "string"}}
        kept = body.get("content", {}) if answers.is_json else {}
        body["content"] = kept | {name: dict(text) for name in answers.media_types}
    if answers.events:
        body["content"] = {STREAM: {"schema": _events(answers.events)}}
    partial = (206, 304) if answers.is_file else (304,) if answers.is_versioned else ()
    for status in (*answers.also, *partial):
        has_body = status in {200, 202, 206}
        shared = {"content": deepcopy(body["content"])} if has_body and "content" in body else {}
        responses.setdefault(str(status), shared | {"description": EMPTY.get(status, "Done")})
    names = {*answers.headers, *(("ETag",) if answers.is_versioned else ())}
    names |= {"Accept-Ranges"} if answers.is_file else set()
    names |= {"RateLimit", "RateLimit-Policy"} if is_limited else set()
    for status, response in responses.items():
        if int(status) in BODILESS:
            response.pop("content", None)
        own = names | ({"Content-Range"} if status == "206" else {"Location"} if status == "302" else set())
        if headers := {name: _reference("headers", name) for name in sorted(own)}:
            response["headers"] = headers


def _events(events: Mapping[str, str]) -> Described:
    """Of one message, as is the custom for such streams before OpenAPI 3.2."""
    kinds = list(dict.fromkeys(events.values()))
    choices = [
        {
            "title": kind,
            "type": "object",
            "properties": {
                "event": {"type": "string", "enum": [name for name, of in events.items() if of == kind]},
                "id": {"type": "string"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": REFERENCE.format(name=kind)},
                },
            },
            "required": ["event", "data"],
        }
        for kind in kinds
    ]
    return {"anyOf": choices, "description": "One message; others have a comment alone, every 15 s of silence."}


def _narrow(operation_id: str, parameter: Described) -> None:
    """Leaves out what says nothing, and adds the bounds."""
    for name in ("allowEmptyValue", "allowReserved", "deprecated"):
        if parameter.get(name) is False:
            del parameter[name]
    schema, name = parameter["schema"], parameter["name"]
    if parameter["in"] == "query":
        bounds.narrow(schema, bounds.PARAMETERS.get(name, {}))
        if choices := bounds.CHOICES.get((operation_id, name)):
            parameter["schema"] = {"type": "string", "enum": list(choices)}


def _problem(status: int) -> Described:
    code, detail = EXAMPLES[status]
    title = HTTPStatus(status).phrase
    example = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    names = ["X-Request-ID", "RateLimit", "RateLimit-Policy", *SAYING.get(status, ())]
    return {
        "description": title,
        "headers": {name: _reference("headers", name) for name in names},
        "content": {
            PROBLEM: {
                "schema": {"$ref": REFERENCE.format(name="Problem")},
                "example": example | {"request_id": "0198f3a0-6f0e-7d5c-9f6a-5d6f7e8a9b0c"},
            }
        },
    }


def _header(description: str, schema: Described) -> Described:
    return {"description": description, "schema": schema}


def _reference(kind: str, name: str) -> Described:
    return {"$ref": f"#/components/{kind}/{name}"}
