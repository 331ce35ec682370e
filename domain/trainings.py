"""The life of a training, from a dataset to an adapter.

    queued ──▶ processing ──▶ completed        cancel: queued ──▶ cancelled, if no attempt was made
      ▲            │  └─────▶ failed                   queued, processing ──▶ cancelling ──▶ cancelled
      └── attempt failed

An attempt goes on from the last checkpoint on the log. Events on the log are proposals, as those of jobs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct
from msgspec.structs import replace

from domain import attempts, datasets
from domain.adapters import IDENTIFIER
from domain.attempts import MAX_FAILURES
from domain.correlation import Correlation
from domain.datasets import Dataset
from domain.errors import ConflictError, Fault, InvalidError, KeyReusedError, NotFoundError
from domain.events import MAX_LABEL, Recorded
from domain.events.adapters import MAX_ENTRIES, MAX_TEXT, NAME_FORM, VERSION_FORM
from domain.events.trainings import (
    CurvePoint,
    Method,
    TrainingAttemptFailed,
    TrainingCancelled,
    TrainingCancelRequested,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingEvent,
    TrainingFailed,
    TrainingRequested,
    TrainingSample,
    TrainingStarted,
)
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View

Status: TypeAlias = Literal["queued", "processing", "completed", "failed", "cancelling", "cancelled"]
OPEN: Final = frozenset({"queued", "processing", "cancelling"})
LIFE: Final = ("training", "processing")
FILTERS: Final = ("dataset_id", "method", "adapter_name")
SAMPLES: Final = "samples"


class TrainingRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `config` leaves out has the method's default: `steps`, `rank`, `learning_rate`, `batch`, `seed` and others,
    as `text2song train --help` lists them.
    """

    dataset_id: str
    method: Method = "taste"
    adapter_name: Annotated[str, Meta(examples=["jazz"])]
    adapter_version: Annotated[str, Meta(examples=["1.0.0"])]
    config: dict[str, str | float | bool | None] = {}
    user_id: str | None = None


class Training(Judged, frozen=True, kw_only=True):
    """`failures` counts attempts that reported an error, `lost` those in a row that ended without word or checkpoint.
    `position` and `origin` are offsets in `partition`, as a job's.
    """

    id: str
    request: TrainingRequested
    status: Status
    created_at: str
    partition: int
    origin: int
    position: int
    attempt: int = 0
    worker_id: str | None = None
    checkpoint: TrainingCheckpointed | None = None
    step: int = 0
    steps: int = 0
    curve: tuple[CurvePoint, ...] = ()
    metrics: Mapping[str, float] = {}
    adapter_id: str | None = None
    samples: tuple[TrainingSample, ...] = ()
    message: str | None = None
    failures: int = 0
    lost: int = 0
    retry_at: str | None = None
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    correlation: Correlation | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_running(self) -> bool:
        return self.status == "processing"

    @property
    def is_stopping(self) -> bool:
        return self.status == "cancelling"


TRAININGS: Final = View(
    "trainings",
    Training,
    fields=lambda training: {
        "status": training.status,
        "open": training.is_open,
        "user_id": training.request.user_id,
        **{name: getattr(training.request, name) for name in FILTERS},
    },
    filters=("status", "open", "user_id", *FILTERS),
)


def folder(training_id: str) -> str:
    """Where a training's checkpoints and samples lie among the objects."""
    return f"trainings/{training_id}"


def sample_path(training_id: str, attempt: int, sha256: str) -> str:
    return f"{folder(training_id)}/{SAMPLES}/{attempt}/{sha256}.flac"


def check(request: TrainingRequest) -> None:
    """Raises InvalidError naming every value out of bounds but those that only the method knows."""
    if faults := _faults(request):
        raise InvalidError(faults)


def check_dataset(dataset: Dataset | None, request: TrainingRequest) -> None:
    """Raises NotFoundError, InvalidError for a method that its type is not for, ConflictError where it has nothing."""
    if dataset is None:
        raise NotFoundError("dataset", request.dataset_id)
    if request.method != "sft" and dataset.request.kind != "preference":
        detail = f"method is {request.method}, which learns from pairs, and dataset {dataset.id} has single samples. "
        raise InvalidError([Fault("/method", f"{detail}Send sft, or name a dataset of type preference.")])
    datasets.check_built(dataset, "learn from")
    datasets.check_filled(dataset)


