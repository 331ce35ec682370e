from collections.abc import Sequence
from hashlib import sha256
from uuid import NAMESPACE_URL, uuid5

import msgspec

from commands.receipt import Receipt
from domain import jobs, prompts
from domain.errors import Fault, InvalidError, NotFoundError
from domain.events import Event, PromptCreated
from domain.generation import GenerationRequest, submission
from domain.jobs import JOBS, Job
from domain.journal import Journal
from domain.models import Registry
from domain.ports import Position, Reader
from domain.prompts import PROMPTS


def digest(request: GenerationRequest) -> str:
    return sha256(msgspec.json.encode(request, order="sorted")).hexdigest()


async def submit(
    journal: Journal,
    store: Reader,
    registry: Registry,
    request: GenerationRequest,
    idempotency_key: str | None,
) -> Receipt:
    """Raises InvalidError, NotFoundError for a prompt or adapter, and KeyReusedError."""
    job_id = journal.new_id() if idempotency_key is None else str(uuid5(NAMESPACE_URL, f"job:{idempotency_key}"))
    if idempotency_key is not None and (job := await _load(store, job_id)):
        jobs.check_same_request(job, digest(request))
        return _seen(job)
    model = registry.usable(request.model_id)
    prompt = await _prompt(store, request, job_id)
    if request.adapter_id is not None:
        raise NotFoundError("adapter", request.adapter_id)
    submitted = submission(
        request,
        job_id=job_id,
        prompt_id=prompt.prompt_id,
        text=prompt.text,
        default_duration=prompt.attributes.duration,
        model=model,
        adapter=None,
        digest=digest(request),
    )
    created = [prompt] if request.prompt_id is None else []
    return await _append(journal, None, [*created, *jobs.submit(None, submitted)])


async def cancel(journal: Journal, store: Reader, job_id: str) -> Receipt:
    job = await _load(store, job_id)
    return await _append(journal, job, jobs.cancel(job, job_id))


async def delete(journal: Journal, store: Reader, job_id: str) -> Receipt:
    job = await _load(store, job_id)
    return await _append(journal, job, jobs.delete(job, job_id))


async def _prompt(store: Reader, request: GenerationRequest, job_id: str) -> PromptCreated:
    """The event that created the prompt asked for, or that will create it."""
    match request:
        case GenerationRequest(prompt_id=str(prompt_id), prompt=None):
            if prompt := (await store.get(PROMPTS, [prompt_id])).get(prompt_id):
                return PromptCreated(
                    prompt_id=prompt.id, text=prompt.text, attributes=prompt.attributes, user_id=prompt.user_id
                )
            raise NotFoundError("prompt", prompt_id)
        case GenerationRequest(prompt_id=None, prompt=str(text)):
            if faults := prompts.text_faults(text, "/prompt"):
                raise InvalidError(faults)
            prompt_id = str(uuid5(NAMESPACE_URL, f"prompt of job:{job_id}"))
            return PromptCreated(prompt_id=prompt_id, text=text, user_id=request.user_id)
    raise InvalidError(
        [Fault("/prompt", "Give either prompt_id or prompt: a stored prompt, or the text of a new one.")]
    )


async def _load(store: Reader, job_id: str) -> Job | None:
    return (await store.get(JOBS, [job_id])).get(job_id)


async def _append(journal: Journal, job: Job | None, events: Sequence[Event]) -> Receipt:
    if job and not events:
        return _seen(job)
    event_id = journal.new_id()
    positions = await journal.append(*events, event_id=event_id)
    return Receipt(events[-1].key, tuple(positions), event_id)


def _seen(job: Job) -> Receipt:
    return Receipt(job.id, (Position("jobs", job.partition, job.position),))
