"""The life of a webhook's delivery.

    queued ──▶ sending ──▶ delivered
      ▲            │  └──▶ failed
      └── attempt failed

Events on the log are proposals, as those of jobs.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args
from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import attempts
from domain.correlation import Correlation
from domain.errors import Fault, NotFoundError
from domain.events import Recorded
from domain.events.webhooks import (
    MAX_URL,
    Kind,
    WebhookAttempted,
    WebhookEvent,
    WebhookHastened,
    WebhookQueued,
    WebhookStarted,
)
from domain.jobs import Job
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View

# Looks up where a webhook's URL leads, and says what is wrong with that.
Receivers: TypeAlias = Callable[[str], Awaitable[Sequence[Fault]]]
Status: TypeAlias = Literal["queued", "sending", "delivered", "failed"]
OPEN: Final = frozenset({"queued", "sending"})
LIFE: Final = ("delivery", "sending")
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ENDS: Final[tuple[Kind, ...]] = ("job.completed", "job.failed", "job.cancelled")
SHOWN_ATTEMPTS: Final = 32
URL: Final = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]+)([/?][!-\"$-~]*)?")
AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
PORTS: Final = 65_535


class Attempt(Struct, frozen=True, kw_only=True):
    """`error` is null where the receiver took the message."""

    attempt: int
    at: str
    seconds: float
    status_code: int | None
    error: str | None


class Delivery(Judged, frozen=True, kw_only=True):
    """`tried` are the last attempts that were reported; `failures` and `lost` are as those of a job."""

    id: str
    request: WebhookQueued
    status: Status
    created_at: str
    partition: int
    origin: int
    position: int
    attempt: int = 0
    worker_id: str | None = None
    failures: int = 0
    lost: int = 0
    retry_at: str | None = None
    error: str | None = None
    completed_at: str | None = None
    tried: tuple[Attempt, ...] = ()
    correlation: Correlation | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_running(self) -> bool:
        return self.status == "sending"

    @property
    def is_stopping(self) -> bool:
        return False


WEBHOOKS: Final = View(
    "webhooks",
    Delivery,
    fields=lambda delivery: {
        "status": delivery.status,
        "open": delivery.is_open,
        "job_id": delivery.request.job_id,
        "user_id": delivery.request.user_id,
    },
    filters=("status", "open", "job_id", "user_id"),
)


def host(url: str) -> str:
    """The receiver's host in lower case. Raises ValueError for what is no URL of a webhook."""
    return _parts(url)[0]


def receiver(delivery: Delivery) -> str:
    """Whom a delivery waits for: its host, or the whole of what is no URL."""
    try:
        return host(delivery.request.url)
    except ValueError:
        return delivery.request.url


def url_faults(url: str, pointer: str) -> Iterator[Fault]:
    """What is wrong with the text; where its host leads is looked up elsewhere."""
    try:
        host(url)
    except ValueError as error:
        shown = url if len(url) <= 100 else f"{url[:100]}…"
        detail = f"{pointer.removeprefix('/')} is {shown!r}: {error}. Write one such as https://example.org/hook."
        yield Fault(pointer, detail)


def _parts(url: str) -> tuple[str, int | None]:
    if len(url) > MAX_URL:
        raise ValueError(f"it has {len(url):,} characters; the limit is {MAX_URL:,}")
    if (found := URL.fullmatch(url)) is None:
        raise ValueError("it is no http or https URL in ASCII without a fragment")
    if "@" in found["authority"]:
        raise ValueError("it has a user's name or password, which no webhook is sent")
    if (authority := AUTHORITY.fullmatch(found["authority"])) is None:
        raise ValueError(f"{found['authority']!r} is no host")
    port = None if authority["port"] is None else int(authority["port"])
    if port is not None and not 1 <= port <= PORTS:
        raise ValueError(f"port {port} is not from 1 to {PORTS}")
    return authority["host"].lower(), port


def deliveries(job: Job) -> Iterator[WebhookQueued]:
    """The messages that the job's receiver is owed for what has come of the job so far. Their ids follow from it."""
    request = job.request
    if request.webhook_url is None:
        return
    for kind, mark, at, data in _happened(job):
        if kind in (request.webhook_events or ENDS):
            delivery_id = str(uuid5(NAMESPACE_URL, f"webhook:{job.id}:{kind}:{mark}"))
            body = {"type": kind, "timestamp": at, "data": {"job_id": job.id, **data, **_told(job)}}
            yield WebhookQueued(
                delivery_id=delivery_id,
                message_id=delivery_id,
                job_id=job.id,
                kind=kind,
                url=request.webhook_url,
                body=msgspec.json.encode(body).decode(),
                user_id=request.user_id,
            )


