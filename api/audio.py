from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import HttpMethod, Request, Response, get, route
from litestar.exceptions import HTTPException
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from litestar.status_codes import (
    HTTP_200_OK,
    HTTP_206_PARTIAL_CONTENT,
    HTTP_304_NOT_MODIFIED,
    HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE,
)
from msgspec import Struct

from api import ranges
from api.positions import CURRENT
from api.ranges import Slice, Unsatisfiable
from api.services import Injected, Services
from domain.errors import NotFoundError
from domain.events import Format
from projections.audio import AUDIO, AudioSample, GenerationParams
from workers.audio import Waveform, content_type


class AdapterName(Struct, frozen=True, kw_only=True):
    name: str
    version: str


class AudioBody(Struct, frozen=True, kw_only=True):
    """`loudness_lufs` is integrated loudness (ITU-R BS.1770), null for silence; `sha256` is of the FLAC master."""

    id: str
    job_id: str
    prompt_id: str
    prompt: str
    model_id: str
    notice: str | None
    adapter_id: str | None
    adapter: AdapterName | None
    generation_params: GenerationParams
    storage_path: str
    duration_seconds: float
    sample_rate: int
    channels: int
    sha256: str
    loudness_lufs: float | None
    stream_url: str
    waveform_url: str
    created_at: str


@get("/audio/{sample_id:str}", operation_id="getAudio", opt=CURRENT, tags=["audio"])
async def get_audio(services: Injected, sample_id: FromPath[str]) -> AudioBody:
    sample = await _load(services, sample_id)
    adapter = sample.adapter
    return AudioBody(
        id=sample.id,
        job_id=sample.job_id,
        prompt_id=sample.prompt_id,
        prompt=sample.prompt,
        model_id=sample.model_id,
        notice=services.registry.notice(sample.model_id),
        adapter_id=adapter.id if adapter else None,
        adapter=AdapterName(name=adapter.name, version=adapter.version) if adapter else None,
        generation_params=sample.generation_params,
        storage_path=sample.storage_path,
        duration_seconds=sample.duration_seconds,
        sample_rate=sample.sample_rate,
        channels=sample.channels,
        sha256=sample.sha256,
        loudness_lufs=sample.loudness_lufs,
        stream_url=f"/audio/{sample.id}/stream",
        waveform_url=f"/audio/{sample.id}/waveform",
        created_at=sample.created_at,
    )


@get("/audio/{sample_id:str}/waveform", operation_id="getWaveform", opt=CURRENT, tags=["audio"])
async def get_waveform(services: Injected, sample_id: FromPath[str]) -> Response[Waveform]:
    """Peaks in the JSON layout of audiowaveform, version 2."""
    sample = await _load(services, sample_id)
    key = f"{sample.storage_path.removesuffix('flac')}json"
    peaks = b"".join([chunk async for chunk in services.objects.read(key)])
    return Response(msgspec.json.decode(peaks, type=Waveform), headers={"Cache-Control": "private, no-cache"})


@route(
    "/audio/{sample_id:str}/stream",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    operation_id=lambda handler, method, path: f"{method.lower()}AudioStream",  # noqa: ARG005
    opt=CURRENT,
    tags=["audio"],
)
async def stream_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    sample_id: FromPath[str],
    output_format: Annotated[Format | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """The audio as `format`, by default what the job asked for. Honours Range, If-Range and If-None-Match."""
    sample = await _load(services, sample_id)
    chosen = output_format or sample.output_format
    stored = await services.renditions.get(sample.storage_path, chosen)
    etag = f'"{sample.sha256}"' if chosen == "flac" else f'"{sample.sha256[:16]}-{chosen}-{stored.etag}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{sample.id}.{chosen}"',
    }
    if ranges.unchanged(request.headers, etag):
        return Response(None, status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    wanted = ranges.requested(request.headers, stored.size, etag) if request.method == "GET" else None
    match wanted:
        case Unsatisfiable():
            raise HTTPException(
                status_code=HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE,
                detail=f"The range begins after the end; the file has {stored.size:,} bytes.",
                headers={"Content-Range": f"bytes */{stored.size}"},
            )
        case Slice(start, length):
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{stored.size}"
            status = HTTP_206_PARTIAL_CONTENT
        case None:
            start, length, status = 0, stored.size, HTTP_200_OK
    headers["Content-Length"] = str(length)
    chunks: AsyncIterator[bytes] = services.objects.read(stored.key, start, length)
    return Stream(chunks, status_code=status, headers=headers, media_type=content_type(chosen))


async def _load(services: Services, sample_id: str) -> AudioSample:
    """Raises NotFoundError for a sample of a deleted or cancelled job too."""
    sample = (await services.views.get(AUDIO, [sample_id])).get(sample_id)
    if sample is None or sample.hidden:
        raise NotFoundError("audio sample", sample_id)
    return sample
