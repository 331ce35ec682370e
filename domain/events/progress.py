"""Telemetry: no state follows from it, and it may be lost."""

from typing import Annotated, Final

from msgspec import Meta, Struct, field

from domain.events import Attempt, Event, Identifier, Label, ModelId
from domain.events.prompts import MAX_SECONDS
from domain.events.trainings import Step, Values
from domain.ports import Topic

TOPIC: Final = Topic("progress", partitions=4, retention_seconds=3600.0)


class JobProgressed(Event, frozen=True, kw_only=True, tag="JobProgressed"):
    """Telemetry. `fraction` is of the whole job, 0 to 1; `eta_seconds` is what is left."""

    topic = TOPIC.name
    name = "job.progressed"
    job_id: Identifier
    attempt: Attempt
    fraction: Annotated[float, Meta(ge=0, le=1)]
    stage: Label
    eta_seconds: Annotated[float, Meta(ge=0, le=1e9)] | None = None

    @property
    def key(self) -> str:
        return self.job_id


class TrainingProgressed(Event, frozen=True, kw_only=True, tag="TrainingProgressed"):
    """Telemetry. `step` is of `steps` of a stage, such as training; `values` are what was measured at it."""

    topic = TOPIC.name
    name = "training.progressed"
    training_id: Identifier
    attempt: Attempt
    stage: Label
    step: Step
    steps: Step
    values: Values = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.training_id


class LoadedModel(Struct, frozen=True, kw_only=True):
    """The limits of a worker's model, for API processes that do not have its files. Durations are in seconds.

    `capabilities` are what it can do, as GET /models names them; where it says none, they are those of its family.
    """

    family: Label
    max_duration: Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
    sample_rate: Annotated[int, Meta(ge=1, le=1_000_000)]
    channels: Annotated[int, Meta(ge=1, le=64)]
    vram_gb: Annotated[float, Meta(ge=0, le=100_000)]
    license: Label
    revision: Label | None = None
    max_extended_duration: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None
    capabilities: Annotated[tuple[Label, ...], Meta(max_length=50)] = ()


class WorkerAlive(Event, frozen=True, kw_only=True, tag="WorkerAlive"):
    """Telemetry: a worker not heard of for a lease loses its jobs.

    `state` is ready, busy, broken or stopped. `capacity` is how much it makes at once, `busy` how much it is making.
    `real_time_factor` is how many seconds of audio it makes in a second of work, all together.
    """

    topic = TOPIC.name
    name = "worker.alive"
    worker_id: Identifier
    model_id: ModelId
    state: Label
    device: Label = "cpu"
    model: LoadedModel | None = None
    capacity: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    busy: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    real_time_factor: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None

    @property
    def key(self) -> str:
        return self.worker_id


EVENTS: Final = (JobProgressed, TrainingProgressed, WorkerAlive)