def _faults(request: TrainingRequest) -> list[Fault]:
    faults = []
    if not IDENTIFIER.fullmatch(request.dataset_id):
        detail = f"dataset_id is {request.dataset_id[:80]!r}, which is no id. Send one that GET /datasets shows."
        faults.append(Fault("/dataset_id", detail))
    forms = {
        "adapter_name": (NAME_FORM, "letters, digits, dots, dashes and underscores, such as jazz"),
        "adapter_version": (VERSION_FORM, "a semantic version, such as 1.0.0"),
    }
    for name, (form, wanted) in forms.items():
        value = getattr(request, name)
        if len(value) > 100 or not re.fullmatch(form, value):
            faults.append(Fault(f"/{name}", f"{name} is {value[:80]!r}; it has at most 100 characters: {wanted}."))
    if request.user_id is not None and len(request.user_id) > MAX_LABEL:
        detail = f"user_id has {len(request.user_id)} characters; the limit is {MAX_LABEL}."
        faults.append(Fault("/user_id", detail))
    if len(request.config) > MAX_ENTRIES:
        faults.append(Fault("/config", f"config has {len(request.config)} entries; the limit is {MAX_ENTRIES}."))
    for name, value in request.config.items():
        if len(name) > MAX_LABEL:
            detail = f"config has a name of {len(name)} characters, {name[:80]!r}…; the limit is {MAX_LABEL}."
            faults.append(Fault("/config", f"{detail} Leave it out: no method takes it."))
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            detail = f"config's {name!r} has {len(value)} characters; the limit is {MAX_TEXT}. Send a shorter one."
            faults.append(Fault("/config", detail))
    return faults


def request(
    training: Training | None, request_digest: str | None, requested: Callable[[], TrainingRequested]
) -> list[TrainingEvent]:
    """A repeated request asks for nothing. Raises KeyReusedError when the id was used for another request."""
    if training is None:
        return [requested()]
    if training.request.request_digest != request_digest:
        raise KeyReusedError("This Idempotency-Key was sent before with another request; use a new key for a new one.")
    return []


def cancel(training: Training | None, training_id: str) -> list[TrainingEvent]:
    match training:
        case None:
            raise NotFoundError("training", training_id)
        case Training(status="completed" | "failed" as status):
            raise ConflictError(
                f"Training {training_id} is {status}; only a queued or processing training can be cancelled."
            )
        case Training(status="cancelling" | "cancelled"):
            return []
    return [TrainingCancelRequested(training_id=training_id)]


def start(training: Training, worker_id: str) -> TrainingStarted:
    return TrainingStarted(training_id=training.id, attempt=training.attempt + 1, worker_id=worker_id)


def release(training: Training, now: str, why: str) -> TrainingAttemptFailed:
    """Hands a training back unharmed."""
    return TrainingAttemptFailed(
        training_id=training.id, attempt=training.attempt, error=why, retry_at=now, released=True
    )


def report_failure(training: Training, error: str, retry_at: str | None) -> TrainingAttemptFailed | TrainingFailed:
    """`retry_at` None says that trying again cannot help."""
    id_, attempt = training.id, training.attempt
    if retry_at is None:
        return TrainingFailed(training_id=id_, attempt=attempt, error=error)
    if training.failures + 1 >= MAX_FAILURES:
        return TrainingFailed(training_id=id_, attempt=attempt, error=f"{error} (tried {MAX_FAILURES} times)")
    return TrainingAttemptFailed(training_id=id_, attempt=attempt, error=error, retry_at=retry_at)


def evolve(training: Training | None, recorded: Recorded) -> Training | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if training is None:
        return _requested(recorded.event, recorded) if isinstance(recorded.event, TrainingRequested) else None
    return judge(training, recorded, _apply)


def _requested(event: TrainingRequested, recorded: Recorded) -> Training:
    return Training(
        id=event.training_id,
        request=event,
        status="queued",
        created_at=recorded.time,
        partition=recorded.position.partition,
        origin=recorded.position.offset,
        position=recorded.position.offset,
        correlation=recorded.correlation,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def _apply(training: Training, recorded: Recorded) -> Training | str:
    """The training after the event, or why the event is refused."""
    now = recorded.time
    match recorded.event:
        case TrainingStarted(attempt=attempt, worker_id=worker_id):
            return attempts.started(training, *LIFE, attempt, worker_id, started_at=now)
        case TrainingCheckpointed() as event:
            if refusal := attempts.not_running(training, *LIFE, event.attempt):
                return refusal
            if not event.storage_path.startswith(f"{folder(training.id)}/"):
                return "its checkpoint is in another training's folder"
            return replace(training, checkpoint=event, step=event.step, steps=event.steps, curve=event.curve, lost=0)
        case TrainingCompleted() as event:
            if refusal := attempts.not_running(training, *LIFE, event.attempt):
                return refusal
            return replace(
                training,
                status="completed",
                step=event.step,
                steps=event.steps,
                curve=event.curve,
                metrics=event.metrics,
                adapter_id=event.adapter_id,
                samples=event.samples,
                message=event.message,
                completed_at=now,
            )
        case TrainingAttemptFailed(attempt=attempt, error=error, retry_at=retry_at, released=released):
            if refusal := attempts.not_running(training, *LIFE, attempt):
                return refusal
            return attempts.requeued(training, error, retry_at, released=released)
        case TrainingFailed(attempt=attempt, error=error):
            if refusal := attempts.not_running(training, *LIFE, attempt):
                return refusal
            return replace(training, status="failed", error=error, completed_at=now)
        case TrainingCancelRequested():
            return attempts.asked_to_stop(training, "training", now)
        case TrainingCancelled():
            return attempts.cancelled(training, "training", now)
        case TrainingRequested():
            return "the training was requested before"
        case _:
            return "not an event of a training"
