"""Trainings: asked for, followed, listed, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final, get_args

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED
from msgspec import Struct

from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.renditions import AudioFile
from api.http.services import Injected, Services
from api.http.streams import stream
from api.prompts import IdempotencyKey
from commands import trainings as commands
from commands.transact import existing, load, seen
from domain.errors import ConflictError, DamagedError, Fault, InvalidError, NotFoundError
from domain.events.progress import TrainingProgressed
from domain.events.trainings import Method, SampleFile, TrainingSample
from domain.outcomes import Outcome
from domain.trainings import TRAININGS, Status, Training, TrainingRequest, evolve, sample_path
from projections.freshness.current import WAIT_SECONDS
from workers.mastering import content_type
from workers.training.config import config
from workers.training.errors import TrainingError

HEARTBEAT_SECONDS: Final = 15.0
NAMES: Final = {
    "TrainingStarted": "started",
    "TrainingCheckpointed": "checkpoint",
    "TrainingAttemptFailed": "queued",
    "TrainingCompleted": "completed",
    "TrainingFailed": "failed",
    "TrainingCancelled": "cancelled",
}


class TrainingSampleBody(Struct, frozen=True, kw_only=True):
    """A prompt's clip by the base model, and the one of the same seed by the adapter; both addresses are of FLACs.
    Where it `is_held_out`, the adapter has not learnt from the prompt.
    """

    prompt: str
    seed: int
    duration_seconds: float
    is_held_out: bool
    before_url: str
    after_url: str


class TrainingBody(Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 100. Each point of `curve` has its `step` and what was measured there. `adapter_id` null of a
    completed training says that nothing was learnt, and `message` why. `samples` are there once it is completed.
    """

    id: str
    dataset_id: str
    method: Method
    adapter_name: str
    adapter_version: str
    status: Status
    progress: float
    stage: str | None
    step: int
    steps: int
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    config: dict[str, str | float | bool | None]
    adapter_id: str | None
    samples: list[TrainingSampleBody]
    message: str | None
    error: str | None
    attempt: int
    user_id: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    suspect: bool
    outcomes: list[Outcome]


class TrainingReceipt(Struct, frozen=True, kw_only=True):
    training_id: str
    status: Status


class TrainingProgress(Struct, frozen=True, kw_only=True):
    """`values` are what was measured at the step."""

    training_id: str
    attempt: int
    stage: str
    step: int
    steps: int
    values: dict[str, float]


@post("/trainings", operation_id="requestTraining", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["trainings"])
async def request_training(
    services: Injected, data: JSONBody[TrainingRequest], idempotency_key: IdempotencyKey = None
) -> Response[TrainingReceipt]:
    """Queues a training, which ends by registering the adapter. A retry under the same `Idempotency-Key` is the same
    training.
    """
    try:
        config(data.method, data.config)
    except TrainingError as error:
        raise InvalidError([Fault("/config", str(error))]) from None
    data, owner = services.caller.signed(data), services.caller.idempotency_owner
    receipt = await commands.request(services.journal, services.views, data, idempotency_key, owner=owner)
    training = None if idempotency_key is None else await load(services.views, TRAININGS, receipt.id)
    return Response(
        TrainingReceipt(training_id=receipt.id, status=training.status if training else "queued"),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/trainings/{receipt.id}", **positions.headers(*receipt.positions)},
    )


