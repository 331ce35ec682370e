import asyncio
from collections.abc import Awaitable
from typing import Final, Literal, TypeVar

from litestar import Response, get
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE
from msgspec import Struct

from api.http.access import OPEN
from api.http.services import Injected, Services
from domain.errors import UnavailableError

PATIENCE_SECONDS: Final = 1.0
NOTHING: Final = "samples/none"  # the key of no object
T = TypeVar("T")


class Live(Struct, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Worker(Struct, frozen=True, kw_only=True):
    id: str
    model_id: str
    state: str
    device: str


class Ready(Struct, frozen=True, kw_only=True):
    """`views` says whether reads are up to date with the log, `objects` whether audio can be read and kept, `generates`
    whether a worker is there for new jobs. `missing` says of each that is not so what that means.
    """

    status: Literal["ready", "starting", "unavailable"]
    log: bool
    views: bool
    objects: bool
    generates: bool
    workers: list[Worker]
    missing: list[str]


@get("/health/live", operation_id="isLive", opt=OPEN, tags=["health"])
async def live() -> Live:
    return Live()


@get("/health/ready", operation_id="isReady", opt=OPEN, tags=["health"])
async def ready(services: Injected) -> Response[Ready]:
    """503 until the log answers and the views have caught up with it. Without workers jobs are taken, and wait."""
    return await readiness(services)


ROUTES: Final = (live, ready)


class Away(str):
    """Why a server did not answer."""

    __slots__ = ()


async def readiness(services: Services) -> Response[Ready]:
    caught_up, stored = await asyncio.gather(
        _within(services.folded.caught_up(PATIENCE_SECONDS)), _within(services.objects.stat(NOTHING))
    )
    # Of the views it says nothing while the log is away.
    log, views, objects = not isinstance(caught_up, Away), caught_up is True, not isinstance(stored, Away)
    workers = [
        Worker(id=alive.worker_id, model_id=alive.model_id, state=alive.state, device=alive.device)
        for alive in services.feed.workers()
    ]
    generates = any(worker.state in {"ready", "busy"} for worker in workers)
    state = Ready(
        status="ready" if views else "starting" if log else "unavailable",
        log=log,
        views=views,
        objects=objects,
        generates=generates,
        workers=workers,
        missing=[
            text
            for is_there, text in (
                (log, f"log: {caught_up} Nothing is accepted meanwhile."),
                (views or not log, "views: they are being folded from the log; lists lack the latest meanwhile."),
                (objects, f"objects: {stored} Audio cannot be had meanwhile, and workers wait."),
                (generates, "worker: none with a model is there; jobs are accepted, and wait."),
            )
            if not is_there
        ],
    )
    return Response(state, status_code=HTTP_200_OK if views else HTTP_503_SERVICE_UNAVAILABLE)


async def _within(answer: Awaitable[T]) -> T | Away:
    """A server that is away would keep the answer longer than whoever asks has patience."""
    try:
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            return await answer
    except UnavailableError as error:
        return Away(error)
    except TimeoutError:
        return Away(f"it did not answer within {2 * PATIENCE_SECONDS:g} s.")
