from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import END, NAME, Attempt, ErrorText, Event, Identifier, Label, ModelId, Moment, Sha256
from domain.events.feedback import Rating, Tag
from domain.events.jobs import Seed
from domain.ports import Topic

Kind: TypeAlias = Literal["supervised", "preference"]
Format: TypeAlias = Literal["supervised", "preference", "unpaired"]
Source: TypeAlias = Literal["feedback", "votes", "both"]
Reason: TypeAlias = Literal[
    "unknown_sample",
    "deleted",
    "not_comparable",
    "catch_trial",
    "failed_attention",
    "little_listening",
    "repeated",
    "filtered",
    "unreliable",
    "unrated",
    "few_votes",
    "low_agreement",
    "rating",
    "tied",
    "erased",
    "audio_gone",
    "audio_damaged",
    "undecided",
]

TOPIC: Final = Topic("datasets", partitions=4)
MAX_NAME: Final = 100
MAX_DESCRIPTION: Final = 4_000
MAX_VALUES: Final = 1_000  # of one field of a filter
MAX_COUNT: Final = 2**53
MAX_HELD_OUT: Final = 0.9
# Together they bound what a dataset names, whoever writes the events.
MAX_ERASED: Final = 20  # ids in one event
MAX_ERASURES: Final = 2_000
MAX_NAMED: Final = 100
MAX_PARTITIONS: Final = 10_000
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Alpha: TypeAlias = Annotated[float, Meta(ge=-1_000, le=1)]
Object: TypeAlias = Annotated[str, Meta(pattern=f"^datasets(/{NAME})+{END}", max_length=1_000)]
Place: TypeAlias = Annotated[str, Meta(pattern=f"^[a-z]{{1,100}}/[0-9]{{1,9}}{END}")]
Labels: TypeAlias = Annotated[tuple[Label, ...], Meta(max_length=MAX_VALUES)]
# Published schemas say nothing of keys that are one of a few texts, but patterns they do.
Reasons: TypeAlias = Annotated[dict[Annotated[str, Meta(pattern=f"^[a-z_]{{1,50}}{END}")], Count], Meta(max_length=50)]
Splits: TypeAlias = Annotated[dict[Annotated[str, Meta(pattern=f"^(train|test){END}")], Count], Meta(max_length=2)]


