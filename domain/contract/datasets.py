from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.contract import Json, Published
from domain.contract.jobs import SUBMITTED
from domain.contract.records import encoded, headed, record
from domain.datasets import FORMATS, Dataset, folder
from domain.events import Event, Recorded
from domain.events.datasets import (
    Agreement,
    DatasetAttemptFailed,
    DatasetBuilt,
    DatasetCreated,
    DatasetExported,
    DatasetExportFailed,
    DatasetExportRequested,
    DatasetFailed,
    DatasetRecordsErased,
    DatasetStarted,
    Filters,
    Format,
    LeftOut,
)
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record

ID: Final = "dataset-1"
CREATED: Final = DatasetCreated(
    dataset_id=ID,
    dataset_name="what we liked",
    kind="preference",
    filters=Filters(min_agreement=0.6, tags=("warm",), adapter_ids=(None, "adapter-1"), sources="votes"),
    description="pairs of January",
    held_out=0.2,
    seed=7,
    user_id="user-1",
    request_digest="digest-1",
)
RETRY_AT: Final = "2026-01-31T12:30:00.000000Z"
DIGEST: Final = f"{7:064}"
BUILT: Final = DatasetBuilt(
    dataset_id=ID,
    attempt=1,
    items=f"datasets/{ID}/1-1/{DIGEST}.jsonl",
    size=1_500,
    digest=DIGEST,
    sample_count=3,
    positions={"abtests/0": 5, "feedback/0": 12, "jobs/0": 40},
    splits={"train": 2, "test": 1},
    agreement=Agreement(alpha=0.5, compared=3, listeners=2, repeated=4, consistent=3, caught=2, passed=2),
    judgements=9,
    left_out={"tied": 1},
)
SUPERVISED: Final = replace(CREATED, kind="supervised")
# The export of the dataset's own type, and the other one that it has.
FORMS: Final = ("own", "unpaired")
FORMATS_ALL: Final[tuple[Format, ...]] = ("preference", "supervised", "unpaired")
REQUESTS: Final = ("request-1", "request-2")
FAILED: Final = DatasetFailed(dataset_id=ID, attempt=1, error="no disk")


def started(attempt: int) -> DatasetStarted:
    return DatasetStarted(dataset_id=ID, attempt=attempt, worker_id="worker-1")


def attempt_failed(attempt: int = 1, *, released: bool) -> DatasetAttemptFailed:
    return DatasetAttemptFailed(
        dataset_id=ID, attempt=attempt, error="out of disk", retry_at=RETRY_AT, released=released
    )


def requested(form: Format, request_id: str = "request-1") -> DatasetExportRequested:
    return DatasetExportRequested(dataset_id=ID, format=form, request_id=request_id)


def exported(form: Format, request_id: str = "request-1", erasures: int = 0) -> DatasetExported:
    return DatasetExported(
        dataset_id=ID,
        format=form,
        request_id=request_id,
        archive=f"datasets/{ID}/exports/{form}/{erasures}-{DIGEST}.zip",
        size=9_000,
        sha256=DIGEST,
        rows=2,
        left_out={"audio_gone": 1},
        missing=(LeftOut(sample_id="sample-1", reason="audio_gone"),),
        erasures=erasures,
    )


def export_failed(form: Format, request_id: str = "request-1") -> DatasetExportFailed:
    return DatasetExportFailed(dataset_id=ID, format=form, request_id=request_id, error="the list is damaged")


def erased(number: int, *feedback_ids: str, jobs: tuple[str, ...] = ()) -> DatasetRecordsErased:
    return DatasetRecordsErased(
        dataset_id=ID, number=number, feedback_ids=feedback_ids, job_ids=jobs, items_left=9 - number
    )


