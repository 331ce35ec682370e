"""Audio samples as listeners look them up: each a function of its job."""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from domain.events.jobs import AdapterSnapshot, Basis, Format
from domain.jobs import Job, Sample
from domain.ports import View


class GenerationParams(Struct, frozen=True, kw_only=True):
    """`parameters` are all that the model takes besides, by name."""

    seed: int
    duration: float
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    adapter_scale: float = 1.0
    continue_from: str | None = None
    continue_seconds: float | None = None
    melody_from: str | None = None
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)


class Score(Struct, frozen=True, kw_only=True):
    """Of a candidate: `likelihood` is by how many nats a code the prompt makes it likelier, `preference` its log-odds
    by the adapter's preference model. Only differences mean something.
    """

    seed: int
    likelihood: float | None
    preference: float | None


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
    user_id: str | None = None
    scores: tuple[Score, ...] = ()
    picked_by: Basis | None = None
    lyrics: str | None = None


AUDIO: Final = View("audio", AudioSample, fields=lambda sample: {"hidden": sample.hidden})


def samples(job: Job) -> Iterator[AudioSample]:
    """Those to be listened to, unless the job is silent."""
    for row, sample in zip(job.rows, job.kept, strict=True):
        yield _sample(job, sample, row)


def documents(job: Job) -> Iterator[AudioSample]:
    """Those, and its other candidates, which are hidden: by id, they lead to the job that decides."""
    yield from samples(job)
    kept = {sample.event.index for sample in job.kept}
    for sample in job.samples:
        if sample.event.index not in kept:
            yield replace(_sample(job, sample, [sample]), hidden=True)


def _sample(job: Job, sample: Sample, row: Sequence[Sample]) -> AudioSample:
    """`row` are the candidates that it is the best of, whose last one decides."""
    request, sampling, continued = job.request, job.request.sampling, job.request.continuation
    event, position = sample.event, max(candidate.position for candidate in row)
    scores = [
        Score(seed=each.event.seed, likelihood=each.event.likelihood, preference=each.event.preference) for each in row
    ]
    return AudioSample(
        id=event.sample_id,
        job_id=job.id,
        index=event.index // request.best_of,
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
            melody_from=request.melody.id if request.melody else None,
            parameters=request.parameters,
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
        position=position if job.silenced is None else job.silenced,
        hidden=job.is_silent,
        pcm_sha256=event.pcm_sha256,
        user_id=request.user_id,
        scores=tuple(scores) if request.best_of > 1 else (),
        picked_by=request.best_of_by,
        lyrics=request.lyrics,
    )
