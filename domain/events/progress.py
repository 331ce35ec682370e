"""Telemetry: no state follows from it, and it may be lost."""

from typing import Annotated, Final

from msgspec import Meta

from domain.events import Attempt, Event, Identifier, Label, ModelId
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


class WorkerAlive(Event, frozen=True, kw_only=True, tag="WorkerAlive"):
    """Telemetry: a worker not heard of for a lease loses its jobs.

    `state` is ready, busy, broken or stopped.
    """

    topic = TOPIC.name
    name = "worker.alive"
    worker_id: Identifier
    model_id: ModelId
    state: Label
    device: Label = "cpu"

    @property
    def key(self) -> str:
        return self.worker_id


EVENTS: Final = (JobProgressed, WorkerAlive)
