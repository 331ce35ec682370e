from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.contract import Json, Published, records
from domain.contract.jobs import SUBMITTED
from domain.contract.records import encoded, headed, record
from domain.events import Event, Recorded
from domain.events.trainings import (
    CurvePoint,
    SampleFile,
    TrainingAttemptFailed,
    TrainingCancelled,
    TrainingCancelRequested,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingFailed,
    TrainingRequested,
    TrainingSample,
    TrainingStarted,
)
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record
from domain.trainings import Training, folder

ID: Final = "training-1"
ATTEMPTS: Final = (1, 2, 3)
LATER: Final = "2026-01-31T12:01:00.000000Z"
CURVE: Final = (CurvePoint(step=1, values={"loss": 2.5}), CurvePoint(step=20, values={"loss": 2.25}))
REQUESTED: Final = TrainingRequested(
    training_id=ID,
    dataset_id="dataset-1",
    method="dpo",
    adapter_name="jazz",
    adapter_version="1.0.0",
    config={"learning_rate": 0.0001, "base": "mean", "shuffled": True, "decay": None},
    user_id="user-1",
    request_digest="digest-1",
)
COMPLETED: Final = TrainingCompleted(
    training_id=ID,
    attempt=1,
    step=50,
    steps=60,
    adapter_id="adapter-1",
    message="Trained 60 steps.",
    metrics={"held_out_accuracy": 0.75},
    curve=CURVE,
    samples=(
        TrainingSample(
            prompt="slow blues, brushed drums",
            seed=7,
            duration_seconds=5.0,
            is_held_out=True,
            before=SampleFile(size=81_000, sha256="b" * 64),
            after=SampleFile(size=82_000, sha256="a" * 64),
        ),
    ),
)
FAILED: Final = TrainingFailed(training_id=ID, attempt=1, error="too few pairs")
REQUEUED: Final = TrainingAttemptFailed(training_id=ID, attempt=1, error="disk full", retry_at=LATER)
RELEASED: Final = replace(REQUEUED, error="stopped", released=True)
CANCEL: Final = TrainingCancelRequested(training_id=ID)
CANCELLED: Final = TrainingCancelled(training_id=ID, worker_id="worker-1")


def started(attempt: int, worker_id: str = "worker-1") -> TrainingStarted:
    return TrainingStarted(training_id=ID, attempt=attempt, worker_id=worker_id)


def checkpointed(step: int = 20, attempt: int = 1) -> TrainingCheckpointed:
    return TrainingCheckpointed(
        training_id=ID,
        attempt=attempt,
        step=step,
        steps=60,
        storage_path=f"{folder(ID)}/{attempt}/7/{step}.safetensors",
        sha256=f"{step:064}",
        curve=CURVE,
    )


RUN: Final = (REQUESTED, started(1), checkpointed(20), checkpointed(40), COMPLETED)


def _state(training: Training | None) -> Json:
    if training is None:
        return {}
    kept = training.checkpoint
    same = ("id", "status", "attempt", "worker_id", "step", "steps", "adapter_id", "message", "failures", "lost")
    times = ("retry_at", "error", "created_at", "started_at", "completed_at")
    return {
        **{name: getattr(training, name) for name in (*same, *times)},
        "checkpoint": kept.storage_path if kept else None,
        "sha256": kept.sha256 if kept else None,
        "curve": to_builtins(training.curve) if kept or training.status == "completed" else None,
        "metrics": dict(training.metrics) if training.status == "completed" else None,
    }


def _facts(training: Training | None, event: Any) -> Json:
    attempt = training.attempt if training else 0
    facts: Json = {"status": training.status if training else None, "attempted": attempt > 0}
    match event:
        case (
            TrainingStarted()
            | TrainingCheckpointed()
            | TrainingCompleted()
            | TrainingAttemptFailed()
            | TrainingFailed()
        ):
            facts["attempt"] = {attempt: "current", attempt + 1: "next"}.get(event.attempt, "other")
    match event:
        case TrainingCheckpointed() as kept:
            facts["own"] = kept.storage_path.startswith(f"{folder(kept.training_id)}/")
        case TrainingAttemptFailed(released=released):
            facts["released"] = released
    return facts


