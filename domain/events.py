"""The published contract: every event on the log, and the one place where records become events.

An event is a JSON object tagged by `type`; its envelope is CloudEvents 1.0 in Kafka's binary mode. Fields are only
ever added, with defaults. Anything else is a new version with an upcaster.
"""

import re
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from domain.errors import UnknownVersionError
from domain.ports import Message, Position, Record, Topic

Format: TypeAlias = Literal["flac", "wav", "mp3", "ogg"]

SOURCE: Final = "/text2song"
FOREVER: Final = None
HOUR: Final = 3600.0
CANONICAL: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z")

TOPICS: Final = {
    topic.name: topic
    for topic in (
        Topic("prompts", partitions=4, retention_seconds=FOREVER),
        Topic("jobs", partitions=4, retention_seconds=FOREVER),
        Topic("progress", partitions=1, retention_seconds=HOUR),
        Topic("deadletter", partitions=1, retention_seconds=30 * 24 * HOUR),
    )
}

MAX_DEPTH: Final = 64
STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS: Final = re.compile(rb"[\[\]{}]")


class PromptAttributes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    style: str | None = None
    tempo: str | None = None
    instrumentation: tuple[str, ...] = ()
    mood: str | None = None
    duration: float | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. `top_k` 0 and `top_p` 1 keep every token; `guidance_scale` 1 is no guidance."""

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float = 3.0


class AdapterSnapshot(Struct, frozen=True, kw_only=True):
    """An adapter as it was when the job was accepted, so that a worker looks nothing up."""

    id: str
    name: str
    version: str
    base_model: str
    storage_path: str
    base_revision: str | None = None


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    topic: ClassVar[str]
    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def key(self) -> str:
        raise NotImplementedError


class PromptCreated(Event, frozen=True, kw_only=True, tag="PromptCreated"):
    topic = "prompts"
    name = "prompt.created"
    prompt_id: str
    text: str
    attributes: PromptAttributes = PromptAttributes()
    user_id: str | None = None

    @property
    def key(self) -> str:
        return self.prompt_id


class JobEvent(Event, frozen=True, kw_only=True):
    topic = "jobs"
    job_id: str

    @property
    def key(self) -> str:
        return self.job_id


class JobSubmitted(JobEvent, frozen=True, kw_only=True, tag="JobSubmitted"):
    """Everything the worker needs. `seeds` has one seed a sample; `duration` is in seconds.

    `request_digest` is the SHA-256 of the request, so that an idempotency key sent with another body is noticed.
    """

    name = "job.submitted"
    prompt_id: str
    prompt: str
    model_id: str
    seeds: list[int]
    duration: float
    sampling: Sampling = Sampling()
    model_revision: str | None = None
    adapter: AdapterSnapshot | None = None
    output_format: Format = "flac"
    priority: int = 0
    user_id: str | None = None
    client_id: str | None = None
    campaign_id: str | None = None
    brief_id: str | None = None
    collection: str | None = None
    request_digest: str | None = None


class JobStarted(JobEvent, frozen=True, kw_only=True, tag="JobStarted"):
    """A claim: of all claims to one attempt, the first on the log holds."""

    name = "job.started"
    attempt: int
    worker_id: str


class SampleGenerated(JobEvent, frozen=True, kw_only=True, tag="SampleGenerated"):
    """The audio is already stored at `storage_path` when this is appended."""

    name = "job.sample.generated"
    attempt: int
    index: int
    sample_id: str
    seed: int
    storage_path: str
    duration_seconds: float
    sample_rate: int
    channels: int
    size: int
    sha256: str
    loudness_lufs: float | None = None


class JobCompleted(JobEvent, frozen=True, kw_only=True, tag="JobCompleted"):
    name = "job.completed"
    attempt: int


class JobAttemptFailed(JobEvent, frozen=True, kw_only=True, tag="JobAttemptFailed"):
    """The job goes back to the queue and may be claimed again from `retry_at` on.

    `released` means that the worker was told to stop: the attempt does not count against the job.
    """

    name = "job.attempt.failed"
    attempt: int
    error: str
    retry_at: str
    released: bool = False


class JobFailed(JobEvent, frozen=True, kw_only=True, tag="JobFailed"):
    name = "job.failed"
    attempt: int
    error: str


class JobCancelRequested(JobEvent, frozen=True, kw_only=True, tag="JobCancelRequested"):
    name = "job.cancel.requested"


class JobCancelled(JobEvent, frozen=True, kw_only=True, tag="JobCancelled"):
    """Generation has stopped and its partial outputs are gone."""

    name = "job.cancelled"
    worker_id: str


class JobDeleted(JobEvent, frozen=True, kw_only=True, tag="JobDeleted"):
    name = "job.deleted"


class JobProgressed(Event, frozen=True, kw_only=True, tag="JobProgressed"):
    """Telemetry. `fraction` is of the whole job, 0 to 1; `eta_seconds` is what is left."""

    topic = "progress"
    name = "job.progressed"
    job_id: str
    attempt: int
    fraction: float
    stage: str
    eta_seconds: float | None = None

    @property
    def key(self) -> str:
        return self.job_id


class WorkerAlive(Event, frozen=True, kw_only=True, tag="WorkerAlive"):
    """Telemetry: a worker not heard of for a lease loses its jobs. `state` is ready, busy or stopped."""

    topic = "progress"
    name = "worker.alive"
    worker_id: str
    model_id: str
    state: str
    device: str = "cpu"

    @property
    def key(self) -> str:
        return self.worker_id


AnyEvent: TypeAlias = (
    PromptCreated
    | JobSubmitted
    | JobStarted
    | SampleGenerated
    | JobCompleted
    | JobAttemptFailed
    | JobFailed
    | JobCancelRequested
    | JobCancelled
    | JobDeleted
    | JobProgressed
    | WorkerAlive
)

EVENTS: Final[dict[str, type[Event]]] = {event.__struct_config__.tag: event for event in get_args(AnyEvent)}


class UnknownEvent(Struct, frozen=True):
    """A type this version does not know: every fold passes over it."""

    type: str


class Undecodable(Struct, frozen=True):
    """Bytes that are no event: kept on the dead-letter topic, and the aggregate is marked suspect."""

    error: str


class Recorded(Struct, frozen=True):
    """An event and its place. `time` is ISO 8601 in UTC with microseconds and a Z, so that text order is time order."""

    position: Position
    key: str
    id: str
    time: str
    event: AnyEvent | UnknownEvent | Undecodable

    @property
    def type(self) -> str:
        return self.event.type if isinstance(self.event, UnknownEvent) else type(self.event).__name__


def timestamp(moment: datetime) -> str:
    """Raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def cloud_type(event: type[Event]) -> str:
    return f"text2song.{event.name}.v{event.version}"


