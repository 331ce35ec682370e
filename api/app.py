from importlib.metadata import version
from types import ModuleType

from litestar import Litestar, get
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import YamlRenderPlugin
from msgspec import Struct

from api import asyncapi, audio, comparison, documentation, health, job_audio, job_events, trials
from api.http.admission import admit
from api.http.bodies import JsonRequest
from api.http.entrance import Entrance
from api.http.hosts import AllowedHosts
from api.http.problems import MAX_BODY, problem_response
from api.http.services import Injected, Services
from domain.aggregates import slices


class Index(Struct, frozen=True, kw_only=True):
    name: str = "Text2Song Studio"
    version: str
    model: str
    notice: str | None
    documentation: str = "/schema"
    openapi: str = "/schema/openapi.json"
    asyncapi: str = "/asyncapi.json"


@get("/", operation_id="getIndex", tags=["health"])
async def index(services: Injected) -> Index:
    active = (await services.models()).active
    return Index(version=version("text2song-studio"), model=active.id, notice=active.notice)


def create_app(services: Services, hosts: AllowedHosts) -> Entrance:
    files: list[ModuleType] = [
        *slices("api").values(),
        job_events,
        job_audio,
        audio,
        comparison,
        trials,
        asyncapi,
        health,
    ]
    app = Litestar(
        [index, *(route for file in files for route in file.ROUTES)],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        before_request=admit,
        exception_handlers={HTTPException: problem_response, Exception: problem_response},
        openapi_config=OpenAPIConfig(
            title="Text2Song Studio",
            version=version("text2song-studio"),
            description="HEAD is answered at every address that answers GET, with the same headers and no body.",
            use_handler_docstrings=True,
            openapi_router=documentation.router(),
            render_plugins=[documentation.Page(), YamlRenderPlugin()],
        ),
        request_class=JsonRequest,
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )
    app.state.services = services
    return Entrance(app, hosts)
