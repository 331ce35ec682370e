from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.params import FromPath, QueryParameter
from msgspec import Struct, convert
from msgspec.structs import asdict

from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.http.streams import stream
from commands.transact import load
from domain.errors import DamagedError, NotFoundError
from domain.events.jobs import Basis, Format
from domain.jobs import waveform
from projections.audio import AUDIO, AudioSample, GenerationParams, Score
from workers.mastering import Waveform, content_type


class AdapterName(Struct, frozen=True, kw_only=True):
    name: str
    version: str


class AudioBody(Struct, frozen=True, kw_only=True):
    """`loudness_lufs` is integrated loudness (ITU-R BS.1770), null for silence; `sha256` is of the FLAC master.

    `pcm_sha256` is of its samples alone, as `ffmpeg -i FILE -f s24le -` writes them: the same seed, model, adapter and
    settings give the same. It is null for samples that were made before it was recorded.
    With `best_of`, `scores` are of all candidates, by seed, and `picked_by` says which score chose this one of them.
    """

    id: str
    job_id: str
    prompt_id: str
    prompt: str
    lyrics: str | None
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
    pcm_sha256: str | None
    loudness_lufs: float | None
    scores: list[Score]
    picked_by: Basis | None
    stream_url: str
    waveform_url: str
    created_at: str


@get("/audio/{sample_id:str}", operation_id="getAudio", opt=CURRENT, tags=["audio"])
async def get_audio(services: Injected, sample_id: FromPath[str]) -> AudioBody:
    return body(services, await _load(services, sample_id))


@get("/audio/{sample_id:str}/waveform", operation_id="getWaveform", opt=CURRENT, tags=["audio"])
async def get_waveform(services: Injected, sample_id: FromPath[str]) -> Response[Waveform]:
    """Peaks in the JSON layout of audiowaveform, version 2."""
    sample = await _load(services, sample_id)
    key = waveform(sample.storage_path)
    peaks = b"".join([chunk async for chunk in services.objects.read(key)])
    try:
        shape = msgspec.json.decode(peaks, type=Waveform)
    except msgspec.MsgspecError:
        raise DamagedError(f"The waveform {key!r} is damaged. Put a sound copy in its place.") from None
    return Response(shape, headers={"Cache-Control": "private, no-cache"})


@get("/audio/{sample_id:str}/stream", operation_id="getAudioStream", opt=CURRENT, tags=["audio"])
async def stream_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    sample_id: FromPath[str],
    output_format: Annotated[Format | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """The audio as `format`, by default what the job asked for. Honours Range, If-Range and If-None-Match.

    A master that is damaged answers 410.
    """
    sample = await _load(services, sample_id)
    chosen = output_format or sample.output_format
    stored = await services.renditions.get(sample, chosen)
    etag = f'"{stored.etag}"' if chosen == "flac" else f'"{sample.sha256[:16]}-{chosen}-{stored.etag}"'
    return await stream(
        request.headers, stored, etag=etag, file_name=f"{sample.id}.{chosen}", media_type=content_type(chosen)
    )


ROUTES: Final = (get_audio, get_waveform, stream_audio)


def body(services: Services, sample: AudioSample) -> AudioBody:
    computed = {
        "notice": services.registry.notice(sample.model_id),
        "adapter_id": sample.adapter.id if sample.adapter else None,
        "stream_url": f"/audio/{sample.id}/stream",
        "waveform_url": f"/audio/{sample.id}/waveform",
    }
    return convert(asdict(sample) | computed, AudioBody, from_attributes=True)


async def _load(services: Services, sample_id: str) -> AudioSample:
    """Raises NotFoundError for a sample of a deleted, cancelled or purged job too."""
    if (sample := await find_sample(services, sample_id)) is None:
        raise NotFoundError("audio sample", sample_id)
    return sample


async def find_sample(services: Services, sample_id: str) -> AudioSample | None:
    """None for a sample of a deleted, cancelled or purged job too."""
    sample = await load(services.views, AUDIO, sample_id)
    return None if sample is None or sample.hidden else sample
