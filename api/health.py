import asyncio
from contextlib import suppress
from typing import Final, Literal

from litestar import Response, get
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE
from msgspec import Struct

from api.http.services import Injected
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
    """`views` says whether reads are up to date with the log, `generates` whether a worker is there for new jobs."""

    status: Literal["ready", "starting", "unavailable"]
    log: bool
    views: bool
    generates: bool
    workers: list[Worker]


@get("/health/live", operation_id="isLive", tags=["health"])
async def live() -> Live:
    return Live()


@get("/health/ready", operation_id="isReady", tags=["health"])
async def ready(services: Injected) -> Response[Ready]:
    """503 until the log answers and the views have caught up with it. Without workers jobs are taken, and wait."""
    log = views = False
    # A log that is away would keep the answer longer than whoever asks has patience.
    with suppress(UnavailableError, TimeoutError):
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            views, log = await services.folded.caught_up(PATIENCE_SECONDS), True
    workers = [
        Worker(id=alive.worker_id, model_id=alive.model_id, state=alive.state, device=alive.device)
        for alive in services.feed.workers()
    ]
    state = Ready(
        status="ready" if views else "starting" if log else "unavailable",
        log=log,
        views=views,
        generates=any(worker.state in {"ready", "busy"} for worker in workers),
        workers=workers,
    )
    return Response(state, status_code=HTTP_200_OK if views else HTTP_503_SERVICE_UNAVAILABLE)


ROUTES: Final = (live, ready)
