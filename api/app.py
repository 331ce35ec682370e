from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from types import ModuleType
from typing import Any, Final

from litestar import Litestar, Request, Response, get
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.response import Redirect
from msgspec import Struct

from api import (
    asyncapi,
    audio,
    comparison,
    documentation,
    events,
    health,
    job_audio,
    job_events,
    melodies,
    metrics,
    studio_page,
    trials,
)
from api.doors import audio_v2, tracks
from api.http.access import OPEN
from api.http.access_log import AccessLog
from api.http.admission import admit
from api.http.bodies import JsonRequest
from api.http.entrance import Entrance
from api.http.hosts import ALL, AllowedHosts
from api.http.problems import MAX_BODY, problem_response
from api.http.services import Injected, Services, given
from api.openapi.document import Json, Yaml
from domain.aggregates import slices

DESCRIPTION: Final = """HEAD is answered at every address that answers GET, with the same headers and no body.

Once a studio has keys, requests need one, as `X-API-Key` or as `Authorization: Bearer`: 401 says that it is missing or
void, 403 which scope it lacks, and 429 when to go on."""


class Index(Struct, frozen=True, kw_only=True):
    name: str = "Text2Song Studio"
    version: str
    model: str
    notice: str | None
    documentation: str = "/schema"
    page: str = "/studio"
    openapi: str = "/schema/openapi.json"
    asyncapi: str = "/asyncapi.json"


@get("/", operation_id="getIndex", opt=OPEN, tags=["health"])
async def index(request: Request[Any, Any, Any], services: Injected) -> Response[Index] | Redirect:
    """What this studio is. A browser, which asks for HTML, is sent to the page."""
    if "text/html" in request.headers.get("Accept", ""):
        return Redirect("/studio")
    active = (await services.models()).active
    found = Index(version=version("text2song-studio"), model=active.id, notice=active.notice)
    return Response(found, headers={"Vary": "Accept"})


# What a page of another origin may read of an answer, beside its body.
EXPOSED: Final = (
    "X-Event-Position",
    "X-Request-ID",
    "Location",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "ETag",
    "Accept-Ranges",
    "Content-Range",
    "Content-Disposition",
)
# A browser takes * for none of them once it sends credentials.
SENT: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Event-Position",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "traceparent",
    "X-API-Key",
    "X-Request-ID",
)


def create_app(services: Services, hosts: AllowedHosts) -> AccessLog:
    entrance = Entrance(_application(hosts.origins), services, hosts)
    return AccessLog(entrance, services.journal.span)


@lru_cache
def _application(origins: tuple[str, ...]) -> Litestar:
    """Every route. What a request needs comes with it, so that one serves many studios."""
    files: list[ModuleType] = [
        *slices("api").values(),
        job_events,
        events,
        job_audio,
        audio,
        comparison,
        melodies,
        trials,
        asyncapi,
        health,
        metrics,
        studio_page,
        tracks,
        audio_v2,
    ]
    return Litestar(
        [index, *(route for file in files for route in file.ROUTES)],
        dependencies={"services": Provide(given, sync_to_thread=False)},
        before_request=admit,
        exception_handlers={HTTPException: problem_response, Exception: problem_response},
        openapi_config=OpenAPIConfig(
            title="Text2Song Studio",
            version=version("text2song-studio"),
            description=DESCRIPTION,
            use_handler_docstrings=True,
            openapi_router=documentation.router(),
            render_plugins=[documentation.Page(), Json(), Yaml()],
        ),
        request_class=JsonRequest,
        request_max_body_size=MAX_BODY,
        logging_config=None,
        cors_config=_cors(origins) if origins else None,
    )


def _cors(origins: Sequence[str]) -> CORSConfig:
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=list(SENT),
        allow_credentials=ALL not in origins,
        expose_headers=list(EXPOSED),
    )
