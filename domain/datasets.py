"""A dataset: a filter over what listeners said, frozen once it is built, and exported to be trained from.

    queued ──▶ building ──▶ built        an export: requested ──▶ exported ──▶ outdated, once records are erased
      ▲           │  └────▶ failed                      └───────▶ failed
      └── attempt failed

What was taken in never changes. Records that are erased afterwards are named, and leave the list and the exports.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias
from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct
from msgspec.structs import replace

from domain import attempts
from domain.attempts import MAX_FAILURES
from domain.correlation import Correlation
from domain.errors import ConflictError, Fault, InvalidError, KeyReusedError, NotFoundError
from domain.events import Recorded
from domain.events.datasets import (
    TOPIC,
    DatasetAttemptFailed,
    DatasetBuilt,
    DatasetCreated,
    DatasetEvent,
    DatasetExported,
    DatasetExportFailed,
    DatasetExportRequested,
    DatasetFailed,
    DatasetRecordsErased,
    DatasetStarted,
    Format,
    Kind,
)
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View

Status: TypeAlias = Literal["queued", "building", "built", "failed"]
ExportStatus: TypeAlias = Literal["requested", "exported", "outdated", "failed"]
OPEN: Final = frozenset({"queued", "building"})
LIFE: Final = ("dataset", "building")
FORMATS: Final[Mapping[Kind, tuple[Format, ...]]] = {
    "supervised": ("supervised", "unpaired"),
    "preference": ("preference", "unpaired"),
}


class Export(Struct, frozen=True, kw_only=True):
    """`made` is set once it has been exported, of an outdated one too."""

    format: Format
    status: ExportStatus
    request_id: str
    requested_at: str
    made: DatasetExported | None = None
    exported_at: str | None = None
    error: str | None = None


class Dataset(Judged, frozen=True, kw_only=True):
    """`failures` counts attempts that reported an error, `lost` those in a row that ended without word.

    `erased_feedback` and `erased_jobs` are ids, sorted, of what it rests on and that was erased since it was built;
    `erasures` counts the events that said so.
    """

    id: str
    request: DatasetCreated
    status: Status
    created_at: str
    partition: int
    position: int
    attempt: int = 0
    worker_id: str | None = None
    failures: int = 0
    lost: int = 0
    retry_at: str | None = None
    error: str | None = None
    built: DatasetBuilt | None = None
    built_at: str | None = None
    exports: tuple[Export, ...] = ()
    erasures: int = 0
    erased_feedback: tuple[str, ...] = ()
    erased_jobs: tuple[str, ...] = ()
    items_left: int | None = None
    correlation: Correlation | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_running(self) -> bool:
        return self.status == "building"

    @property
    def is_stopping(self) -> bool:
        return False

    @property
    def erased(self) -> int:
        """How many erased records and deleted jobs it names."""
        return len(self.erased_feedback) + len(self.erased_jobs)

    @property
    def sample_count(self) -> int | None:
        """Its items, without those that were erased."""
        if self.built is None:
            return None
        return self.built.sample_count if self.items_left is None else self.items_left

    def export(self, wanted: str) -> Export | None:
        return next((export for export in self.exports if export.format == wanted), None)


DATASETS: Final = View(
    TOPIC.name,
    Dataset,
    fields=lambda dataset: {
        "status": dataset.status,
        "open": dataset.is_open,
        "name": dataset.request.dataset_name,
        "type": dataset.request.kind,
        "user_id": dataset.request.user_id,
    },
    filters=("status", "open", "name", "type", "user_id"),
)


def folder(dataset_id: str) -> str:
    """Where its list and its archives lie among the objects."""
    return f"datasets/{dataset_id}"


def export_id(event: DatasetExported | DatasetExportFailed) -> str:
    """The event's id: processes that export the same say it once."""
    kind = "exported" if isinstance(event, DatasetExported) else "failed"
    known = event.erasures if isinstance(event, DatasetExported) else 0
    return str(uuid5(NAMESPACE_URL, f"dataset:{event.dataset_id}:{kind}:{event.request_id}:{known}"))


