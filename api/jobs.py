from collections.abc import Mapping
from datetime import datetime
from typing import get_args

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED
from msgspec import Struct

from api import pages, positions
from api.pages import Page
from api.positions import CURRENT
from api.prompts import IdempotencyKey
from api.services import Injected, Services
from commands import jobs as commands
from commands.receipt import Receipt
from domain.errors import ConflictError, Fault, InvalidError, NotFoundError
from domain.events import Format
from domain.generation import GenerationRequest
from domain.jobs import JOBS, Job, Outcome, Status, check_same_request
from domain.ports import Position, Query, Scalar
from projections.jobs import Statistics, statistics


class JobParams(Struct, frozen=True, kw_only=True):
    num_samples: int
    duration: float
    seeds: list[int]
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float


class JobBody(Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 100. `outcomes` says what became of the latest events; `suspect` marks a damaged history."""

    id: str
    status: Status
    progress: float
    stage: str | None
    eta_seconds: float | None
    sample_ids: list[str]
    error: str | None
    attempt: int
    prompt_id: str
    prompt: str
    model_id: str
    adapter_id: str | None
    generation_params: JobParams
    output_format: Format
    priority: int
    user_id: str | None
    client_id: str | None
    campaign_id: str | None
    brief_id: str | None
    collection: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    suspect: bool
    outcomes: list[Outcome]


class JobReceipt(Struct, frozen=True, kw_only=True):
    job_id: str
    status: Status


class Deletion(Struct, frozen=True, kw_only=True):
    job_id: str
    status: Status
    deleted_at: str | None


@post("/generate", operation_id="submitGeneration", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["generation"])
async def submit_generation(
    services: Injected, data: JSONBody[GenerationRequest], idempotency_key: IdempotencyKey = None
) -> Response[JobReceipt]:
    """Queues a job. A retry under the same `Idempotency-Key` is the same job."""
    receipt = await commands.submit(services.journal, services.views, services.registry, data, idempotency_key)
    status: Status = "queued"
    if idempotency_key is None:
        await positions.visible(services, receipt)
    elif job := await _settled(services, receipt):
        check_same_request(job, commands.digest(data))
        status = job.status
    return Response(
        JobReceipt(job_id=receipt.id, status=status),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/generate/{receipt.id}", **positions.headers(*receipt.positions)},
    )


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
    return await _answer(services, job_id)


@get("/jobs/{job_id:str}", operation_id="getJob", opt=CURRENT, tags=["jobs"])
async def get_job(services: Injected, job_id: FromPath[str]) -> Response[JobBody]:
    return await _answer(services, job_id)


@get("/jobs", operation_id="listJobs", tags=["jobs"])
async def list_jobs(
    services: Injected,
    *,
    status: FromQuery[str | None] = None,
    adapter_id: FromQuery[str | None] = None,
    start_date: FromQuery[str | None] = None,
    end_date: FromQuery[str | None] = None,
    client_id: FromQuery[str | None] = None,
    campaign_id: FromQuery[str | None] = None,
    brief_id: FromQuery[str | None] = None,
    collection: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[JobBody]:
    """Newest first, without deleted jobs. Every filter narrows; the dates bound `created_at`, both inclusive."""
    pages.check(limit, offset)
    if status is not None and status not in get_args(Status):
        raise InvalidError([Fault("/status", f"status is {status!r}; it is one of {', '.join(get_args(Status))}.")])
    filters: Mapping[str, Scalar] = {
        "status": status,
        "adapter_id": adapter_id,
        "client_id": client_id,
        "campaign_id": campaign_id,
        "brief_id": brief_id,
        "collection": collection,
    }
    query = Query(
        equal={name: value for name, value in filters.items() if value is not None},
        start=pages.moment("start_date", start_date),
        end=pages.moment("end_date", end_date, end=True),
        after=pages.after(cursor),
        offset=offset,
        limit=limit + 1,
    )
    found = await services.views.find(JOBS, query)
    return Page(
        items=[body(services, job) for job in found[:limit]],
        total=await _total(services, query),
        limit=limit,
        offset=offset,
        next_cursor=pages.cursor(found, limit),
    )


@get("/jobs/stats", operation_id="getQueueStatistics", tags=["jobs"])
async def get_statistics(services: Injected) -> Statistics:
    return await statistics(services.views, datetime.fromisoformat(services.journal.now()))


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


async def load(services: Services, job_id: str) -> Job:
    """Raises NotFoundError for a deleted job too."""
    job = (await services.views.get(JOBS, [job_id])).get(job_id)
    if job is None or job.deleted_at:
        raise NotFoundError("job", job_id)
    return job


def body(services: Services, job: Job) -> JobBody:
    request = job.request
    live = services.feed.progress(job.id, job.attempt) if job.status == "processing" else None
    made = len(job.samples) / len(request.seeds)
    return JobBody(
        id=job.id,
        status=job.status,
        progress=round(100 * max(made, live.fraction if live else 0.0), 1),
        stage=live.stage if live else _waiting(services, job),
        eta_seconds=live.eta_seconds if live else None,
        sample_ids=[sample.event.sample_id for sample in job.audible],
        error=job.error,
        attempt=job.attempt,
        prompt_id=request.prompt_id,
        prompt=request.prompt,
        model_id=request.model_id,
        adapter_id=request.adapter.id if request.adapter else None,
        generation_params=JobParams(
            num_samples=len(request.seeds),
            duration=request.duration,
            seeds=request.seeds,
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            top_p=request.sampling.top_p,
            guidance_scale=request.sampling.guidance_scale,
        ),
        output_format=request.output_format,
        priority=request.priority,
        user_id=request.user_id,
        client_id=request.client_id,
        campaign_id=request.campaign_id,
        brief_id=request.brief_id,
        collection=request.collection,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        suspect=job.suspect,
        outcomes=list(job.outcomes),
    )


def _waiting(services: Services, job: Job) -> str | None:
    if job.status == "queued" and job.request.model_id != services.registry.active.id:
        return f"waits for a worker with the model {job.request.model_id}"
    return None


async def _answer(services: Services, job_id: str) -> Response[JobBody]:
    job = await load(services, job_id)
    headers = positions.headers(Position("jobs", job.partition, job.position))
    return Response(body(services, job), headers=headers)


async def _settled(services: Services, receipt: Receipt) -> Job | None:
    """The job once it shows the command, None where that takes too long."""
    if not await positions.visible(services, receipt):
        return None
    return (await services.views.get(JOBS, [receipt.id])).get(receipt.id)


def _accepted(job: Job | None, receipt: Receipt) -> Job | None:
    """Raises ConflictError when the fold refused the command's event."""
    if job and receipt.event_id and (outcome := job.outcome(receipt.event_id)) and outcome.reason:
        raise ConflictError(f"The request came too late: {outcome.reason}.")
    return job


async def _total(services: Services, query: Query) -> int:
    """From the counters where they can tell: counting a long history at every page would not scale."""
    if query.start or query.end or query.equal.keys() - {"status"}:
        return await services.views.count(JOBS, query)
    counts = (await statistics(services.views, datetime.fromisoformat(services.journal.now()))).counts
    status = query.equal.get("status")
    return sum(counts.values()) if status is None else counts.get(str(status), 0)