def _accepted(training: Training | None, recorded: Recorded) -> bool:
    outcome = training.outcome(recorded.id) if training else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    run = _log(*RUN)
    elsewhere = replace(checkpointed(), storage_path="trainings/training-10/1/7/20.safetensors")
    return {
        "a training runs to its end": run,
        "a batch delivered again changes nothing": [*run[:3], *run],
        "what comes before the request is passed over": _log(started(1), b"{", CANCEL, REQUESTED, started(1)),
        "a second request is refused": _log(REQUESTED, replace(REQUESTED, method="sft"), started(1)),
        "events out of order are refused": _log(
            REQUESTED,
            checkpointed(),
            COMPLETED,
            started(2),
            CANCELLED,
            REQUEUED,
            RELEASED,
            FAILED,
            started(1),
            checkpointed(20, 2),
            replace(COMPLETED, attempt=2),
            checkpointed(),
        ),
        "a checkpoint lies in its own training's folder": _log(REQUESTED, started(1), elsewhere, checkpointed()),
        "what is out of bounds is no event": _log(
            REQUESTED,
            encoded(started(1)).replace(b":1,", b":0,"),
            encoded(checkpointed()).replace(b'"trainings/', b'"secrets/'),
            encoded(REQUEUED).replace(LATER.encode(), b"soon"),
            started(1),
        ),
        "the first of two claims holds": _log(REQUESTED, started(1), started(1, "worker-2"), checkpointed()),
        "a takeover goes on from the checkpoint and shuts the old attempt out": _log(
            REQUESTED,
            started(1),
            checkpointed(20),
            started(2, "worker-2"),
            checkpointed(40),
            COMPLETED,
            checkpointed(40, 2),
            replace(COMPLETED, attempt=2),
        ),
        "lost attempts are counted until a checkpoint is made": _log(
            REQUESTED, started(1), started(2), started(3), checkpointed(20, 3), started(4, "worker-4")
        ),
        "a failed attempt goes back to the queue": _log(
            REQUESTED, started(1), REQUEUED, started(2, "worker-2"), checkpointed(20, 2)
        ),
        "a failure is counted once": _log(REQUESTED, started(1), REQUEUED, REQUEUED),
        "a report ends the count of lost attempts": _log(
            REQUESTED, started(1), started(2), replace(REQUEUED, attempt=2), started(3), started(4)
        ),
        "a release leaves the count of lost attempts": _log(
            REQUESTED, started(1), started(2), replace(RELEASED, attempt=2), started(3), started(4)
        ),
        "a former attempt has no say": _log(
            *RUN[:-1], started(2), COMPLETED, REQUEUED, RELEASED, FAILED, checkpointed(60)
        ),
        "an attempt that was reported has no say": _log(
            *RUN[:-1], REQUEUED, COMPLETED, REQUEUED, RELEASED, FAILED, checkpointed(60)
        ),
        "a released attempt does not count": _log(REQUESTED, started(1), RELEASED),
        "a failed training stays failed": _log(
            REQUESTED, started(1), FAILED, started(2), CANCEL, REQUEUED, RELEASED, checkpointed(), COMPLETED, FAILED
        ),
        "nothing learnt is an end without an adapter": _log(
            REQUESTED, started(1), replace(COMPLETED, adapter_id=None, step=0, message="Nothing learnt.", curve=())
        ),
        "a queued training is cancelled at once": _log(REQUESTED, CANCEL, started(1), CANCEL, CANCELLED),
        "a running training is cancelled by its worker": _log(
            REQUESTED, started(1), CANCEL, checkpointed(), COMPLETED, REQUEUED, RELEASED, FAILED, CANCEL, CANCELLED
        ),
        "a training between attempts is cancelled by a worker": _log(
            REQUESTED, started(1), REQUEUED, CANCEL, started(2), CANCELLED, started(2)
        ),
        "a completed training cannot be cancelled": _log(
            *RUN, CANCEL, CANCELLED, started(2), checkpointed(), COMPLETED, REQUEUED, RELEASED, FAILED
        ),
        "an event appended twice under one id holds once": [
            *_log(REQUESTED, started(1)),
            headed(record(2, started(1)), ce_id="event-1"),
        ],
        "an id is forgotten after eight verdicts": [
            *_log(REQUESTED, started(1), *([checkpointed(20, 2)] * 8)),
            headed(record(10, started(2)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(REQUESTED, b'{"type":"TrainingPraised"}', started(1)),
        "unknown fields are ignored and missing ones have their default": [
            *_log(REQUESTED, started(1)),
            record(2, REQUEUED, value=encoded(REQUEUED).replace(b',"released":false', b',"mood":"calm"')),
        ],
        "an unknown version stops the reader": [
            *_log(REQUESTED),
            headed(record(1, started(1)), ce_type="text2song.training.started.v2"),
            record(2, CANCEL),
        ],
        "what is no event marks the state as suspect": _log(REQUESTED, b"{", started(1)),
        "a tombstone erases nothing here": _log(REQUESTED, None, started(1)),
        "an event of another topic is none": [
            *_log(REQUESTED),
            record(1, replace(SUBMITTED, job_id=ID), position=Position("trainings", 0, 1)),
        ],
    }


def _log(*events: Event | bytes | None) -> list[Record]:
    return records.log(*events, name=started(1))


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "status": "queued, processing, completed, failed, cancelling or cancelled",
        "attempt": "the number of the last claim, from 1",
        "worker_id": "who made it",
        "step": "how many steps were done at the last checkpoint, or at the end",
        "steps": "of how many",
        "adapter_id": "the adapter that came of it; null once completed says that nothing was learnt",
        "message": "how it ended, for people",
        "failures": "attempts that reported an error",
        "lost": "attempts in a row that ended without word or checkpoint",
        "retry_at": "when the training may be claimed again",
        "error": "what the last failed attempt reported",
        "created_at": "when it was requested",
        "started_at": "when the last attempt began",
        "completed_at": "when the status became final",
        "checkpoint": "where the last checkpoint is stored",
        "sha256": "its digest",
        "curve": "what was measured, by step, as the last checkpoint or the end has it",
        "metrics": "what was measured at the end",
    },
    conditions={
        "status": "the state's status; null while there is no state",
        "attempted": "whether the state's attempt is over 0",
        "attempt": "the event's attempt against the state's: current (equal), next (one more) or other",
        "own": "whether the event's storage_path begins with trainings/, the event's training_id and a slash",
        "released": "the event's own field",
    },
    proposals=[
        REQUESTED,
        *(started(n, f"worker-{n}") for n in ATTEMPTS),
        *(checkpointed(20 * n, n) for n in ATTEMPTS),
        replace(checkpointed(), storage_path="trainings/training-10/1/7/20.safetensors"),
        *(replace(COMPLETED, attempt=n) for n in ATTEMPTS),
        *(
            TrainingAttemptFailed(training_id=ID, attempt=n, error=f"error-{n}", retry_at=LATER, released=released)
            for n in ATTEMPTS
            for released in (False, True)
        ),
        *(replace(FAILED, attempt=n, error=f"error-{n}") for n in ATTEMPTS),
        CANCEL,
        CANCELLED,
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