def _state(dataset: Dataset | None) -> Json:
    if dataset is None:
        return {}
    exports = {_form(dataset, export.format): export for export in dataset.exports}
    return {
        "id": dataset.id,
        "status": dataset.status,
        "type": dataset.request.kind,
        "attempt": dataset.attempt,
        "worker_id": dataset.worker_id,
        "failures": dataset.failures,
        "lost": dataset.lost,
        "retry_at": dataset.retry_at,
        "error": dataset.error,
        "digest": dataset.built.digest if dataset.built else None,
        "sample_count": dataset.sample_count,
        **{f"{form}_status": exports[form].status if form in exports else None for form in FORMS},
        **{f"{form}_request": exports[form].request_id if form in exports else None for form in FORMS},
        "erasures": dataset.erasures,
        "erased_feedback": list(dataset.erased_feedback),
        "erased_jobs": list(dataset.erased_jobs),
        "created_at": dataset.created_at,
        "built_at": dataset.built_at,
    }


def _form(dataset: Dataset | None, wanted: Format) -> str | None:
    if dataset is None or wanted not in FORMATS[dataset.request.kind]:
        return None
    return "unpaired" if wanted == "unpaired" else "own"


def _facts(dataset: Dataset | None, event: Any) -> Json:
    attempt = dataset.attempt if dataset else 0
    facts: Json = {"status": dataset.status if dataset else None}
    match event:
        case DatasetStarted() | DatasetAttemptFailed() | DatasetFailed() | DatasetBuilt():
            facts["attempt"] = {attempt: "current", attempt + 1: "next"}.get(event.attempt, "other")
        case DatasetExportRequested(format=form) | DatasetExported(format=form) | DatasetExportFailed(format=form):
            export = dataset.export(form) if dataset else None
            facts["form"] = _form(dataset, form)
            facts["export"] = export.status if export else None
            facts["current"] = export is not None and export.request_id == event.request_id
        case DatasetRecordsErased(number=number):
            facts["number"] = "next" if dataset is not None and number == dataset.erasures + 1 else "other"
            exported_now = (
                [export.format for export in dataset.exports if export.status == "exported"] if dataset else []
            )
            facts |= {f"{form}_exported": form in {_form(dataset, each) for each in exported_now} for form in FORMS}
    match event:
        case DatasetAttemptFailed(released=released):
            facts["released"] = released
        case DatasetBuilt(items=stored) | DatasetExported(archive=stored):
            facts["inside"] = stored.startswith(f"{folder(ID)}/")
    if isinstance(event, DatasetExported):
        facts["aware"] = dataset is not None and event.erasures == dataset.erasures
    return facts


