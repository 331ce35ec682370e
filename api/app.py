from importlib.metadata import version
from typing import Final

from litestar import Litestar, get
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from msgspec import Struct

from api import asyncapi, audio, events, health, jobs, models, prompts
from api.admission import admit
from api.problems import MAX_BODY, answer
from api.services import Injected, Services

ROUTES: Final = (
    prompts.create_prompt,
    prompts.list_prompts,
    prompts.get_prompt,
    jobs.submit_generation,
    jobs.cancel_generation,
    jobs.list_jobs,
    jobs.get_statistics,
    jobs.get_generation,
    jobs.get_job,
    jobs.delete_job,
    events.follow_job,
    audio.get_audio,
    audio.get_waveform,
    audio.stream_audio,
    models.list_models,
    asyncapi.get_asyncapi,
    health.live,
    health.ready,
)


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
    active = services.registry.active
    return Index(version=version("text2song-studio"), model=active.id, notice=active.notice)


def create_app(services: Services) -> Litestar:
    app = Litestar(
        [index, *ROUTES],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        before_request=admit,
        exception_handlers={HTTPException: answer, Exception: answer},
        openapi_config=OpenAPIConfig(
            title="Text2Song Studio", version=version("text2song-studio"), path="/schema", use_handler_docstrings=True
        ),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )
    app.state.services = services
    return app