def encode(event: Event, *, event_id: str, time: str) -> Message:
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": SOURCE,
        "ce_type": cloud_type(type(event)),
        "ce_time": time,
        "ce_subject": event.key,
        "ce_correlationid": event.key,
        "content-type": "application/json",
    }
    return Message(topic=event.topic, key=event.key, value=_encoder.encode(event), headers=headers)


def decode(record: Record) -> Recorded:
    """Never fails on bytes; raises UnknownVersionError where reading on would be wrong."""

    time = ""

    def recorded(event: AnyEvent | UnknownEvent | Undecodable) -> Recorded:
        event_id = record.headers.get("ce_id", str(record.position))
        return Recorded(position=record.position, key=record.key, id=event_id, time=time, event=event)

    if record.value is None:
        return recorded(Undecodable("a tombstone on a topic that erases nothing"))
    if _nests_too_deeply(record.value):
        return recorded(Undecodable(f"nested over {MAX_DEPTH} levels deep"))
    try:
        written = record.headers.get("ce_time", "")
        moment = datetime.fromisoformat(written)
        time = written if CANONICAL.fullmatch(written) else timestamp(moment)
        tag = _tag_decoder.decode(record.value).type
        if (known := EVENTS.get(tag)) is None:
            return recorded(UnknownEvent(tag))
        if (cloud := record.headers.get("ce_type", "")) != cloud_type(known):
            if cloud.startswith(f"text2song.{known.name}.v"):
                raise UnknownVersionError(
                    f"{record.position} holds a {tag} of type {cloud!r}; this reader knows {cloud_type(known)!r}. "
                    "Upgrade it before it reads on."
                )
            return recorded(Undecodable(f"a {tag} whose ce_type header is {cloud!r}"))
        event = _decoder.decode(record.value)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        return recorded(Undecodable(str(error)))
    if event.key != record.key:
        return recorded(Undecodable(f"the event is of {event.key!r}, the record's key is {record.key!r}"))
    if record.position.topic != event.topic:
        return recorded(Undecodable(f"a {tag} belongs on {event.topic!r}, not on {record.position.topic!r}"))
    return recorded(event)


def _nests_too_deeply(value: bytes) -> bool:
    """Checked first: a parser's own limit depends on who calls it, and all readers must agree."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in BRACKETS.findall(STRINGS.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


class _Tagged(Struct):
    type: str


_encoder: Final = msgspec.json.Encoder()
_tag_decoder: Final = msgspec.json.Decoder(_Tagged)
_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(AnyEvent)