def _accepted(dataset: Dataset | None, recorded: Recorded) -> bool:
    outcome = dataset.outcome(recorded.id) if dataset else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    run = _log(CREATED, started(1), BUILT, requested("preference"), exported("preference"), erased(1, "feedback-1"))
    own, unpaired = [(requested(form), exported(form)) for form in FORMATS["preference"]]
    return {
        "a dataset is built, exported, and told what was erased since": run,
        "a batch delivered again changes nothing": [*run[:3], *run],
        "what comes before the creation is passed over": _log(started(1), BUILT, b"{", CREATED, started(1)),
        "a second creation is refused": _log(CREATED, SUPERVISED, started(1)),
        "the first of two claims holds": _log(CREATED, started(1), replace(started(1), worker_id="worker-2")),
        "a takeover shuts the old attempt out": _log(
            CREATED, started(1), started(2), BUILT, FAILED, attempt_failed(released=False)
        ),
        "a failed attempt goes back to the queue": _log(
            CREATED, started(1), attempt_failed(released=False), BUILT, started(2), replace(BUILT, attempt=2)
        ),
        "a released attempt does not count": _log(CREATED, started(1), attempt_failed(released=True), started(2)),
        "a failed dataset stays failed": _log(CREATED, started(1), FAILED, started(2), requested("preference")),
        "its list lies in its own folder": _log(
            CREATED, started(1), replace(BUILT, items="datasets/dataset-10/1-1/list.jsonl"), BUILT
        ),
        "an export needs a dataset that is built, and a format that it has": _log(
            CREATED, requested("preference"), started(1), BUILT, requested("supervised"), requested("unpaired")
        ),
        "a supervised dataset has other formats": _log(
            SUPERVISED, started(1), BUILT, requested("preference"), requested("supervised"), exported("supervised")
        ),
        "an export is asked for once": _log(
            CREATED, started(1), BUILT, requested("preference"), requested("preference", "request-2"),
            exported("preference", "request-2"), exported("preference"), exported("preference"),
        ),
        "an export that failed may be asked for again": _log(
            CREATED, started(1), BUILT, requested("unpaired"), export_failed("unpaired"),
            requested("unpaired", "request-2"), exported("unpaired"), exported("unpaired", "request-2"),
        ),
        "an archive lies in its dataset's own folder": _log(
            CREATED, started(1), BUILT, requested("preference"),
            replace(exported("preference"), archive="datasets/dataset-10/exports/a.zip"), exported("preference"),
        ),
        "an archive that was made before an erasure is refused": _log(
            CREATED, started(1), BUILT, requested("preference"), erased(1, "feedback-1"), exported("preference"),
            exported("preference", erasures=1),
        ),
        "what is erased is named once and in order": _log(
            erased(1), CREATED, started(1), erased(1), BUILT, erased(2), erased(1, "feedback-2", jobs=("job-1",)),
            erased(1, "feedback-3"), erased(2, "feedback-1", "feedback-2"), erased(2), erased(4), erased(3),
        ),
        "an export that is outdated may be asked for again": _log(
            CREATED, started(1), BUILT, requested("preference"), exported("preference"), erased(1, jobs=("job-1",)),
            requested("preference", "request-2"),
        ),
        **{
            f"the {form} export that {name}": _log(*before, *_refused(form), *then)
            for form in FORMATS["preference"]
            for name, before, then in _lives(form)
        },
        **{
            f"records are erased and {name}": _log(
                CREATED, started(1), BUILT, *before, erased(2), erased(1, "f-2", "f-1", jobs=("j",))
            )
            for name, before in (
                ("nothing is exported", ()),
                ("its own export is there", own),
                ("the unpaired export is there", unpaired),
                ("one is there and the other is asked for", (*own, unpaired[0])),
                ("both are there", (*own, *unpaired)),
            )
        },
        "nothing is exported of what is not built": _log(
            CREATED, requested("preference"), requested("unpaired"), erased(1), started(1), FAILED,
            requested("unpaired"),
        ),
        "a claim counts the attempts": _log(CREATED, started(2), started(1), started(3)),
        "a report ends the count of lost attempts": _log(
            CREATED, started(1), started(2), attempt_failed(1, released=True), attempt_failed(2, released=False)
        ),
        "a release says why, and is said once": _log(
            CREATED, started(1), attempt_failed(released=True), attempt_failed(released=True),
            attempt_failed(released=False), FAILED, BUILT,
        ),
        "what is out of bounds is no event": _log(
            CREATED,
            encoded(started(1)).replace(b":1,", b":0,"),
            encoded(BUILT).replace(b'"datasets/', b'"secrets/'),
            encoded(BUILT).replace(b'"tied"', b'"Tied"'),
            started(1),
        ),
        "an event appended twice under one id holds once": [
            *_log(CREATED, started(1)),
            headed(record(2, started(2)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(CREATED, b'{"type":"DatasetPraised"}', started(1)),
        "an unknown version stops the reader": [
            *_log(CREATED),
            headed(record(1, started(1)), ce_type="text2song.dataset.started.v2"),
            record(2, started(1)),
        ],
        "a tombstone erases nothing here": _log(CREATED, None, started(1)),
        "an event of another topic is none": [
            *_log(CREATED),
            record(1, replace(SUBMITTED, job_id=ID), position=Position("datasets", 0, 1)),
        ],
    }  # fmt: skip


def _lives(form: Format) -> list[tuple[str, tuple[Event, ...], tuple[Event, ...]]]:
    """What has become of an export, and what may come next."""
    built = (CREATED, started(1), BUILT)
    asked = (*built, requested(form))
    made = (*asked, exported(form))
    again = requested(form, "request-2")
    return [
        ("nobody asked for", built, (again,)),
        ("was asked for", asked, (exported(form),)),
        ("was asked for and fails", asked, (export_failed(form), exported(form), export_failed(form), again)),
        ("was made", made, (again, exported(form), export_failed(form))),
        ("is outdated", (*made, erased(1, "feedback-1")), (exported(form, erasures=1), again)),
    ]


def _refused(form: Format) -> tuple[Event, ...]:
    """What no export takes."""
    elsewhere = replace(exported(form), archive="datasets/dataset-10/exports/a.zip")
    return (exported(form, "request-9"), export_failed(form, "request-9"), elsewhere, exported(form, erasures=7))


def _log(*events: Event | bytes | None) -> list[Record]:
    """What is no event calls itself by the type that it has, or a claim."""
    named = [BUILT if isinstance(event, bytes) and b"DatasetBuilt" in event else started(1) for event in events]
    return [
        record(offset, event) if isinstance(event, Event) else record(offset, name, value=event)
        for offset, (event, name) in enumerate(zip(events, named, strict=True))
    ]


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "status": "queued, building, built or failed",
        "type": "supervised or preference",
        "attempt": "the number of the last claim, from 1",
        "worker_id": "who made it",
        "failures": "attempts that reported an error",
        "lost": "attempts in a row that ended without word",
        "retry_at": "when it may be claimed again",
        "error": "what the last failed attempt reported",
        "digest": "the SHA-256 of its list of items, as it was built",
        "sample_count": "the items of the list, without those that were erased",
        "own_status": "requested, exported, outdated or failed: the export of the format that is its type",
        "unpaired_status": "the same of the unpaired export",
        "own_request": "the id of the last request for the export of the format that is its type",
        "unpaired_request": "the same of the unpaired export",
        "erasures": "how many events said what was erased",
        "erased_feedback": "the ids of feedback that it rests on and that was erased since it was built",
        "erased_jobs": "the ids of jobs whose samples it has and that were deleted since it was built",
        "created_at": "when it was created",
        "built_at": "when it was built",
    },
    conditions={
        "status": "the state's status; null while there is no state",
        "attempt": "the event's attempt against the state's: current (equal), next (one more) or other",
        "released": "the event's own field",
        "inside": "whether the event's items or archive begins with datasets/, the event's dataset_id and a slash",
        "form": "own when the event's format is the state's type, unpaired when it is that, else null",
        "export": "the state's own_status or unpaired_status, whichever the form is",
        "current": "whether the event's request_id is the state's own_request or unpaired_request",
        "aware": "whether the event's erasures are the state's",
        "number": "next when the event's number is one more than the state's erasures, else other",
        **{f"{form}_exported": f"whether the state's {form}_status is exported" for form in FORMS},
    },
    proposals=[
        CREATED,
        SUPERVISED,
        started(1),
        started(2),
        *(attempt_failed(attempt, released=released) for attempt in (1, 2) for released in (False, True)),
        BUILT,
        replace(BUILT, items="datasets/dataset-10/1-1/list.jsonl"),
        FAILED,
        *(requested(form, id_) for form in FORMATS_ALL for id_ in REQUESTS),
        *(exported(form, id_) for form in FORMATS_ALL for id_ in REQUESTS),
        *(replace(exported(form), archive="datasets/dataset-10/exports/a.zip") for form in FORMATS_ALL),
        *(export_failed(form, id_) for form in FORMATS_ALL for id_ in REQUESTS),
        erased(1, "feedback-1"),
        erased(2, "feedback-0", jobs=("job-1",)),
        *(exported(form, erasures=1) for form in FORMATS_ALL),
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
