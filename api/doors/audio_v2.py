"""Music for campaigns, and its gallery: the same jobs and samples as everywhere, under the names of a hosted API.

An audio is a job's first sample, and its id is the job's.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.http.streams import stream
from api.jobs import accept, begun
from api.prompts import IdempotencyKey
from commands import jobs as commands
from commands.transact import load, seen
from domain.errors import ConflictError, Fault, InvalidError, NotFoundError, UnavailableError, plain
from domain.events.jobs import RANGES, SEEDS
from domain.events.webhooks import Kind
from domain.families import FAMILIES, SeedImage
from domain.generation import GenerationRequest
from domain.jobs import JOBS, Job, Status
from domain.models import Model, Registry
from domain.prompts import text_faults
from domain.webhooks import url_faults
from projections.audio import samples
from workers.mastering import content_type

AudioModel: TypeAlias = Literal["meta/musicgen", "riffusion/riffusion"]
MUSICGEN: Final = "meta/musicgen"
RIFFUSION: Final = "riffusion/riffusion"
NAMED: Final = {MUSICGEN: "musicgen", RIFFUSION: "riffusion"}
LIMIT: Final = "10/minute"
_OWN: Final = {parameter.name: parameter for parameter in FAMILIES["riffusion"].parameters}
# Both ends are within.
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "duration": (2, 12),
    "temperature": RANGES["temperature"],
    "top_k": RANGES["top_k"],
    "top_p": RANGES["top_p"],
    "classifier_free_guidance": RANGES["guidance_scale"],
    "seed": (-1, SEEDS - 1),
    **{name: (own.low, own.high) for name, own in _OWN.items() if own.low is not None and own.high is not None},
}
# The parameters of each model, with their defaults.
PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    MUSICGEN: {
        "model_version": None,
        "duration": 8.0,
        "temperature": 1.0,
        "top_k": 250,
        "top_p": 0.0,
        "classifier_free_guidance": 3.0,
        "output_format": "mp3",
        "seed": -1,
    },
    RIFFUSION: {"duration": 8.0, **{name: own.default for name, own in _OWN.items()}},
}


class AudioGenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters that are left out have the model's defaults. Of `meta/musicgen`: `duration` 8 (2 to 12 s),
    `temperature` 1 (0 to 5), `top_k` 250 (0 to 100,000), `top_p` 0 (0 to 1; 0 keeps every token),
    `classifier_free_guidance` 3 (1 to 20), `output_format` mp3, `seed` -1 (random), and `model_version` any that a
    worker has. Of `riffusion/riffusion`: `prompt_b`, `alpha` 0.5 (0 to 1), `denoising` 0.75 (0 to 1),
    `num_inference_steps` 50 (1 to 1,000) and `seed_image_id` vibes.

    `webhook` and `webhook_url` are one: the address that is told of the end, or of each of `webhook_events`.
    """

    prompt: Annotated[str, Meta(examples=["upbeat electronic dance music with heavy bass"])]
    model: AudioModel = "meta/musicgen"
    duration: float | None = None
    model_version: Literal["stereo-melody-large", "stereo-large", "melody-large", "large"] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    classifier_free_guidance: float | None = None
    output_format: Literal["wav", "mp3"] | None = None
    seed: int | None = None
    prompt_b: str | None = None
    alpha: float | None = None
    denoising: float | None = None
    num_inference_steps: int | None = None
    seed_image_id: SeedImage | None = None
    client_id: str | None = None
    campaign_id: str | None = None
    brief_id: str | None = None
    collection: str | None = None
    webhook: str | None = None
    webhook_url: str | None = None
    webhook_events: list[Kind] | None = None


class AudioReceipt(Struct, frozen=True, kw_only=True):
    audio_id: str
    status: Status
    model: str


class AudioRecord(Struct, frozen=True, kw_only=True):
    """`model_id` is the name of the model at this address, `parameters.model` the model that made it.

    The worker fetches the audio from the model and stores it before it is `completed`: `download_attempted` says
    whether it has tried, `download_retries` how often it tried again, and `download_error` what the last failure was.
    """

    id: str
    prompt: str
    model_id: str
    status: Status
    parameters: dict[str, Any]
    duration: float
    audio_url: str | None
    sample_ids: list[str]
    download_attempted: bool
    download_retries: int
    download_error: str | None
    client_id: str | None
    campaign_id: str | None
    brief_id: str | None
    collection: str | None
    created_at: str
    completed_at: str | None