def erasure_id(event: DatasetRecordsErased) -> str:
    named = ",".join((*event.feedback_ids, "jobs", *event.job_ids))
    return str(uuid5(NAMESPACE_URL, f"dataset:{event.dataset_id}:erased:{event.number}:{named}"))


def create(
    dataset: Dataset | None, request_digest: str | None, creation: Callable[[], DatasetCreated]
) -> list[DatasetEvent]:
    """`creation` is called for a new dataset alone. Raises KeyReusedError when the id was used for another request."""
    if dataset is None:
        return [creation()]
    if dataset.request.request_digest != request_digest:
        raise KeyReusedError("This Idempotency-Key was sent before with another request; use a new key for a new one.")
    return []


def export(dataset: Dataset | None, dataset_id: str, wanted: Format, request_id: str) -> list[DatasetEvent]:
    """What is being exported or is there is not asked for again.

    Raises NotFoundError, ConflictError for a dataset that is not built or has nothing, and InvalidError for a format
    that its type does not have.
    """
    if dataset is None:
        raise NotFoundError("dataset", dataset_id)
    kind = dataset.request.kind
    if wanted not in FORMATS[kind]:
        detail = f"format is {wanted}; a {kind} dataset is exported as {' or '.join(FORMATS[kind])}."
        raise InvalidError([Fault("/format", detail)])
    check_built(dataset, "export")
    there = dataset.export(wanted)
    if there is not None and there.status in {"requested", "exported"}:
        return []
    check_filled(dataset)
    return [DatasetExportRequested(dataset_id=dataset_id, format=wanted, request_id=request_id)]


def check_built(dataset: Dataset, purpose: str) -> None:
    """`purpose` is what it is needed for, as a verb. Raises ConflictError."""
    if dataset.built is None:
        way_out = "create another" if dataset.status == "failed" else "ask again when it is built"
        raise ConflictError(f"Dataset {dataset.id} is {dataset.status}, so there is nothing to {purpose}; {way_out}.")


def check_filled(dataset: Dataset) -> None:
    """Raises ConflictError."""
    if not dataset.sample_count:
        raise ConflictError(
            f"Dataset {dataset.id} has no items; its left_out says why. Create one with a wider filter_query."
        )


def start(dataset: Dataset, worker_id: str) -> DatasetStarted:
    return DatasetStarted(dataset_id=dataset.id, attempt=dataset.attempt + 1, worker_id=worker_id)


def release(dataset: Dataset, now: str, why: str) -> DatasetAttemptFailed:
    """Hands a dataset back unharmed."""
    return DatasetAttemptFailed(dataset_id=dataset.id, attempt=dataset.attempt, error=why, retry_at=now, released=True)


def report_failure(dataset: Dataset, error: str, retry_at: str | None) -> DatasetAttemptFailed | DatasetFailed:
    """`retry_at` None says that trying again cannot help."""
    if retry_at is None:
        return DatasetFailed(dataset_id=dataset.id, attempt=dataset.attempt, error=error)
    if dataset.failures + 1 >= MAX_FAILURES:
        said = f"{error} (tried {MAX_FAILURES} times)"
        return DatasetFailed(dataset_id=dataset.id, attempt=dataset.attempt, error=said)
    return DatasetAttemptFailed(dataset_id=dataset.id, attempt=dataset.attempt, error=error, retry_at=retry_at)