@get("/trainings", operation_id="listTrainings", tags=["trainings"])
async def list_trainings(
    services: Injected,
    *,
    status: FromQuery[str | None] = None,
    dataset_id: FromQuery[str | None] = None,
    method: FromQuery[str | None] = None,
    adapter_name: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[TrainingBody]:
    """Newest first. Every filter narrows."""
    for name, value, known in (("status", status, get_args(Status)), ("method", method, get_args(Method))):
        if value is not None and value not in known:
            raise InvalidError([Fault(f"/{name}", f"{name} is {value!r}; it is one of {', '.join(known)}.")])
    equal = {"status": status, "dataset_id": dataset_id, "method": method, "adapter_name": adapter_name}
    query = pages.query(limit, offset, cursor, equal=equal)
    return await pages.page(services.views, TRAININGS, query, partial(body, services))


@get("/trainings/{training_id:str}", operation_id="getTraining", opt=CURRENT, tags=["trainings"])
async def get_training(services: Injected, training_id: FromPath[str]) -> Response[TrainingBody]:
    training = await existing(services.views, TRAININGS, training_id, "training")
    return Response(body(services, training), headers=positions.headers(*seen(TRAININGS, training)))


@delete(
    "/trainings/{training_id:str}",
    operation_id="cancelTraining",
    opt=CURRENT,
    status_code=HTTP_200_OK,
    tags=["trainings"],
)
async def cancel_training(services: Injected, training_id: FromPath[str]) -> Response[TrainingReceipt]:
    """Answers 202 while the worker still has to stop; the training is `cancelled` once its checkpoints are gone."""
    receipt = await commands.cancel(services.journal, services.views, training_id)
    shown = await services.views.show(receipt.positions)
    training = await load(services.views, TRAININGS, training_id) if shown else None
    if training and receipt.event_id and (outcome := training.outcome(receipt.event_id)) and outcome.reason:
        raise ConflictError(f"The request came too late: {outcome.reason}.")
    status: Status = training.status if training else "cancelling"
    return Response(
        TrainingReceipt(training_id=training_id, status=status),
        status_code=HTTP_200_OK if status == "cancelled" else HTTP_202_ACCEPTED,
        headers={"Location": f"/trainings/{training_id}", **positions.headers(*receipt.positions)},
    )


@get("/trainings/{training_id:str}/events", operation_id="followTraining", opt=CURRENT, tags=["trainings"])
async def follow_training(services: Injected, training_id: FromPath[str]) -> Response[Any]:
    """`snapshot`, then `started`, `progress`, `checkpoint`, `queued`, `completed`, `failed`, `cancelling` or
    `cancelled` as they happen; closes after the last.
    """
    await existing(services.views, TRAININGS, training_id, "training")
    return ServerSentEvent(_events(services, training_id))


@get(
    "/trainings/{training_id:str}/samples/{name:str}", operation_id="getTrainingSample", opt=CURRENT, tags=["trainings"]
)
async def get_sample(
    request: Request[Any, Any, Any], services: Injected, training_id: FromPath[str], name: FromPath[str]
) -> Response[Any]:
    """What the model made before the training, or after it, as `samples` of the training name it. Honours Range,
    If-Range and If-None-Match.
    """
    training = await existing(services.views, TRAININGS, training_id, "training")
    found = {_name(at, side): file for at, sample in enumerate(training.samples) for side, file in _files(sample)}
    if (file := found.get(name)) is None:
        raise NotFoundError("sample of the training", name)
    key = sample_path(training.id, training.attempt, file.sha256)
    stored = await services.objects.stat(key)
    if stored is None or stored.size != file.size:
        gone = "gone" if stored is None else f"damaged: it has {stored.size:,} bytes, and {file.size:,} were stored"
        raise DamagedError(f"The file {key!r} is {gone}. Put a sound copy in its place.")
    content = AudioFile(file.size, file.sha256, partial(services.objects.read, key))
    return await stream(
        request.headers, content, etag=f'"{file.sha256}"', file_name=name, media_type=content_type("flac")
    )


ROUTES: Final = (request_training, list_trainings, get_training, cancel_training, follow_training, get_sample)


def _files(sample: TrainingSample) -> tuple[tuple[str, SampleFile], ...]:
    return ("before", sample.before), ("after", sample.after)


def _name(at: int, side: str) -> str:
    return f"{at + 1}-{side}.flac"


def _sample(training: Training, at: int, sample: TrainingSample) -> TrainingSampleBody:
    place = f"/trainings/{training.id}/samples"
    return TrainingSampleBody(
        **{name: getattr(sample, name) for name in ("prompt", "seed", "duration_seconds", "is_held_out")},
        before_url=f"{place}/{_name(at, 'before')}",
        after_url=f"{place}/{_name(at, 'after')}",
    )


def body(services: Services, training: Training) -> TrainingBody:
    request = training.request
    live = services.feed.training_progress(training.id, training.attempt) if training.is_running else None
    step, steps = training.step, training.steps
    if live is not None and live.stage == "training":
        step, steps = max(step, live.step), live.steps
    same = ("id", "status", "adapter_id", "message", "error", "attempt", "created_at", "started_at", "completed_at")
    asked = ("dataset_id", "method", "adapter_name", "adapter_version", "config", "user_id")
    return TrainingBody(
        **{name: getattr(training, name) for name in (*same, "suspect")},
        **{name: getattr(request, name) for name in asked},
        progress=100.0 if training.status == "completed" else round(100 * step / steps, 1) if steps else 0.0,
        stage=live.stage if live else None,
        step=step,
        steps=steps,
        samples=[_sample(training, at, sample) for at, sample in enumerate(training.samples)],
        metrics=dict(training.metrics),
        curve=[{"step": float(point.step), **point.values} for point in training.curve],
        outcomes=list(training.outcomes),
    )


async def _events(services: Services, training_id: str) -> AsyncIterator[ServerSentEventMessage]:
    with services.feed.listen(training_id) as queue:
        training = await existing(services.views, TRAININGS, training_id, "training")
        yield _message("snapshot", training.position, body(services, training))
        folds = True
        while training.is_open:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    news = await queue.get()
            except TimeoutError:
                yield ServerSentEventMessage(data=None, comment="still here")
                continue
            if news is None:
                return
            if isinstance(news.event, TrainingProgressed):
                if news.event.attempt == training.attempt and training.is_running:
                    yield _message("progress", None, _progress(news.event))
                continue
            before, training = training, evolve(training, news) or training
            outcome = training.outcome(news.id)
            if training.outcomes is before.outcomes or outcome is None or outcome.reason:
                continue
            name = NAMES.get(news.type) or (training.status if news.type == "TrainingCancelRequested" else None)
            if name is not None:
                folds = folds and await services.folded.wait([news.position], WAIT_SECONDS)
                yield _message(name, training.position, body(services, training))


def _progress(event: TrainingProgressed) -> TrainingProgress:
    return TrainingProgress(
        training_id=event.training_id,
        attempt=event.attempt,
        stage=event.stage,
        step=event.step,
        steps=event.steps,
        values=dict(event.values),
    )


def _message(name: str, version: int | None, data: Any) -> ServerSentEventMessage:
    return ServerSentEventMessage(event=name, id=version, data=msgspec.json.encode(data).decode())
