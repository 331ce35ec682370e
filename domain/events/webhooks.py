from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from domain.events import END, Attempt, ErrorText, Event, Identifier, Label, Moment
from domain.ports import Topic

# The kinds of events that a receiver may be told of, by the names of the job's own.
Kind: TypeAlias = Literal["job.started", "job.sample.generated", "job.completed", "job.failed", "job.cancelled"]

TOPIC: Final = Topic("webhooks", partitions=4)
MAX_URL: Final = 2_000
MAX_BODY: Final = 100_000
WebhookUrl: TypeAlias = Annotated[str, Meta(pattern=rf"^https?://[!-~]+{END}", max_length=MAX_URL)]


class WebhookEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    delivery_id: Identifier

    @property
    def key(self) -> str:
        return self.delivery_id


class WebhookQueued(WebhookEvent, frozen=True, kw_only=True, tag="WebhookQueued"):
    """A message for a receiver. `body` is the JSON that is sent, the same at every attempt.

    `message_id` is what the receiver knows it by: a replay is another delivery of the same message.
    `user_id` is whose secret signs it.
    """

    name = "webhook.queued"
    message_id: Identifier
    job_id: Identifier
    kind: Label
    url: WebhookUrl
    body: Annotated[str, Meta(min_length=2, max_length=MAX_BODY)]
    user_id: Label | None = None


class WebhookStarted(WebhookEvent, frozen=True, kw_only=True, tag="WebhookStarted"):
    """A claim: of all claims to one attempt, the first on the log holds."""

    name = "webhook.started"
    attempt: Attempt
    worker_id: Identifier


class WebhookAttempted(WebhookEvent, frozen=True, kw_only=True, tag="WebhookAttempted"):
    """`error` is null where the receiver took the message; `status_code` is null where it did not answer.

    After an error the message is sent again from `retry_at` on, or never where that is null. `released` means that the
    process was told to stop: the attempt does not count.
    """

    name = "webhook.attempted"
    attempt: Attempt
    seconds: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    status_code: Annotated[int, Meta(ge=100, le=999)] | None = None
    error: ErrorText | None = None
    retry_at: Moment | None = None
    released: bool = False


class WebhookHastened(WebhookEvent, frozen=True, kw_only=True, tag="WebhookHastened"):
    """Somebody asked for the next attempt at once."""

    name = "webhook.hastened"


EVENTS: Final = (WebhookQueued, WebhookStarted, WebhookAttempted, WebhookHastened)