class AudioDeletion(Struct, frozen=True, kw_only=True):
    audio_id: str
    deleted: bool = True


@post(
    "/api/v2/generate/audio",
    operation_id="generateAudio",
    opt={**CURRENT, "limit": LIMIT},
    status_code=HTTP_202_ACCEPTED,
    tags=["campaign audio"],
)
async def generate_audio(
    services: Injected, data: JSONBody[AudioGenerationRequest], idempotency_key: IdempotencyKey = None
) -> Response[AudioReceipt]:
    """Queues an audio. 503 names a model that no worker has.

    A retry under the same `Idempotency-Key` is the same audio.
    """
    if faults := list(_faults(data)):
        raise InvalidError(faults)
    # A retry is the same request, whatever the workers have by now.
    first = await begun(services, idempotency_key)
    model_id = first.request.model_id if first else _model(await services.models(), data).id
    receipt = await accept(services, _request(data, model_id), idempotency_key)
    # A new one is queued, and without a key nobody could ask for it again if it cannot be read back just now.
    job = await load(services.views, JOBS, receipt.id) if idempotency_key else None
    return Response(
        AudioReceipt(audio_id=receipt.id, status=job.status if job else "queued", model=data.model),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/api/audio/{receipt.id}", **positions.headers(*receipt.positions)},
    )


