from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from functools import partial
from typing import Final, get_args

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED
from msgspec import Struct, convert
from msgspec.structs import asdict, replace

from api.audio import find_sample
from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.melodies import find_melody
from api.prompts import IdempotencyKey
from commands import jobs as commands
from commands.transact import Receipt, identify, load, seen
from domain.continuation import Source
from domain.errors import ConflictError, Fault, InvalidError, NotFoundError
from domain.events.jobs import Basis, Format, JobSubmitted
from domain.generation import GenerationRequest, Rerun
from domain.jobs import JOBS, Job, Status
from domain.outcomes import Outcome
from domain.ports import Query
from projections import figures
from projections.jobs import Statistics, statistics


class JobParams(Struct, frozen=True, kw_only=True):
    """`parameters` are all that the model takes besides, by name."""

    num_samples: int
    duration: float
    seeds: list[int]
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    adapter_scale: float
    continue_from: str | None
    continue_seconds: float | None
    melody_from: str | None
    best_of: int | None
    best_of_by: Basis | None
    parameters: dict[str, bool | int | float | str]


class FeedbackSummary(Struct, frozen=True, kw_only=True):
    """What was said of the job's samples; `url` lists it."""

    count: int
    has_feedback: bool
    mean_rating: float | None
    url: str


class JobBody(Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 100. `model_prompt` is what the model is given, `warnings` say what it does not read of that.
    `outcomes` says what became of the latest events; `suspect` marks a damaged history."""

    id: str
    status: Status
    progress: float
    stage: str | None
    eta_seconds: float | None
    sample_ids: list[str]
    error: str | None
    attempt: int
    feedback: FeedbackSummary
    prompt_id: str
    prompt: str
    model_prompt: str
    lyrics: str | None
    warnings: list[str]
    model_id: str
    adapter_id: str | None
    ab_test_id: str | None
    generation_params: JobParams
    output_format: Format
    priority: int
    user_id: str | None
    client_id: str | None
    campaign_id: str | None
    brief_id: str | None
    collection: str | None
    webhook_url: str | None
    webhook_events: list[str]
    created_at: str
    started_at: str | None
    completed_at: str | None
    purged_at: str | None
    suspect: bool
    outcomes: list[Outcome]


class JobReceipt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`warnings` say what the model will not read of the prompt."""

    job_id: str
    status: Status
    warnings: list[str] = []


class Deletion(Struct, frozen=True, kw_only=True):
    job_id: str
    status: Status
    deleted_at: str | None


@post("/generate", operation_id="submitGeneration", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["generation"])
async def submit_generation(
    services: Injected, data: JSONBody[GenerationRequest], idempotency_key: IdempotencyKey = None
) -> Response[JobReceipt]:
    """Queues a job. A retry under the same `Idempotency-Key` is the same job."""
    receipt = await accept(services, data, idempotency_key)
    return await _submitted(services, receipt, idempotency_key)


@delete(
    "/generate/{job_id:str}", operation_id="cancelGeneration", opt=CURRENT, status_code=HTTP_200_OK, tags=["generation"]
)
async def cancel_generation(services: Injected, job_id: FromPath[str]) -> Response[JobReceipt]:
    """Answers 202 while the worker still has to stop; the job is `cancelled` once its partial outputs are gone."""
    receipt = await commands.cancel(services.journal, services.views, job_id)
    job = _accepted(await _settled(services, receipt), receipt)
    status: Status = job.status if job else "cancelling"
    return Response(
        JobReceipt(job_id=job_id, status=status),
        status_code=HTTP_200_OK if status == "cancelled" else HTTP_202_ACCEPTED,
        headers={"Location": f"/generate/{job_id}", **positions.headers(*receipt.positions)},
    )


@get("/generate/{job_id:str}", operation_id="getGeneration", opt=CURRENT, tags=["generation"])
async def get_generation(services: Injected, job_id: FromPath[str]) -> Response[JobBody]:
    """The job's status, its progress, and its samples once there are any."""
    return await _job_response(services, job_id)


@post("/jobs/{job_id:str}/rerun", operation_id="rerunJob", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["jobs"])
async def rerun_job(
    services: Injected, job_id: FromPath[str], data: JSONBody[Rerun], idempotency_key: IdempotencyKey = None
) -> Response[JobReceipt]:
    """Queues a new job that asks for what this one did, with the changes of the body; {} changes nothing but the
    seeds. A retry under the same `Idempotency-Key` is the same job.
    """
    changes = services.caller.signed(data)
    async with services.quota.room(services.caller, 1, partial(_is_retry, services, idempotency_key)) as room:
        receipt = await commands.rerun(
            services.journal,
            services.views,
            await services.models(),
            job_id,
            changes,
            idempotency_key=idempotency_key,
            sources=partial(_source, services),
            melodies=partial(find_melody, services),
            receivers=services.receivers.check,
            owner=services.caller.idempotency_owner,
        )
        room.positions = receipt.positions if receipt.events else ()
    return await _submitted(services, receipt, idempotency_key)


@get("/jobs/{job_id:str}", operation_id="getJob", opt=CURRENT, tags=["jobs"])
async def get_job(services: Injected, job_id: FromPath[str]) -> Response[JobBody]:
    return await _job_response(services, job_id)


@get("/jobs", operation_id="listJobs", tags=["jobs"])
async def list_jobs(
    services: Injected,
    *,
    status: FromQuery[str | None] = None,
    adapter_id: FromQuery[str | None] = None,
    ab_test_id: FromQuery[str | None] = None,
    model_id: FromQuery[str | None] = None,
    start_date: FromQuery[str | None] = None,
    end_date: FromQuery[str | None] = None,
    client_id: FromQuery[str | None] = None,
    campaign_id: FromQuery[str | None] = None,
    brief_id: FromQuery[str | None] = None,
    collection: FromQuery[str | None] = None,
    user_id: FromQuery[str | None] = None,
    has_feedback: FromQuery[bool | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[JobBody]:
    """Newest first, without deleted jobs. Every filter narrows; the dates bound `created_at`, both inclusive."""
    if status is not None and status not in get_args(Status):
        raise InvalidError([Fault("/status", f"status is {status!r}; it is one of {', '.join(get_args(Status))}.")])
    query = pages.query(
        limit,
        offset,
        cursor,
        equal={
            "status": status,
            "model_id": model_id,
            "user_id": user_id,
            "adapter_id": adapter_id,
            "ab_test_id": ab_test_id,
            "client_id": client_id,
            "campaign_id": campaign_id,
            "brief_id": brief_id,
            "collection": collection,
        },
        start=pages.moment("start_date", start_date),
        end=pages.moment("end_date", end_date, end=True),
    )
    if has_feedback is not None:
        judged = await figures.judged(services.views)
        query = replace(query, ids=judged) if has_feedback else replace(query, without=judged)
    return await pages.page_of(
        services.views, JOBS, query, partial(bodies, services), total=partial(_total, services, query)
    )


@get("/jobs/stats", operation_id="getQueueStatistics", tags=["jobs"])
async def get_statistics(services: Injected) -> Statistics:
    """Of every job; for a key without admin, `counts` are of its owner's jobs alone."""
    found = await statistics(services.views, datetime.fromisoformat(services.journal.now()))
    if not services.caller.is_restricted:
        return found
    counts = {status: await services.views.count(JOBS, Query(equal={"status": status})) for status in get_args(Status)}
    return replace(found, counts={status: count for status, count in counts.items() if count})


@delete("/jobs/{job_id:str}", operation_id="deleteJob", opt=CURRENT, status_code=HTTP_200_OK, tags=["jobs"])
async def delete_job(services: Injected, job_id: FromPath[str]) -> Response[Deletion]:
    """Cancels the job where it is still open, and hides it and its audio for good."""
    receipt = await commands.delete(services.journal, services.views, job_id)
    job = _accepted(await _settled(services, receipt), receipt)
    deletion = Deletion(
        job_id=job_id, status=job.status if job else "cancelling", deleted_at=job.deleted_at if job else None
    )
    return Response(
        deletion,
        status_code=HTTP_200_OK if job else HTTP_202_ACCEPTED,
        headers=positions.headers(*receipt.positions),
    )


ROUTES: Final = (
    submit_generation,
    cancel_generation,
    list_jobs,
    get_statistics,
    get_generation,
    rerun_job,
    get_job,
    delete_job,
)


async def accept(services: Services, request: GenerationRequest, idempotency_key: str | None) -> Receipt:
    """Submits the caller's request, as the caller's. Raises as the command does, ForbiddenError, and TooManyError."""
    request = services.caller.signed(request)
    async with services.quota.room(services.caller, 1, partial(_is_retry, services, idempotency_key)) as room:
        receipt = await commands.submit(
            services.journal,
            services.views,
            await services.models(),
            request,
            idempotency_key,
            sources=partial(_source, services),
            melodies=partial(find_melody, services),
            receivers=services.receivers.check,
            owner=services.caller.idempotency_owner,
        )
        room.positions = receipt.positions if receipt.events else ()
    return receipt


async def begun(services: Services, idempotency_key: str | None) -> Job | None:
    """The job of an earlier request of the caller's under the key."""
    if idempotency_key is None:
        return None
    id_ = identify(services.journal, "job", services.caller.idempotency_owner, idempotency_key)
    return await load(services.views, JOBS, id_)


async def shown(services: Services, job_id: str) -> Job:
    """Raises NotFoundError for a deleted job too."""
    job = await load(services.views, JOBS, job_id)
    if job is None or job.deleted_at:
        raise NotFoundError("job", job_id)
    return job


async def body(services: Services, job: Job) -> JobBody:
    return (await bodies(services, [job]))[0]


async def bodies(services: Services, jobs: Sequence[Job]) -> list[JobBody]:
    topics = services.journal.log.topics
    partitions = {name: topic.partitions for name, topic in topics.items()}
    said = await figures.of_jobs(services.views, jobs, partitions)
    loaded = {alive.model_id for alive in services.feed.workers()} | {services.registry.active.id}
    return [_body(services, job, counts, loaded) for job, counts in zip(jobs, said, strict=True)]


def _body(services: Services, job: Job, said: Mapping[str, int], loaded: Set[str]) -> JobBody:
    request = job.request
    live = services.feed.progress(job.id, job.attempt) if job.status == "processing" else None
    made = len(job.samples) / len(request.seeds)
    continued = request.continuation
    params = asdict(request.sampling) | asdict(request) | {"num_samples": job.wanted}
    params["best_of"] = request.best_of if request.best_of > 1 else None
    params["continue_from"] = continued.sample_id if continued else None
    params["continue_seconds"] = continued.seconds if continued else None
    params["melody_from"] = request.melody.id if request.melody else None
    computed = {
        "progress": round(100 * max(made, live.fraction if live else 0.0), 1),
        "stage": live.stage if live else _waiting(job, loaded),
        "eta_seconds": live.eta_seconds if live else None,
        "sample_ids": [sample.event.sample_id for sample in job.audible],
        "adapter_id": request.adapter.id if request.adapter else None,
        "generation_params": params,
        "model_prompt": request.model_prompt or request.prompt,
        "feedback": FeedbackSummary(
            count=said.get("count", 0),
            has_feedback=said.get("count", 0) > 0,
            mean_rating=figures.mean(said),
            url=f"/jobs/{job.id}/feedback",
        ),
    }
    return convert(asdict(request) | asdict(job) | computed, JobBody, from_attributes=True)


def _waiting(job: Job, loaded: Set[str]) -> str | None:
    if job.status == "queued" and job.request.model_id not in loaded:
        return f"waits for a worker with the model {job.request.model_id}"
    return None


async def _is_retry(services: Services, idempotency_key: str | None) -> bool:
    return await begun(services, idempotency_key) is not None


async def _source(services: Services, sample_id: str) -> Source | None:
    if (sample := await find_sample(services, sample_id)) is None:
        return None
    return Source(
        sample_id=sample.id,
        model_id=sample.model_id,
        duration=sample.duration_seconds,
        storage_path=sample.storage_path,
        sha256=sample.sha256,
    )


async def _job_response(services: Services, job_id: str) -> Response[JobBody]:
    job = await shown(services, job_id)
    return Response(await body(services, job), headers=positions.headers(*seen(JOBS, job)))


async def _submitted(services: Services, receipt: Receipt, idempotency_key: str | None) -> Response[JobReceipt]:
    job = None if idempotency_key is None else await load(services.views, JOBS, receipt.id)
    submitted = job.request if job else next(event for event in receipt.events if isinstance(event, JobSubmitted))
    return Response(
        JobReceipt(job_id=receipt.id, status=job.status if job else "queued", warnings=list(submitted.warnings)),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/generate/{receipt.id}", **positions.headers(*receipt.positions)},
    )


async def _settled(services: Services, receipt: Receipt) -> Job | None:
    """The job once it shows the command, None where that takes too long."""
    return await load(services.views, JOBS, receipt.id) if await services.views.show(receipt.positions) else None


def _accepted(job: Job | None, receipt: Receipt) -> Job | None:
    """Raises ConflictError when the fold refused the command's event."""
    if job and receipt.event_id and (outcome := job.outcome(receipt.event_id)) and outcome.reason:
        raise ConflictError(f"The request came too late: {outcome.reason}.")
    return job


async def _total(services: Services, query: Query) -> int:
    """From the counters where they can tell: counting a long history at every page would not scale."""
    is_bounded = query.start or query.end or query.ids is not None or query.without
    is_counted = not is_bounded and not query.equal.keys() - {"status"}
    if services.caller.is_restricted or not is_counted:
        return await services.views.count(JOBS, query)
    counts = (await statistics(services.views, datetime.fromisoformat(services.journal.now()))).counts
    status = query.equal.get("status")
    return sum(counts.values()) if status is None else counts.get(str(status), 0)
