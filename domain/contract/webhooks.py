from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.contract import Json, Published, records
from domain.contract.records import encoded, headed, record
from domain.events import Event, Recorded
from domain.events.webhooks import WebhookAttempted, WebhookHastened, WebhookQueued, WebhookStarted
from domain.outcomes import OUTCOMES
from domain.ports import Record
from domain.webhooks import Delivery

ID: Final = "delivery-1"
ATTEMPTS: Final = (1, 2, 3)
LATER: Final = "2026-01-31T12:01:00.000000Z"
QUEUED: Final = WebhookQueued(
    delivery_id=ID,
    message_id="message-1",
    job_id="job-1",
    kind="job.completed",
    url="https://example.org/hook",
    body='{"type":"job.completed","timestamp":"2026-01-31T12:00:00.000000Z","data":{"job_id":"job-1"}}',
    user_id="user-1",
)
DELIVERED: Final = WebhookAttempted(delivery_id=ID, attempt=1, seconds=0.25, status_code=204)
REQUEUED: Final = replace(DELIVERED, status_code=500, error="It answered 500.", retry_at=LATER)
FAILED: Final = replace(DELIVERED, status_code=410, error="It answered 410.")
RELEASED: Final = replace(DELIVERED, status_code=None, error="stopped", retry_at=LATER, released=True)
HASTENED: Final = WebhookHastened(delivery_id=ID)


def started(attempt: int, worker_id: str = "worker-1") -> WebhookStarted:
    return WebhookStarted(delivery_id=ID, attempt=attempt, worker_id=worker_id)


def _state(delivery: Delivery | None) -> Json:
    if delivery is None:
        return {}
    same = ("id", "status", "attempt", "worker_id", "failures", "lost", "retry_at", "error", "created_at")
    asked = ("message_id", "job_id", "kind", "url", "body", "user_id")
    return {
        **{name: getattr(delivery, name) for name in (*same, "completed_at")},
        **{name: getattr(delivery.request, name) for name in asked},
    }


def _facts(delivery: Delivery | None, event: Any) -> Json:
    attempt = delivery.attempt if delivery else 0
    facts: Json = {"status": delivery.status if delivery else None}
    if isinstance(event, WebhookStarted | WebhookAttempted):
        facts["attempt"] = {attempt: "current", attempt + 1: "next"}.get(event.attempt, "other")
    if isinstance(event, WebhookAttempted):
        facts |= {"erred": event.error is not None, "retried": event.retry_at is not None, "released": event.released}
    return facts


