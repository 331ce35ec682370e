"""Audio samples as listeners look them up: each a function of its job."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from domain.events.jobs import AdapterSnapshot, Format
from domain.jobs import Job
from domain.ports import View


class GenerationParams(Struct, frozen=True, kw_only=True):
    seed: int
    duration: float
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    adapter_scale: float = 1.0
    continue_from: str | None = None
    continue_seconds: float | None = None


class AudioSample(Struct, frozen=True, kw_only=True):
    id: str
    job_id: str
    index: int
    prompt_id: str
    prompt: str
    model_id: str
    adapter: AdapterSnapshot | None
    generation_params: GenerationParams
    output_format: Format
    storage_path: str
    duration_seconds: float
    sample_rate: int
    channels: int
    size: int
    sha256: str
    loudness_lufs: float | None
    created_at: str
    position: int
    hidden: bool
    pcm_sha256: str | None = None


AUDIO: Final = View("audio", AudioSample, fields=lambda sample: {"hidden": sample.hidden})


def samples(job: Job) -> Iterator[AudioSample]:
    request, sampling, continued = job.request, job.request.sampling, job.request.continuation
    for sample in job.samples:
        event = sample.event
        yield AudioSample(
            id=event.sample_id,
            job_id=job.id,
            index=event.index,
            prompt_id=request.prompt_id,
            prompt=request.prompt,
            model_id=request.model_id,
            adapter=request.adapter,
            generation_params=GenerationParams(
                seed=event.seed,
                duration=request.duration,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                guidance_scale=sampling.guidance_scale,
                adapter_scale=request.adapter_scale,
                continue_from=continued.sample_id if continued else None,
                continue_seconds=continued.seconds if continued else None,
            ),
            output_format=request.output_format,
            storage_path=event.storage_path,
            duration_seconds=event.duration_seconds,
            sample_rate=event.sample_rate,
            channels=event.channels,
            size=event.size,
            sha256=event.sha256,
            loudness_lufs=event.loudness_lufs,
            created_at=sample.created_at,
            position=sample.position if job.silenced is None else job.silenced,
            hidden=job.is_silent,
            pcm_sha256=event.pcm_sha256,
        )