class Filters(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a dataset takes in. Every field narrows, and of several values of a field any will do.

    A pair of samples matches where either of them does. `adapter_ids` has null for the base model. The dates bound when
    a judgement was given first, both ends within. Ratings are the mean of a sample's, of a pair that of the preferred
    one. `expert_ids` are listeners like `user_ids`, and a judgement needs to be of both where both are given.
    """

    min_rating: Rating | None = None
    max_rating: Rating | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_VALUES)] = ()
    user_ids: Labels = ()
    expert_ids: Labels = ()
    adapter_ids: Annotated[tuple[Identifier | None, ...], Meta(max_length=MAX_VALUES)] = ()
    model_ids: Annotated[tuple[ModelId, ...], Meta(max_length=MAX_VALUES)] = ()
    campaign_ids: Labels = ()
    client_ids: Labels = ()
    collections: Labels = ()
    start_date: Moment | None = None
    end_date: Moment | None = None
    sources: Source = "both"
    min_agreement: Share | None = None
    min_votes: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    min_reliability: Share | None = None


class Agreement(Struct, frozen=True, kw_only=True):
    """How far the listeners agree. `alpha` is Krippendorff's, on what `compared` samples or pairs were judged as by two
    listeners or more: nominal for preferences, by squared differences for ratings; null where it says nothing.

    `repeated` counts the judgements that a listener gave again, of which `consistent` said the same; `caught` the
    trials of identical sides, of which `passed` preferred neither.
    """

    alpha: Alpha | None = None
    compared: Count = 0
    listeners: Count = 0
    repeated: Count = 0
    consistent: Count = 0
    caught: Count = 0
    passed: Count = 0


class LeftOut(Struct, frozen=True, kw_only=True):
    """A sample that an export lacks."""

    sample_id: Identifier
    reason: Reason


class DatasetEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    dataset_id: Identifier

    @property
    def key(self) -> str:
        return self.dataset_id


class DatasetCreated(DatasetEvent, frozen=True, kw_only=True, tag="DatasetCreated"):
    """The whole intention. `held_out` is the share of the prompts that are kept for tests, drawn by `seed`.

    `request_digest` is the SHA-256 of the request, so that an idempotency key sent with another body is noticed.
    """

    name = "dataset.created"
    dataset_name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    kind: Kind
    filters: Filters = Filters()
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)] = ""
    held_out: Annotated[float, Meta(ge=0, le=MAX_HELD_OUT)] = 0.1
    seed: Seed = 0
    user_id: Label | None = None
    request_digest: Label | None = None


class DatasetStarted(DatasetEvent, frozen=True, kw_only=True, tag="DatasetStarted"):
    """A claim: of all claims to one attempt, the first on the log holds."""

    name = "dataset.started"
    attempt: Attempt
    worker_id: Identifier


class DatasetAttemptFailed(DatasetEvent, frozen=True, kw_only=True, tag="DatasetAttemptFailed"):
    """It is to be built again from `retry_at` on. `released` means that the attempt does not count."""

    name = "dataset.attempt.failed"
    attempt: Attempt
    error: ErrorText
    retry_at: Moment
    released: bool = False


class DatasetBuilt(DatasetEvent, frozen=True, kw_only=True, tag="DatasetBuilt"):
    """The list of its items is stored at `items` when this is appended; `digest` is the list's SHA-256.

    `positions` has for each partition of the log the offset before which everything was taken in. `splits` counts items
    by split. `left_out` counts, by reason, judgements (of samples that are not there, filtered, unreliable …) and
    samples or pairs (unrated, tied, few_votes …).
    """

    name = "dataset.built"
    attempt: Attempt
    items: Object
    size: Count
    digest: Sha256
    sample_count: Count
    positions: Annotated[dict[Place, Count], Meta(max_length=MAX_PARTITIONS)]
    splits: Splits
    agreement: Agreement = Agreement()
    judgements: Count = 0
    left_out: Reasons = field(default_factory=dict)


class DatasetFailed(DatasetEvent, frozen=True, kw_only=True, tag="DatasetFailed"):
    name = "dataset.failed"
    attempt: Attempt
    error: ErrorText


class DatasetExportRequested(DatasetEvent, frozen=True, kw_only=True, tag="DatasetExportRequested"):
    name = "dataset.export.requested"
    format: Format
    request_id: Identifier


class DatasetExported(DatasetEvent, frozen=True, kw_only=True, tag="DatasetExported"):
    """The archive is stored at `archive` when this is appended. `request_id` is the request's.

    `left_out` counts what the archive lacks, by reason; `missing` names the first of the samples. `erasures` is how
    many DatasetRecordsErased were known when it was made: with another number it is refused.
    """

    name = "dataset.exported"
    format: Format
    request_id: Identifier
    archive: Object
    size: Count
    sha256: Sha256
    rows: Count
    left_out: Reasons = field(default_factory=dict)
    missing: Annotated[tuple[LeftOut, ...], Meta(max_length=MAX_NAMED)] = ()
    erasures: Count = 0


class DatasetExportFailed(DatasetEvent, frozen=True, kw_only=True, tag="DatasetExportFailed"):
    name = "dataset.export.failed"
    format: Format
    request_id: Identifier
    error: ErrorText


class DatasetRecordsErased(DatasetEvent, frozen=True, kw_only=True, tag="DatasetRecordsErased"):
    """Feedback that the dataset rests on was erased from the log, or jobs of it were deleted, since it was built.

    `number` counts these events of a dataset from 1: of two with one number the first on the log holds. The list keeps
    `items_left` items, and the archives are removed.
    """

    name = "dataset.records.erased"
    number: Annotated[int, Meta(ge=1, le=MAX_ERASURES)]
    feedback_ids: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_ERASED)] = ()
    job_ids: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_ERASED)] = ()
    items_left: Count = 0


EVENTS: Final = (
    DatasetCreated,
    DatasetStarted,
    DatasetAttemptFailed,
    DatasetBuilt,
    DatasetFailed,
    DatasetExportRequested,
    DatasetExported,
    DatasetExportFailed,
    DatasetRecordsErased,
)
