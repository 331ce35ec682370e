from collections.abc import Callable
from functools import partial

from commands.transact import LOCAL, Receipt, Views, append, identify, load, seen, settle, transact
from domain import adapters, generation, jobs, prompts
from domain.adapters import ADAPTERS
from domain.continuation import Sources
from domain.errors import Fault, InvalidError, NotFoundError
from domain.events.jobs import AdapterSnapshot, JobSubmitted
from domain.events.prompts import PromptAttributes, PromptCreated
from domain.generation import GenerationRequest, Rerun, submission
from domain.idempotency import digest
from domain.jobs import JOBS
from domain.journal import Journal
from domain.melodies import Melodies
from domain.models import Registry
from domain.ports import Reader
from domain.prompts import PROMPTS, Prompt, PromptRequest
from domain.webhooks import Receivers


async def submit(
    journal: Journal,
    views: Views,
    registry: Registry,
    request: GenerationRequest,
    idempotency_key: str | None,
    *,
    sources: Sources,
    melodies: Melodies,
    receivers: Receivers,
    owner: str = LOCAL,
) -> Receipt:
    """A retry appends what the first try left out. Raises InvalidError, NotFoundError for a prompt, an adapter, the
    sample to continue or the melody, KeyReusedError, and ConflictError when the key's job was deleted.
    """
    job_id, request_digest = identify(journal, "job", owner, idempotency_key), digest(request)
    prompt_id = request.prompt_id or prompts.own_id(job_id)
    job = None if idempotency_key is None else await load(views, JOBS, job_id)
    is_new = idempotency_key is None and request.prompt_id is None
    prompt = None if is_new else await load(views, PROMPTS, prompt_id)
    adapter = await find_adapter(views, request.adapter_id if job is None else None)
    continued = request.continue_from if job is None else None
    source = None if continued is None else await sources(continued)
    followed = request.melody_from if job is None else None
    melody = None if followed is None else await melodies(followed)
    receiver = request.webhook_url if job is None else None
    unreachable = [] if receiver is None else await receivers(receiver)

    def submitted() -> JobSubmitted:
        _check(request, prompt)
        if continued is not None and source is None:
            raise NotFoundError("audio sample", continued)
        if followed is not None and melody is None:
            raise NotFoundError("audio sample or uploaded melody", followed)
        made = submission(
            request,
            job_id=job_id,
            prompt_id=prompt_id,
            text=prompt.text if prompt else request.prompt or "",
            attributes=prompt.attributes if prompt else PromptAttributes(),
            registry=registry,
            adapter=adapter("/adapter_id"),
            digest=request_digest,
            source=source,
            melody=melody,
        )
        if unreachable:
            raise InvalidError(unreachable)
        return made

    events = jobs.submit(job, request_digest, submitted)
    created = _created(request, prompt, prompt_id)
    receipt = await append(journal, views, job_id, [*created, *events], seen(JOBS, job))
    decide = partial(jobs.submit, request_digest=request_digest, submission=submitted)
    return await settle(views, JOBS, receipt, idempotency_key, decide)


async def rerun(
    journal: Journal,
    views: Views,
    registry: Registry,
    job_id: str,
    changes: Rerun,
    *,
    sources: Sources,
    melodies: Melodies,
    receivers: Receivers,
    idempotency_key: str | None,
    owner: str = LOCAL,
) -> Receipt:
    """Submits the job's request with the changes. Raises as `submit` does, and NotFoundError for a deleted job."""
    job = await load(views, JOBS, job_id)
    if job is None or job.deleted_at:
        raise NotFoundError("job", job_id)
    request = generation.rerun(job.request, changes, registry)
    return await submit(
        journal,
        views,
        registry,
        request,
        idempotency_key,
        sources=sources,
        melodies=melodies,
        receivers=receivers,
        owner=owner,
    )


async def cancel(journal: Journal, views: Views, job_id: str) -> Receipt:
    return await transact(journal, views, JOBS, job_id, lambda job: jobs.cancel(job, job_id))


async def delete(journal: Journal, views: Views, job_id: str) -> Receipt:
    return await transact(journal, views, JOBS, job_id, lambda job: jobs.delete(job, job_id))


async def find_adapter(views: Reader, adapter_id: str | None) -> Callable[[str], AdapterSnapshot | None]:
    """What gives the adapter as it is now, for a request that names it at a pointer; None is the base model.

    That raises NotFoundError, and InvalidError for an adapter that is not active.
    """
    if adapter_id is None:
        return lambda _: None
    return partial(adapters.snapshot, await load(views, ADAPTERS, adapter_id), adapter_id)


def _check(request: GenerationRequest, prompt: Prompt | None) -> None:
    """Raises InvalidError or NotFoundError for what a job cannot be made of, whatever the model."""
    match request:
        case GenerationRequest(prompt_id=str(prompt_id), prompt=None):
            if prompt is None:
                raise NotFoundError("prompt", prompt_id)
        case GenerationRequest(prompt_id=None, prompt=str(text)):
            if faults := prompts.text_faults(text, "/prompt"):
                raise InvalidError(faults)
        case _:
            raise InvalidError(
                [Fault("/prompt", "Give either prompt_id or prompt: a stored prompt, or the text of a new one.")]
            )


def _created(request: GenerationRequest, prompt: Prompt | None, prompt_id: str) -> list[PromptCreated]:
    """The prompt that comes with the request, unless it is there already."""
    if request.prompt is None:
        return []
    return prompts.create(prompt, prompt_id, PromptRequest(text=request.prompt, user_id=request.user_id))
