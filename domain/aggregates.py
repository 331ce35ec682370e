"""What the published contract says of each aggregate, in terms that a reader in any language can keep."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct, to_builtins

from domain import jobs, prompts
from domain.events import (
    AdapterSnapshot,
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobStarted,
    JobSubmitted,
    PromptAttributes,
    PromptCreated,
    Recorded,
    SampleGenerated,
)
from domain.jobs import OUTCOMES, Job
from domain.prompts import Prompt

Json: TypeAlias = dict[str, Any]


class Aggregate(Struct, frozen=True, kw_only=True):
    """What a reader keeps of an aggregate, and what tells its transitions apart.

    `state` gives the state as it is published, empty where there is no aggregate; `facts` what a rule may ask of a
    state and an event. Both are put in words by `fields` and `conditions`. `outcomes` is how many verdicts a reader
    remembers.
    """

    evolve: Callable[[Any, Recorded], Any]
    accepted: Callable[[Any, Recorded], bool]
    state: Callable[[Any], Json]
    fields: Mapping[str, str]
    facts: Callable[[Any, Any], Json]
    conditions: Mapping[str, str]
    proposals: Sequence[Any]
    outcomes: int


ATTEMPTS: Final = (1, 2, 3)
LATER: Final = "2026-01-31T12:01:00.000000Z"
SUBMITTED: Final = JobSubmitted(
    job_id="job-1",
    prompt_id="prompt-1",
    prompt="rain on a tin roof",
    model_id="facebook/musicgen-small",
    model_revision="4c8334b0",
    seeds=[7, 8],
    duration=2.0,
    adapter=AdapterSnapshot(
        id="adapter-1", name="jazz", version="1.0.0", base_model="facebook/musicgen-small", storage_path="adapters/1"
    ),
    output_format="wav",
    priority=5,
    user_id="user-1",
    client_id="client-1",
    campaign_id="campaign-1",
    brief_id="brief-1",
    collection="spring",
    request_digest="digest-1",
)


def sample(index: int, attempt: int = 1) -> SampleGenerated:
    return SampleGenerated(
        job_id=SUBMITTED.job_id,
        attempt=attempt,
        index=index,
        sample_id=f"sample-{index}",
        seed=7 + index,
        storage_path=f"samples/{SUBMITTED.job_id}/{attempt}/{index}.flac",
        duration_seconds=2.0,
        sample_rate=32000,
        channels=1,
        size=123456,
        sha256=f"{index:064}",
        loudness_lufs=-14.25,
    )


def _job_state(job: Job | None) -> Json:
    if job is None:
        return {}
    return {
        "id": job.id,
        "status": job.status,
        "seeds": job.request.seeds,
        "samples": {str(made.event.index): made.event.sample_id for made in job.samples},
        "attempt": job.attempt,
        "worker_id": job.worker_id,
        "failures": job.failures,
        "lost": job.lost,
        "retry_at": job.retry_at,
        "error": job.error,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "deleted_at": job.deleted_at,
    }


def _job_facts(job: Job | None, event: Any) -> Json:
    attempt = job.attempt if job else 0
    missing = job.missing if job else []
    facts: Json = {
        "status": job.status if job else None,
        "attempted": attempt > 0,
        "complete": job is not None and not missing,
        "deleted": job is not None and job.deleted_at is not None,
    }
    match event:
        case JobStarted() | SampleGenerated() | JobCompleted() | JobAttemptFailed() | JobFailed():
            facts["attempt"] = {attempt: "current", attempt + 1: "next"}.get(event.attempt, "other")
    match event:
        case SampleGenerated(index=index):
            facts["sample"] = "missing" if index in missing else "other"
        case JobAttemptFailed(released=released):
            facts["released"] = released
    return facts


def _job_accepted(job: Job | None, recorded: Recorded) -> bool:
    outcome = job.outcome(recorded.id) if job else None
    return outcome is not None and outcome.reason is None


def _prompt_state(prompt: Prompt | None) -> Json:
    if prompt is None:
        return {}
    return {
        "id": prompt.id,
        "text": prompt.text,
        "attributes": to_builtins(prompt.attributes),
        "user_id": prompt.user_id,
        "created_at": prompt.created_at,
    }


AGGREGATES: Final = {
    "prompts": Aggregate(
        evolve=prompts.evolve,
        accepted=lambda prompt, recorded: prompt is not None and prompt.created_at == recorded.time,
        state=_prompt_state,
        facts=lambda prompt, _: {"exists": prompt is not None},
        fields={
            "id": "the aggregate's key",
            "text": "what somebody wants to hear",
            "attributes": "style, tempo, instrumentation, mood, duration in seconds, as far as given",
            "user_id": "who wrote it",
            "created_at": "when the first event was accepted",
        },
        conditions={"exists": "whether there is a state, because an event was accepted before"},
        proposals=[
            PromptCreated(
                prompt_id="prompt-1", text="rain", attributes=PromptAttributes(mood="calm"), user_id="user-1"
            ),
        ],
        outcomes=0,
    ),
    "jobs": Aggregate(
        evolve=jobs.evolve,
        accepted=_job_accepted,
        state=_job_state,
        facts=_job_facts,
        fields={
            "id": "the aggregate's key",
            "status": "queued, processing, completed, failed, cancelling or cancelled",
            "seeds": "one seed a sample",
            "samples": "the id of each sample made, by its index written as text",
            "attempt": "the number of the last claim, from 1",
            "worker_id": "who made it",
            "failures": "attempts that reported an error",
            "lost": "attempts in a row that ended without word or sample",
            "retry_at": "when the job may be claimed again",
            "error": "what the last failed attempt reported",
            "created_at": "when it was submitted",
            "started_at": "when the last attempt began",
            "completed_at": "when the status became final",
            "deleted_at": "when it was deleted; then, or while cancelling or cancelled, no sample is to be heard",
        },
        conditions={
            "status": "the state's status; null while there is no state",
            "attempted": "whether the state's attempt is over 0",
            "complete": "whether samples has every index from 0 to the number of seeds less one",
            "deleted": "whether deleted_at is set",
            "attempt": "the event's attempt against the state's: current (equal), next (one more) or other",
            "sample": "missing when the event's index is one of seeds and not yet one of samples, else other",
            "released": "the event's own field",
        },
        proposals=[
            SUBMITTED,
            *(JobStarted(job_id="job-1", attempt=n, worker_id=f"worker-{n}") for n in ATTEMPTS),
            *(sample(index, n) for index in (0, 1, 2) for n in ATTEMPTS),
            *(JobCompleted(job_id="job-1", attempt=n) for n in ATTEMPTS),
            *(
                JobAttemptFailed(job_id="job-1", attempt=n, error=f"error-{n}", retry_at=LATER, released=released)
                for n in ATTEMPTS
                for released in (False, True)
            ),
            *(JobFailed(job_id="job-1", attempt=n, error=f"error-{n}") for n in ATTEMPTS),
            JobCancelRequested(job_id="job-1"),
            JobCancelled(job_id="job-1", worker_id="worker-1"),
            JobDeleted(job_id="job-1"),
        ],
        outcomes=OUTCOMES,
    ),
}