def _happened(job: Job) -> Iterator[tuple[Kind, str, str, dict[str, Any]]]:
    """What a receiver may be told: its kind, what tells it from others of the kind, when it was, and the data."""
    if job.started_at is not None:
        yield "job.started", "", job.started_at, {"status": "processing"}
    for sample in job.kept:
        shown = {"audio_id": sample.event.sample_id, "audio_url": f"/audio/{sample.event.sample_id}/stream"}
        yield "job.sample.generated", str(sample.event.index), sample.created_at, {"status": "processing", **shown}
    if job.status in {"completed", "failed", "cancelled"}:
        samples = [sample.event.sample_id for sample in job.audible]
        ended: Kind = "job.completed" if job.status == "completed" else "job.failed"
        kind: Kind = "job.cancelled" if job.status == "cancelled" else ended
        data = {"status": job.status, "sample_ids": samples, "error": job.error and job.error[:2_000]}
        yield kind, "", job.completed_at or job.created_at, data


def _told(job: Job) -> dict[str, Any]:
    request = job.request
    names = ("model_id", "client_id", "campaign_id", "brief_id", "collection")
    return {name: getattr(request, name) for name in names} | {"created_at": job.created_at}


def replay(delivery: Delivery | None, delivery_id: str, new_id: str) -> Sequence[WebhookEvent]:
    """Has an open delivery tried at once; of one that has ended, another one of the same message is made."""
    match delivery:
        case None:
            raise NotFoundError("webhook delivery", delivery_id)
        case Delivery(status="sending") | Delivery(status="queued", retry_at=None):
            return []
        case Delivery(status="queued"):
            return [WebhookHastened(delivery_id=delivery_id)]
    return [replace(delivery.request, delivery_id=new_id)]


def start(delivery: Delivery, worker_id: str) -> WebhookStarted:
    return WebhookStarted(delivery_id=delivery.id, attempt=delivery.attempt + 1, worker_id=worker_id)


def release(delivery: Delivery, now: str, why: str) -> WebhookAttempted:
    """Hands a delivery back unharmed."""
    return WebhookAttempted(delivery_id=delivery.id, attempt=delivery.attempt, error=why, retry_at=now, released=True)


def evolve(delivery: Delivery | None, recorded: Recorded) -> Delivery | None:
    if delivery is None:
        return _queued(recorded.event, recorded) if isinstance(recorded.event, WebhookQueued) else None
    return judge(delivery, recorded, _apply)


def _queued(event: WebhookQueued, recorded: Recorded) -> Delivery:
    return Delivery(
        id=event.delivery_id,
        request=event,
        status="queued",
        created_at=recorded.time,
        partition=recorded.position.partition,
        origin=recorded.position.offset,
        position=recorded.position.offset,
        correlation=recorded.correlation,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def _apply(delivery: Delivery, recorded: Recorded) -> Delivery | str:
    """The delivery after the event, or why the event is refused."""
    match recorded.event:
        case WebhookStarted(attempt=attempt, worker_id=worker_id):
            return attempts.started(delivery, *LIFE, attempt, worker_id)
        case WebhookAttempted() as event:
            if refusal := attempts.not_running(delivery, *LIFE, event.attempt):
                return refusal
            return _attempted(delivery, event, recorded.time)
        case WebhookHastened():
            if delivery.status != "queued":
                return f"the delivery is {delivery.status}"
            return replace(delivery, retry_at=None)
        case WebhookQueued():
            return "the delivery was queued before"
        case _:
            return "not an event of a delivery"


def _attempted(delivery: Delivery, event: WebhookAttempted, now: str) -> Delivery:
    if event.error is not None and event.retry_at is not None and event.released:
        return attempts.requeued(delivery, event.error, event.retry_at, released=True)
    attempt = Attempt(
        attempt=event.attempt, at=now, seconds=event.seconds, status_code=event.status_code, error=event.error
    )
    tried = replace(delivery, tried=(*delivery.tried, attempt)[-SHOWN_ATTEMPTS:])
    if event.error is None:
        return replace(tried, status="delivered", completed_at=now, error=None)
    if event.retry_at is None:
        return replace(tried, status="failed", completed_at=now, error=event.error)
    return attempts.requeued(tried, event.error, event.retry_at, released=False)
