from typing import Final, Literal

from litestar import Response, get
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE
from msgspec import Struct

from api.services import Injected
from domain.errors import UnavailableError

PATIENCE_SECONDS: Final = 1.0


class Live(Struct, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Worker(Struct, frozen=True, kw_only=True):
    id: str
    model_id: str
    state: str
    device: str


class Ready(Struct, frozen=True, kw_only=True):
    """`views` says whether reads are up to date with the log."""

    status: Literal["ready", "starting", "unavailable"]
    log: bool
    views: bool
    workers: list[Worker]


@get("/health/live", operation_id="isLive", tags=["health"])
async def live() -> Live:
    return Live()


@get("/health/ready", operation_id="isReady", tags=["health"])
async def ready(services: Injected) -> Response[Ready]:
    """503 until the log answers, the views have caught up with it, and a worker has its model loaded."""
    try:
        views, log = await services.folded.caught_up(PATIENCE_SECONDS), True
    except UnavailableError:
        views, log = False, False
    workers = [
        Worker(id=alive.worker_id, model_id=alive.model_id, state=alive.state, device=alive.device)
        for alive in services.feed.workers()
    ]
    is_ready = views and any(worker.state in {"ready", "busy"} for worker in workers)
    state = Ready(
        status="ready" if is_ready else "starting" if log else "unavailable", log=log, views=views, workers=workers
    )
    return Response(state, status_code=HTTP_200_OK if is_ready else HTTP_503_SERVICE_UNAVAILABLE)
