"""The life of a training, as a table of what each event makes of each status."""

from typing import Any

import pytest
from msgspec.structs import replace

from domain import trainings
from domain.attempts import MAX_FAILURES
from domain.contract.trainings import (
    CANCEL,
    CANCELLED,
    COMPLETED,
    FAILED,
    ID,
    RELEASED,
    REQUESTED,
    REQUEUED,
    checkpointed,
    started,
)
from domain.errors import ConflictError, InvalidError, KeyReusedError, NotFoundError
from domain.events import Event, Recorded
from domain.ports import Position
from domain.trainings import Training, TrainingRequest, evolve

ROADS: dict[str, tuple[Event, ...]] = {
    "queued": (REQUESTED,),
    "processing": (REQUESTED, started(1)),
    "completed": (REQUESTED, started(1), COMPLETED),
    "failed": (REQUESTED, started(1), FAILED),
    "cancelling": (REQUESTED, started(1), CANCEL),
    "cancelled": (REQUESTED, CANCEL),
}
EVENTS = {
    "started": started(2),
    "checkpointed": checkpointed(),
    "completed": COMPLETED,
    "requeued": REQUEUED,
    "failed": FAILED,
    "cancel": CANCEL,
    "cancelled": CANCELLED,
    "requested": REQUESTED,
}
# What is accepted leads to a status; what is not here is refused, and changes nothing.
ACCEPTED = {
    ("processing", "started"): "processing",
    ("processing", "checkpointed"): "processing",
    ("processing", "completed"): "completed",
    ("processing", "requeued"): "queued",
    ("processing", "failed"): "failed",
    ("queued", "cancel"): "cancelled",
    ("processing", "cancel"): "cancelling",
    ("cancelling", "cancel"): "cancelling",
    ("cancelled", "cancel"): "cancelled",
    ("cancelling", "cancelled"): "cancelled",
    ("cancelled", "cancelled"): "cancelled",
}


def folded(*events: Event) -> Training:
    training: Training | None = None
    for offset, event in enumerate(events):
        time = f"2026-01-31T12:00:{offset:02}.000000Z"
        training = evolve(training, Recorded(Position("trainings", 0, offset), ID, f"e{offset}", time, event))
    assert training is not None
    return training


@pytest.mark.parametrize("status", ROADS)
@pytest.mark.parametrize("name", EVENTS)
def test_each_event_in_each_status(status: str, name: str) -> None:
    before = folded(*ROADS[status])
    assert before.status == status
    after = folded(*ROADS[status], EVENTS[name])
    assert after.status == ACCEPTED.get((status, name), status)
    assert (after.outcomes[-1].reason is None) is ((status, name) in ACCEPTED)


def test_a_checkpoint_is_where_the_next_attempt_goes_on() -> None:
    training = folded(REQUESTED, started(1), checkpointed(20), started(2, "worker-2"))
    assert training.checkpoint == checkpointed(20)
    assert (training.step, training.steps, training.lost) == (20, 60, 1)
    assert folded(REQUESTED, started(1), started(2), checkpointed(40, 2)).lost == 0


def test_nothing_learnt_is_an_end_without_an_adapter() -> None:
    training = folded(REQUESTED, started(1), replace(COMPLETED, adapter_id=None, message="Nothing learnt."))
    assert (training.status, training.adapter_id, training.message) == ("completed", None, "Nothing learnt.")


def test_a_released_attempt_does_not_count() -> None:
    training = folded(REQUESTED, started(1), RELEASED)
    assert (training.status, training.failures, training.error) == ("queued", 0, "stopped")


def test_the_last_failure_is_final() -> None:
    training = folded(REQUESTED, started(1))
    again = trainings.report_failure(training, "out of memory", "2026-01-31T12:01:00.000000Z")
    assert type(again).__name__ == "TrainingAttemptFailed"
    last = trainings.report_failure(replace(training, failures=MAX_FAILURES - 1), "out of memory", "soon")
    assert last.error == "out of memory (tried 3 times)"
    assert type(trainings.report_failure(training, "too few pairs", None)).__name__ == "TrainingFailed"


def test_asking_twice_asks_once() -> None:
    training = folded(REQUESTED)
    assert trainings.request(training, "digest-1", lambda: REQUESTED) == []
    assert trainings.request(None, "digest-1", lambda: REQUESTED) == [REQUESTED]
    with pytest.raises(KeyReusedError):
        trainings.request(training, "digest-2", lambda: REQUESTED)


@pytest.mark.parametrize("status", ["cancelling", "cancelled"])
def test_cancelling_twice_cancels_once(status: str) -> None:
    assert trainings.cancel(folded(*ROADS[status]), ID) == []


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_what_has_ended_cannot_be_cancelled(status: str) -> None:
    with pytest.raises(ConflictError, match=f"is {status}; only a queued or processing"):
        trainings.cancel(folded(*ROADS[status]), ID)


def test_what_is_not_there_cannot_be_cancelled() -> None:
    with pytest.raises(NotFoundError, match="no training 'training-9'"):
        trainings.cancel(None, "training-9")


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"dataset_id": "a/b"}, "/dataset_id", "dataset_id is 'a/b'"),
        ({"dataset_id": ""}, "/dataset_id", "dataset_id is ''"),
        ({"adapter_name": "-jazz"}, "/adapter_name", "adapter_name is '-jazz'"),
        ({"adapter_name": "j" * 101}, "/adapter_name", "at most 100"),
        ({"adapter_version": "1.0"}, "/adapter_version", "such as 1.0.0"),
        ({"adapter_version": "1.0.0\n"}, "/adapter_version", "such as 1.0.0"),
        ({"user_id": "u" * 201}, "/user_id", "the limit is 200"),
        ({"config": {f"x{n}": 1 for n in range(101)}}, "/config", "the limit is 100"),
        ({"config": {"x" * 201: 1}}, "/config", "name of 201 characters"),
        ({"config": {"note": "x" * 1_001}}, "/config", "config's 'note' has 1001 characters; the limit is"),
    ],
)
def test_a_request_out_of_bounds_names_the_value(changes: dict[str, Any], pointer: str, message: str) -> None:
    asked = TrainingRequest(dataset_id="dataset-1", adapter_name="jazz", adapter_version="1.0.0")
    trainings.check(asked)
    with pytest.raises(InvalidError) as error:
        trainings.check(replace(asked, **changes))
    assert [fault.pointer for fault in error.value.faults] == [pointer]
    assert message in str(error.value)
