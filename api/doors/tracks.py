"""From a prompt to a track in one request: the same jobs and samples as everywhere, under other names.

A track is a job's first sample, and its id is the job's.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Final, get_args

from litestar import Request, Response, get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_201_CREATED, HTTP_202_ACCEPTED
from msgspec import Meta, Struct

from api.audio import find_sample
from api.health import Ready, readiness
from api.http import positions
from api.http.access import OPEN
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.http.streams import stream
from api.jobs import accept
from api.prompts import IdempotencyKey
from commands.transact import begun, existing, load, seen
from domain.errors import (
    ConflictError,
    DamagedError,
    FailedError,
    Fault,
    InvalidError,
    NotFoundError,
    UnavailableError,
    plain,
)
from domain.events import Recorded
from domain.events.jobs import Format
from domain.events.progress import JobProgressed
from domain.generation import GenerationRequest
from domain.jobs import JOBS, Job
from domain.prompts import text_faults
from projections.audio import samples
from workers.mastering import content_type

DURATIONS: Final = (5.0, 300.0)  # seconds; both ends are within
DEFAULT_DURATION: Final = 30.0
FILE_FORMAT: Final = "wav"
FORMATS: Final[tuple[str, ...]] = get_args(Format)


class TrackRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`duration` is from 5 to 300 seconds."""

    prompt: Annotated[str, Meta(examples=["slow blues, brushed drums"])]
    duration: float = DEFAULT_DURATION


class Track(Struct, frozen=True, kw_only=True):
    """`device` is what the worker generates on, `unknown` once the worker is gone. The MP3 is at the same address with
    the ending `.mp3`.
    """

    track_id: str
    audio_url: str
    duration: float
    device: str
    created_at: str


class TrackMetadata(Struct, frozen=True, kw_only=True):
    """`audio_url` and `file_size`, which is of the WAV, are null while there is no file."""

    track_id: str
    prompt: str
    duration: float
    status: str
    audio_url: str | None
    file_size: int | None
    created_at: str
    error: str | None


