from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import END, NAME, Attempt, ErrorText, Event, Identifier, Label, ModelId, Moment, Sha256
from domain.events.prompts import MAX_SECONDS, MAX_TEXT, MAX_WORDING
from domain.events.webhooks import WebhookUrl
from domain.ports import Topic

Format: TypeAlias = Literal["flac", "wav", "mp3", "ogg"]
Basis: TypeAlias = Literal["likelihood", "preference"]

TOPIC: Final = Topic("jobs", partitions=12)
MAX_SAMPLES: Final = 16
SEEDS: Final = 2**32
Seed: TypeAlias = Annotated[int, Meta(ge=0, lt=SEEDS)]
# The names that a client files its jobs under; lists can be narrowed by each.
LABELS: Final = ("client_id", "campaign_id", "brief_id", "collection")


# Both ends are within. Requests are refused by the same numbers, in their own words.
RANGES: Final = {
    "temperature": (0, 5),
    "top_k": (0, 100_000),
    "top_p": (0, 1),
    "guidance_scale": (1, 20),
    "priority": (0, 9),
    "adapter_scale": (0, 2),
}


def _within(name: str) -> Meta:
    low, high = RANGES[name]
    return Meta(ge=low, le=high)


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. `top_k` 0 and `top_p` 1 keep every token; `guidance_scale` 1 is no guidance."""

    temperature: Annotated[float, _within("temperature")] = 1.0
    top_k: Annotated[int, _within("top_k")] = 250
    top_p: Annotated[float, _within("top_p")] = 1.0
    guidance_scale: Annotated[float, _within("guidance_scale")] = 3.0


MAX_LYRICS: Final = 10_000
MAX_PARAMETERS: Final = 32
MAX_PARAMETER_TEXT: Final = 2_000
LARGEST: Final = 2**53
ParameterName: TypeAlias = Annotated[str, Meta(pattern=f"^[a-z][a-z0-9_]*{END}", max_length=64)]
ParameterValue: TypeAlias = (
    bool
    | Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
    | Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
    | Annotated[str, Meta(max_length=MAX_PARAMETER_TEXT)]
)
Parameters: TypeAlias = Annotated[dict[ParameterName, ParameterValue], Meta(max_length=MAX_PARAMETERS)]
Lyrics: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_LYRICS)]


AdapterFolder: TypeAlias = Annotated[str, Meta(pattern=f"^adapters(/{NAME})+{END}", max_length=1_000)]


Score: TypeAlias = Annotated[float, Meta(ge=-1_000_000, le=1_000_000)]

SamplePath: TypeAlias = Annotated[str, Meta(pattern=rf"^samples(/{NAME})+\.flac{END}", max_length=1_000)]
MelodyPath: TypeAlias = Annotated[str, Meta(pattern=rf"^(samples|melodies)(/{NAME})+\.flac{END}", max_length=1_000)]


class AdapterSnapshot(Struct, frozen=True, kw_only=True):
    """An adapter as it was when the job was accepted, so that a worker looks nothing up.

    Its files lie below `storage_path`. `sha256` is that of the list of their digests, as in AdapterRegistered.
    `has_preference` says that a preference model is among them which tells held-out pairs apart better than chance.
    """

    id: Identifier
    name: Label
    version: Label
    base_model: ModelId
    storage_path: AdapterFolder
    base_revision: Label | None = None
    sha256: Sha256 | None = None
    has_preference: bool = False


class Continuation(Struct, frozen=True, kw_only=True):
    """A stored sample as it was when the job was accepted: each new one begins with its last `seconds`.

    `sha256` is of the FLAC at `storage_path`.
    """

    sample_id: Identifier
    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
    storage_path: SamplePath
    sha256: Sha256


class Melody(Struct, frozen=True, kw_only=True):
    """What the new samples follow the tones of, as it was when the job was accepted: a stored sample or an uploaded
    clip, by its id. `sha256` is of the FLAC at `storage_path`.
    """

    id: Identifier
    storage_path: MelodyPath
    sha256: Sha256


class JobEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    job_id: Identifier

    @property
    def key(self) -> str:
        return self.job_id


class JobSubmitted(JobEvent, frozen=True, kw_only=True, tag="JobSubmitted"):
    """Everything the worker needs. `seeds` has one seed a sample; `duration` is in seconds.

    With `best_of` over 1, that many seeds in a row are the candidates for one sample, and each of them is generated and
    has an index as a sample. Once all of a row are made, the one with the highest score is kept, and the others are
    not to be heard. The score is `preference` where `best_of_by` says so, else `likelihood`; one without a score comes
    last, and of equal ones the first is kept.

    `model_prompt` is the text that the model is given, attributes and all, where it is not the prompt itself;
    `warnings` say what the model does not read of it.
    `adapter_scale` says how much of the adapter is added to the model: 1 is as it was trained.
    `continuation` names the sample that the new ones continue; `duration` is with what they begin with.
    `melody` names the clip whose tones the new samples follow; they begin with it, and it begins anew where it ends.
    `webhook_url` is told of the events named, by default of those that end the job.
    `request_digest` is the SHA-256 of the request, so that an idempotency key sent with another body is noticed.
    `parameters` are all that the model takes besides, by name; `lyrics` are what it is to sing, with tags such as
    [verse] where parts of the song begin.
    """

    name = "job.submitted"
    prompt_id: Identifier
    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    model_id: ModelId
    seeds: Annotated[list[Seed], Meta(min_length=1, max_length=MAX_SAMPLES)]
    duration: Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
    sampling: Sampling = Sampling()
    model_revision: Label | None = None
    adapter: AdapterSnapshot | None = None
    output_format: Format = "flac"
    priority: Annotated[int, _within("priority")] = 0
    user_id: Label | None = None
    client_id: Label | None = None
    campaign_id: Label | None = None
    brief_id: Label | None = None
    collection: Label | None = None
    request_digest: Label | None = None
    model_prompt: Annotated[str, Meta(min_length=1, max_length=MAX_WORDING)] | None = None
    warnings: Annotated[tuple[ErrorText, ...], Meta(max_length=10)] = ()
    ab_test_id: Identifier | None = None
    adapter_scale: Annotated[float, _within("adapter_scale")] = 1.0
    continuation: Continuation | None = None
    webhook_url: WebhookUrl | None = None
    webhook_events: Annotated[tuple[Label, ...], Meta(max_length=20)] = ()
    best_of: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] = 1
    best_of_by: Basis | None = None
    parameters: Parameters = field(default_factory=dict)
    lyrics: Lyrics | None = None
    melody: Melody | None = None


class JobStarted(JobEvent, frozen=True, kw_only=True, tag="JobStarted"):
    """A claim: of all claims to one attempt, the first on the log holds."""

    name = "job.started"
    attempt: Attempt
    worker_id: Identifier


class SampleGenerated(JobEvent, frozen=True, kw_only=True, tag="SampleGenerated"):
    """The audio is already stored at `storage_path` when this is appended.

    `sha256` is of the FLAC, `pcm_sha256` of its samples alone: 24-bit little-endian integers, the channels in turn.
    Of a candidate, `likelihood` is by how many nats a code the prompt makes it likelier, on average, and `preference`
    are its log-odds to be preferred by the adapter's preference model, where that has one.
    """

    name = "job.sample.generated"
    attempt: Attempt
    index: Annotated[int, Meta(ge=0, lt=MAX_SAMPLES)]
    sample_id: Identifier
    seed: Seed
    storage_path: SamplePath
    duration_seconds: Annotated[float, Meta(ge=0, le=MAX_SECONDS + 60)]
    sample_rate: Annotated[int, Meta(ge=1, le=1_000_000)]
    channels: Annotated[int, Meta(ge=1, le=64)]
    size: Annotated[int, Meta(ge=0, le=2**53)]
    sha256: Sha256
    loudness_lufs: Annotated[float, Meta(ge=-1_000, le=1_000)] | None = None
    pcm_sha256: Annotated[str, Meta(pattern=f"^[0-9a-f]{{64}}{END}")] | None = None
    likelihood: Score | None = None
    preference: Score | None = None


class JobCompleted(JobEvent, frozen=True, kw_only=True, tag="JobCompleted"):
    name = "job.completed"
    attempt: Attempt


class JobAttemptFailed(JobEvent, frozen=True, kw_only=True, tag="JobAttemptFailed"):
    """The job goes back to the queue and may be claimed again from `retry_at` on.

    `released` means that the worker was told to stop: the attempt does not count against the job.
    """

    name = "job.attempt.failed"
    attempt: Attempt
    error: ErrorText
    retry_at: Moment
    released: bool = False


class JobFailed(JobEvent, frozen=True, kw_only=True, tag="JobFailed"):
    name = "job.failed"
    attempt: Attempt
    error: ErrorText


class JobCancelRequested(JobEvent, frozen=True, kw_only=True, tag="JobCancelRequested"):
    name = "job.cancel.requested"


class JobCancelled(JobEvent, frozen=True, kw_only=True, tag="JobCancelled"):
    """Generation has stopped and its partial outputs are gone."""

    name = "job.cancelled"
    worker_id: Identifier


class JobDeleted(JobEvent, frozen=True, kw_only=True, tag="JobDeleted"):
    name = "job.deleted"


class JobPurged(JobEvent, frozen=True, kw_only=True, tag="JobPurged"):
    """The job has ended and its audio is gone for good. The job itself stays as it is."""

    name = "job.purged"


EVENTS: Final = (
    JobSubmitted,
    JobStarted,
    SampleGenerated,
    JobCompleted,
    JobAttemptFailed,
    JobFailed,
    JobCancelRequested,
    JobCancelled,
    JobDeleted,
    JobPurged,
)