@get("/api/audio", operation_id="listAudio", tags=["campaign audio"])
async def list_audio(
    services: Injected,
    *,
    model_id: FromQuery[str | None] = None,
    collection: FromQuery[str | None] = None,
    client_id: FromQuery[str | None] = None,
    campaign_id: FromQuery[str | None] = None,
    brief_id: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[AudioRecord]:
    """Newest first, without deleted ones. Every filter narrows. `model_id` is a name at this address, or a model's own
    as in `GET /models`.
    """
    if status is not None and status not in get_args(Status):
        raise InvalidError([Fault("/status", f"status is {status!r}; it is one of {', '.join(get_args(Status))}.")])
    registry = await services.models()
    query = pages.query(
        limit,
        offset,
        cursor,
        equal={
            "collection": collection,
            "client_id": client_id,
            "campaign_id": campaign_id,
            "brief_id": brief_id,
            "status": status,
        },
        among={} if model_id is None else {"model_id": _known_as(registry, model_id)},
    )
    return await pages.page(services.views, JOBS, query, partial(_record, registry))


@get("/api/audio/{audio_id:str}", operation_id="getCampaignAudio", opt=CURRENT, tags=["campaign audio"])
async def get_audio(services: Injected, audio_id: FromPath[str]) -> Response[AudioRecord]:
    job = await _shown(services, audio_id)
    return Response(_record(await services.models(), job), headers=positions.headers(*seen(JOBS, job)))


@get("/api/audio/{audio_id:str}/data", operation_id="getCampaignAudioData", opt=CURRENT, tags=["campaign audio"])
async def get_audio_data(request: Request[Any, Any, Any], services: Injected, audio_id: FromPath[str]) -> Response[Any]:
    """The audio itself in the format that was asked for. Honours Range, If-Range and If-None-Match."""
    job = await _shown(services, audio_id)
    if job.is_open:
        raise ConflictError(f"Audio {audio_id} is {job.status}; ask again when it is completed.")
    if (sample := next(samples(job), None)) is None or job.is_silent:
        raise NotFoundError("data of audio", audio_id)
    chosen = sample.output_format
    stored = await services.renditions.get(sample, chosen)
    return await stream(
        request.headers,
        stored,
        etag=f'"{sample.sha256[:16]}-{chosen}-{stored.etag}"',
        file_name=f"{audio_id}.{chosen}",
        media_type=content_type(chosen),
    )


@delete(
    "/api/audio/{audio_id:str}",
    operation_id="deleteCampaignAudio",
    opt=CURRENT,
    status_code=HTTP_200_OK,
    tags=["campaign audio"],
)
async def delete_audio(services: Injected, audio_id: FromPath[str]) -> Response[AudioDeletion]:
    """Stops it where it is still being made, and removes it and its audio for good."""
    await _shown(services, audio_id)
    receipt = await commands.delete(services.journal, services.views, audio_id)
    await services.views.show(receipt.positions)
    return Response(AudioDeletion(audio_id=audio_id), headers=positions.headers(*receipt.positions))


ROUTES: Final = (generate_audio, list_audio, get_audio, get_audio_data, delete_audio)


async def _shown(services: Services, audio_id: str) -> Job:
    job = await load(services.views, JOBS, audio_id)
    if job is None or job.deleted_at:
        raise NotFoundError("audio", audio_id)
    return job


def _faults(asked: AudioGenerationRequest) -> Iterator[Fault]:
    yield from text_faults(asked.prompt, "/prompt")
    own = PARAMETERS[asked.model]
    for name in dict.fromkeys(name for parameters in PARAMETERS.values() for name in parameters):
        value = getattr(asked, name)
        if value is None:
            continue
        if name not in own:
            detail = f"{name} is no parameter of {asked.model}, which takes {', '.join(own)}. Leave it out."
            yield Fault(f"/{name}", detail)
        elif name in BOUNDS and not BOUNDS[name][0] <= value <= BOUNDS[name][1]:
            low, high = BOUNDS[name]
            detail = f"{name} is {plain(value)}; it must be from {plain(low)} to {plain(high)}."
            yield Fault(f"/{name}", detail)
    if asked.webhook is not None:
        yield from url_faults(asked.webhook, "/webhook")
        if asked.webhook_url not in {None, asked.webhook}:
            yield Fault("/webhook", "webhook and webhook_url differ, and are one address; give one of them.")


def _model(registry: Registry, asked: AudioGenerationRequest) -> Model:
    """One that a worker has. Raises UnavailableError."""
    wanted = asked.model if asked.model_version is None else f"facebook/musicgen-{asked.model_version}"
    able = [model for model in _named(registry, asked.model) if model.id in registry.workers]
    if asked.model_version is not None:
        able = [model for model in able if model.id == wanted]
    if not able:
        raise UnavailableError(
            f"No worker has the model {wanted}. Start one that has it, with TEXT2SONG_MODEL, and ask again; "
            "GET /models lists what the workers have."
        )
    return next((model for model in able if model.is_active), able[0])


def _named(registry: Registry, name: str) -> Sequence[Model]:
    return [model for model in registry.models if model.family == NAMED[name]]


def _known_as(registry: Registry, model_id: str) -> Sequence[str]:
    """The ids of the models that go by the name."""
    return [model.id for model in _named(registry, model_id)] if model_id in NAMED else [model_id]


def _request(asked: AudioGenerationRequest, model_id: str) -> GenerationRequest:
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    given = {**PARAMETERS[asked.model], **given}
    request = GenerationRequest(
        prompt=asked.prompt,
        model_id=model_id,
        duration=given["duration"],
        output_format=given.get("output_format", "mp3"),
        client_id=asked.client_id,
        campaign_id=asked.campaign_id,
        brief_id=asked.brief_id,
        collection=asked.collection,
        webhook_url=asked.webhook_url or asked.webhook,
        webhook_events=asked.webhook_events,
    )
    if asked.model == RIFFUSION:
        return replace(request, parameters={name: given[name] for name in _OWN})
    return replace(
        request,
        temperature=given["temperature"],
        top_k=given["top_k"],
        top_p=given["top_p"] or 1.0,
        guidance_scale=given["classifier_free_guidance"],
        seed=None if given["seed"] == -1 else given["seed"],
    )


def _record(registry: Registry, job: Job) -> AudioRecord:
    request, sampling = job.request, job.request.sampling
    made = next(samples(job), None) if job.status == "completed" and not job.is_silent else None
    family = next((model.family for model in registry.models if model.id == request.model_id), None)
    drawn = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": 0.0 if sampling.top_p == 1 else sampling.top_p,
    }
    return AudioRecord(
        id=job.id,
        prompt=request.prompt,
        model_id=next((name for name, each in NAMED.items() if each == family), request.model_id),
        status=job.status,
        parameters={
            "model": request.model_id,
            "duration": request.duration,
            **(request.parameters or drawn),
            "classifier_free_guidance": sampling.guidance_scale,
            "output_format": request.output_format,
            "seed": request.seeds[0],
        },
        duration=made.duration_seconds if made else request.duration,
        audio_url=f"/api/audio/{job.id}/data" if made else None,
        sample_ids=[sample.event.sample_id for sample in job.audible],
        download_attempted=job.attempt > 0,
        download_retries=max(0, job.attempt - 1),
        download_error=job.error,
        client_id=request.client_id,
        campaign_id=request.campaign_id,
        brief_id=request.brief_id,
        collection=request.collection,
        created_at=job.created_at,
        completed_at=job.completed_at,
    )
