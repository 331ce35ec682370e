from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import END, NAME, Attempt, ErrorText, Event, Identifier, Label, Moment, Sha256
from domain.events.adapters import MAX_ENTRIES, AdapterName, Number, Size, Text, Version
from domain.events.jobs import Seed
from domain.events.prompts import MAX_TEXT
from domain.ports import Topic

Method: TypeAlias = Literal["taste", "dpo", "sft"]

TOPIC: Final = Topic("trainings", partitions=4)
MAX_STEPS: Final = 1_000_000
MAX_POINTS: Final = 200
MAX_VALUES: Final = 20
MAX_SAMPLES: Final = 16
LONGEST_SAMPLE: Final = 3_600.0
Step: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_STEPS)]
Values: TypeAlias = Annotated[dict[Label, Number], Meta(max_length=MAX_VALUES)]
Settings: TypeAlias = Annotated[dict[Label, Text | Number | bool | None], Meta(max_length=MAX_ENTRIES)]
Metrics: TypeAlias = Annotated[dict[Label, Number], Meta(max_length=MAX_ENTRIES)]


class CurvePoint(Struct, frozen=True, kw_only=True):
    """What was measured at a step, by name, such as `loss`."""

    step: Step
    values: Values


Curve: TypeAlias = Annotated[tuple[CurvePoint, ...], Meta(max_length=MAX_POINTS)]


class SampleFile(Struct, frozen=True, kw_only=True):
    """A FLAC; `size` is in bytes."""

    size: Size
    sha256: Sha256


class TrainingSample(Struct, frozen=True, kw_only=True):
    """A prompt's clip by the base model, and the one of the same seed by the adapter. Where it `is_held_out`, the
    adapter has not learnt from the prompt.
    """

    prompt: Annotated[str, Meta(max_length=MAX_TEXT)]
    seed: Seed
    duration_seconds: Annotated[float, Meta(ge=0, le=LONGEST_SAMPLE)]
    is_held_out: bool
    before: SampleFile
    after: SampleFile


class TrainingEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    training_id: Identifier

    @property
    def key(self) -> str:
        return self.training_id


class TrainingRequested(TrainingEvent, frozen=True, kw_only=True, tag="TrainingRequested"):
    """Everything the worker needs beside the dataset. What `config` leaves out has the method's default.

    `request_digest` is the SHA-256 of the request, so that an idempotency key sent with another body is noticed.
    """

    name = "training.requested"
    dataset_id: Identifier
    method: Method
    adapter_name: AdapterName
    adapter_version: Version
    config: Settings = field(default_factory=dict)
    user_id: Label | None = None
    request_digest: Label | None = None


class TrainingStarted(TrainingEvent, frozen=True, kw_only=True, tag="TrainingStarted"):
    """A claim: of all claims to one attempt, the first on the log holds."""

    name = "training.started"
    attempt: Attempt
    worker_id: Identifier


class TrainingCheckpointed(TrainingEvent, frozen=True, kw_only=True, tag="TrainingCheckpointed"):
    """The checkpoint is already stored at `storage_path` when this is appended: the next attempt goes on from it.

    `curve` has points of all steps so far.
    """

    name = "training.checkpointed"
    attempt: Attempt
    step: Step
    steps: Step
    storage_path: Annotated[str, Meta(pattern=rf"^trainings(/{NAME})+\.safetensors{END}", max_length=1_000)]
    sha256: Sha256
    curve: Curve = ()


class TrainingCompleted(TrainingEvent, frozen=True, kw_only=True, tag="TrainingCompleted"):
    """`adapter_id` null says that nothing was learnt, so that there is no adapter; `message` says why.

    The files of `samples` are already stored when this is appended, each as
    `trainings/{training_id}/samples/{attempt}/{sha256}.flac`.
    """

    name = "training.completed"
    attempt: Attempt
    step: Step
    steps: Step
    adapter_id: Identifier | None = None
    message: ErrorText = ""
    metrics: Metrics = field(default_factory=dict)
    curve: Curve = ()
    samples: Annotated[tuple[TrainingSample, ...], Meta(max_length=MAX_SAMPLES)] = ()


class TrainingAttemptFailed(TrainingEvent, frozen=True, kw_only=True, tag="TrainingAttemptFailed"):
    """The training goes back to the queue and may be claimed again from `retry_at` on.

    `released` means that the worker was told to stop: the attempt does not count against the training.
    """

    name = "training.attempt.failed"
    attempt: Attempt
    error: ErrorText
    retry_at: Moment
    released: bool = False


class TrainingFailed(TrainingEvent, frozen=True, kw_only=True, tag="TrainingFailed"):
    name = "training.failed"
    attempt: Attempt
    error: ErrorText


class TrainingCancelRequested(TrainingEvent, frozen=True, kw_only=True, tag="TrainingCancelRequested"):
    name = "training.cancel.requested"


class TrainingCancelled(TrainingEvent, frozen=True, kw_only=True, tag="TrainingCancelled"):
    """The training has stopped and its checkpoints are gone."""

    name = "training.cancelled"
    worker_id: Identifier


EVENTS: Final = (
    TrainingRequested,
    TrainingStarted,
    TrainingCheckpointed,
    TrainingCompleted,
    TrainingAttemptFailed,
    TrainingFailed,
    TrainingCancelRequested,
    TrainingCancelled,
)