def begun(event: DatasetCreated, recorded: Recorded) -> Dataset:
    return Dataset(
        id=event.dataset_id,
        request=event,
        status="queued",
        created_at=recorded.time,
        partition=recorded.position.partition,
        position=recorded.position.offset,
        correlation=recorded.correlation,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def evolve(dataset: Dataset | None, recorded: Recorded) -> Dataset | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if dataset is None:
        return begun(recorded.event, recorded) if isinstance(recorded.event, DatasetCreated) else None
    return judge(dataset, recorded, _apply)


def _apply(dataset: Dataset, recorded: Recorded) -> Dataset | str:
    """The dataset after the event, or why the event is refused."""
    match recorded.event:
        case DatasetStarted(attempt=attempt, worker_id=worker_id):
            return attempts.started(dataset, *LIFE, attempt, worker_id)
        case DatasetAttemptFailed(attempt=attempt, error=error, retry_at=retry_at, released=released):
            if refusal := attempts.not_running(dataset, *LIFE, attempt):
                return refusal
            return attempts.requeued(dataset, error, retry_at, released=released)
        case DatasetBuilt(attempt=attempt, items=items) as event:
            if refusal := attempts.not_running(dataset, *LIFE, attempt):
                return refusal
            if not items.startswith(f"{folder(dataset.id)}/"):
                return "its list is in another dataset's folder"
            return replace(dataset, status="built", built=event, built_at=recorded.time)
        case DatasetFailed(attempt=attempt, error=error):
            if refusal := attempts.not_running(dataset, *LIFE, attempt):
                return refusal
            return replace(dataset, status="failed", error=error)
        case DatasetExportRequested() | DatasetExported() | DatasetExportFailed() | DatasetRecordsErased():
            return _apply_later(dataset, recorded)
        case DatasetCreated():
            return "the dataset was created before"
        case _:
            return "not an event of a dataset"


def _apply_later(dataset: Dataset, recorded: Recorded) -> Dataset | str:
    """What may happen to a dataset that is built."""
    if dataset.built is None:
        return f"the dataset is {dataset.status}"
    match recorded.event:
        case DatasetExportRequested(format=wanted, request_id=request_id):
            if wanted not in FORMATS[dataset.request.kind]:
                return f"a {dataset.request.kind} dataset has no {wanted} export"
            there = dataset.export(wanted)
            if there is not None and there.status in {"requested", "exported"}:
                return f"the export is {there.status}"
            asked = Export(format=wanted, status="requested", request_id=request_id, requested_at=recorded.time)
            return _with(dataset, asked)
        case DatasetExported() as event:
            export = dataset.export(event.format)
            if refusal := _not_requested(export, event.request_id):
                return refusal
            if export is None or not event.archive.startswith(f"{folder(dataset.id)}/"):
                return "its archive is in another dataset's folder"
            if event.erasures != dataset.erasures:
                return f"it was made after {event.erasures} erasures, and there were {dataset.erasures}"
            made = replace(export, status="exported", made=event, exported_at=recorded.time)
            return _with(dataset, made)
        case DatasetExportFailed() as event:
            export = dataset.export(event.format)
            if refusal := _not_requested(export, event.request_id):
                return refusal
            return dataset if export is None else _with(dataset, replace(export, status="failed", error=event.error))
        case DatasetRecordsErased() as event:
            return _erased(dataset, event)
    return "not an event of a dataset"


def _erased(dataset: Dataset, event: DatasetRecordsErased) -> Dataset | str:
    if event.number != dataset.erasures + 1:
        return f"erasure {event.number} is not the next one, erasure {dataset.erasures} is on record"
    exports = [
        replace(export, status="outdated") if export.status == "exported" else export for export in dataset.exports
    ]
    return replace(
        dataset,
        erasures=event.number,
        erased_feedback=tuple(sorted({*dataset.erased_feedback, *event.feedback_ids})),
        erased_jobs=tuple(sorted({*dataset.erased_jobs, *event.job_ids})),
        items_left=event.items_left,
        exports=tuple(exports),
    )


def _not_requested(export: Export | None, request_id: str) -> str | None:
    if export is None or export.request_id != request_id:
        return "no such export was requested"
    return None if export.status == "requested" else f"the export is {export.status}"


def _with(dataset: Dataset, export: Export) -> Dataset:
    others = [each for each in dataset.exports if each.format != export.format]
    return replace(dataset, exports=tuple(sorted([*others, export], key=lambda each: each.format)))