@post(
    "/api/generate",
    operation_id="generateTrack",
    opt=CURRENT,
    status_code=HTTP_201_CREATED,
    responses={HTTP_202_ACCEPTED: ResponseSpec(TrackMetadata, description="It takes longer", generate_examples=False)},
    tags=["tracks"],
)
async def generate_track(
    request: Request[Any, Any, Any],
    services: Injected,
    data: JSONBody[TrackRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[Track | TrackMetadata]:
    """Makes a track and answers when it is there. What takes longer than the studio waits is answered 202, with the
    address of the track in `Location`; a client that leaves finds it there too.
    """
    _check(data)
    receipt = await accept(services, GenerationRequest(prompt=data.prompt, duration=data.duration), idempotency_key)
    try:
        async with _until_gone(request) as gone:
            job = await _ended(services, receipt.id, gone)
    except UnavailableError:
        # It was accepted, and without its id the client could only ask for another one.
        job = await begun(services.journal, services.views, JOBS, receipt, "track")
    headers = {"Location": f"/api/track/{job.id}", **positions.headers(*seen(JOBS, job))}
    match job.status:
        case "completed" if (made := next(samples(job), None)) and not job.is_silent:
            track = Track(
                track_id=job.id,
                audio_url=_url(made.id),
                duration=made.duration_seconds,
                device=_device(services, job),
                created_at=job.created_at,
            )
            return Response(track, status_code=HTTP_201_CREATED, headers=headers)
        case "failed":
            raise FailedError(f"Track {job.id} could not be generated: {job.error}")
        case "queued" | "processing" if not job.deleted_at:
            metadata = await _metadata(services, job)
            return Response(metadata, status_code=HTTP_202_ACCEPTED, headers={**headers, "Retry-After": "5"})
    raise ConflictError(f"Track {job.id} was cancelled or deleted while it was made; ask for it again.")


@get("/api/track/{track_id:str}", operation_id="getTrack", opt=CURRENT, tags=["tracks"])
async def get_track(services: Injected, track_id: FromPath[str]) -> Response[TrackMetadata]:
    job = await load(services.views, JOBS, track_id)
    if job is None or job.deleted_at:
        raise NotFoundError("track", track_id)
    return Response(await _metadata(services, job), headers=positions.headers(*seen(JOBS, job)))


@get("/output/{file_name:str}", operation_id="getOutput", opt=CURRENT, tags=["tracks"])
async def get_output(request: Request[Any, Any, Any], services: Injected, file_name: FromPath[str]) -> Response[Any]:
    """A track's file as WAV or MP3, by its ending; `.flac` and `.ogg` are there too. Honours Range, If-Range and
    If-None-Match.
    """
    stem, _, ending = file_name.rpartition(".")
    output_format = next((known for known in get_args(Format) if known == ending), None)
    if output_format is None:
        raise NotFoundError(f"file with one of the endings {', '.join(FORMATS)} named", file_name)
    if (sample := await find_sample(services, stem)) is None:
        raise NotFoundError("file", file_name)
    stored = await services.renditions.get(sample, output_format)
    return await stream(
        request.headers,
        stored,
        etag=f'"{sample.sha256[:16]}-{output_format}-{stored.etag}"',
        file_name=file_name,
        media_type=content_type(output_format),
    )


@get("/health", operation_id="getHealth", opt=OPEN, tags=["health"])
async def get_health(services: Injected) -> Response[Ready]:
    """As `/health/ready`."""
    return await readiness(services)


ROUTES: Final = (generate_track, get_track, get_output, get_health)


def _check(asked: TrackRequest) -> None:
    """Raises InvalidError."""
    faults = list(text_faults(asked.prompt, "/prompt"))
    low, high = DURATIONS
    if not low <= asked.duration <= high:
        detail = f"duration is {plain(asked.duration)} s; a track has from {plain(low)} to {plain(high)} s."
        faults.append(Fault("/duration", detail))
    if faults:
        raise InvalidError(faults)


@asynccontextmanager
async def _until_gone(request: Request[Any, Any, Any]) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that ends when the client has left."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.create_task(watch())
    try:
        yield watching
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _ended(services: Services, job_id: str, gone: "asyncio.Task[None]") -> Job:
    """The job once it has ended or was deleted, or as it is when the wait is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + services.track_seconds
    with services.feed.listen(job_id) as heard:
        while True:
            job = await existing(services.views, JOBS, job_id, "track")
            if not job.is_open or job.deleted_at or loop.time() >= end or gone.done():
                return job
            if not await _changes(heard, gone, end - loop.time()):
                return await existing(services.views, JOBS, job_id, "track")


async def _changes(heard: "asyncio.Queue[Recorded | None]", gone: "asyncio.Task[None]", seconds: float) -> bool:
    """Waits for news of the job other than its progress. False once the process stops, or nobody waits any more."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not gone.done():
                hearing = asyncio.create_task(heard.get())
                try:
                    await asyncio.wait({hearing, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hearing.cancel()
                if hearing.done() and not hearing.cancelled():
                    if (news := hearing.result()) is None:
                        return False
                    if not isinstance(news.event, JobProgressed):
                        return True
    return False


async def _metadata(services: Services, job: Job) -> TrackMetadata:
    made = next(samples(job), None) if job.status == "completed" and not job.is_silent else None
    size = None
    # Without its master a track is still a track, which has no file.
    with suppress(NotFoundError, DamagedError):
        size = (await services.renditions.get(made, FILE_FORMAT)).size if made else None
    return TrackMetadata(
        track_id=job.id,
        prompt=job.request.prompt,
        duration=made.duration_seconds if made else job.request.duration,
        status=job.status,
        audio_url=_url(made.id) if made and size is not None else None,
        file_size=size,
        created_at=job.created_at,
        error=job.error,
    )


def _url(sample_id: str) -> str:
    return f"/output/{sample_id}.{FILE_FORMAT}"


def _device(services: Services, job: Job) -> str:
    return next((alive.device for alive in services.feed.workers() if alive.worker_id == job.worker_id), "unknown")