def _accepted(delivery: Delivery | None, recorded: Recorded) -> bool:
    outcome = delivery.outcome(recorded.id) if delivery else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    run = _log(QUEUED, started(1), DELIVERED)
    return {
        "a message is delivered": run,
        "a batch delivered again changes nothing": [*run[:2], *run],
        "what comes before is passed over": _log(started(1), b"{", HASTENED, QUEUED, started(1)),
        "a second message is refused": _log(QUEUED, replace(QUEUED, url="https://example.com"), started(1)),
        "the first of two claims holds": _log(QUEUED, started(1), started(1, "worker-2"), DELIVERED),
        "a failed attempt waits and is made again": _log(
            QUEUED, started(1), REQUEUED, started(2, "worker-2"), replace(DELIVERED, attempt=2)
        ),
        "a failed attempt waits": _log(QUEUED, started(1), REQUEUED),
        "somebody has it sent at once": _log(QUEUED, HASTENED, started(1), HASTENED, REQUEUED, HASTENED, started(2)),
        "an attempt is lost and another worker makes the next": _log(
            QUEUED, started(1), started(2, "worker-2"), DELIVERED, replace(DELIVERED, attempt=2)
        ),
        "one that is sent at once waits no longer": _log(QUEUED, started(1), REQUEUED, HASTENED),
        "a released attempt does not count": _log(QUEUED, started(1), RELEASED),
        "a released attempt is followed by another": _log(QUEUED, started(1), RELEASED, started(2)),
        "one that failed stays failed": _log(QUEUED, started(1), FAILED, started(2), HASTENED, DELIVERED, REQUEUED),
        "what comes after the end is refused": _log(
            QUEUED, started(1), DELIVERED, DELIVERED, REQUEUED, RELEASED, FAILED, HASTENED, started(2)
        ),
        "what comes between attempts is refused": _log(
            QUEUED, started(1), REQUEUED, DELIVERED, REQUEUED, RELEASED, FAILED, started(2)
        ),
        "a former attempt has no say": _log(QUEUED, started(1), started(2), DELIVERED, REQUEUED, RELEASED, FAILED),
        "a report ends the count of lost attempts": _log(
            QUEUED, started(1), started(2), replace(REQUEUED, attempt=2), started(3), started(4)
        ),
        "without an error it is delivered, with another time too": _log(
            QUEUED, started(1), replace(DELIVERED, retry_at=LATER)
        ),
        "without an error it is delivered, when released too": _log(
            QUEUED, started(1), replace(DELIVERED, retry_at=LATER, released=True)
        ),
        "without another time it has failed, when released too": _log(
            QUEUED, started(1), replace(FAILED, released=True)
        ),
        "events out of order are refused": _log(QUEUED, DELIVERED, started(2), REQUEUED, started(1), DELIVERED),
        "what is out of bounds is no event": _log(
            QUEUED,
            encoded(started(1)).replace(b":1,", b":0,"),
            encoded(REQUEUED).replace(LATER.encode(), b"soon"),
            started(1),
        ),
        "an event appended twice under one id holds once": [
            *_log(QUEUED, started(1)),
            headed(record(2, started(1)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(QUEUED, b'{"type":"WebhookPraised"}', started(1)),
        "an unknown version stops the reader": [
            *_log(QUEUED),
            headed(record(1, started(1)), ce_type="text2song.webhook.started.v2"),
            record(2, HASTENED),
        ],
        "what is no event marks the state as suspect": _log(QUEUED, b"{", started(1)),
        "a tombstone erases nothing here": _log(QUEUED, None, started(1)),
    }


def _log(*events: Event | bytes | None) -> list[Record]:
    return records.log(*events, name=started(1))


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "status": "queued, sending, delivered or failed",
        "attempt": "the number of the last claim, from 1",
        "worker_id": "who made it",
        "failures": "attempts that reported an error",
        "lost": "attempts in a row that ended without word",
        "retry_at": "when the message may be sent again",
        "error": "what the last failed attempt reported",
        "created_at": "when it was queued",
        "completed_at": "when the status became final",
        "message_id": "what the receiver knows the message by; a replay has the same",
        "job_id": "the job that it tells of",
        "kind": "the kind of event that it tells of",
        "url": "where it is sent",
        "body": "the JSON that is sent",
        "user_id": "whose secret signs it",
    },
    conditions={
        "status": "the state's status; null while there is no state",
        "attempt": "the event's attempt against the state's: current (equal), next (one more) or other",
        "erred": "whether the event's error is set",
        "retried": "whether the event's retry_at is set",
        "released": "the event's own field",
    },
    proposals=[
        QUEUED,
        *(started(n, f"worker-{n}") for n in ATTEMPTS),
        *(replace(DELIVERED, attempt=n) for n in ATTEMPTS),
        *(replace(REQUEUED, attempt=n, error=f"error-{n}") for n in ATTEMPTS),
        *(replace(RELEASED, attempt=n, error=f"stop-{n}") for n in ATTEMPTS),
        *(replace(FAILED, attempt=n, error=f"end-{n}") for n in ATTEMPTS),
        # What no process of the studio writes, but a stranger might.
        replace(DELIVERED, retry_at=LATER),
        replace(DELIVERED, released=True),
        replace(DELIVERED, retry_at=LATER, released=True),
        replace(FAILED, released=True),
        HASTENED,
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
