"""What may be asked of a model, and how a request becomes a submission that a worker can carry out alone."""

from collections.abc import Iterator
from typing import Final
from zlib import crc32

from msgspec import Struct

from domain.errors import Fault, InvalidError
from domain.events import AdapterSnapshot, Format, JobSubmitted, Sampling
from domain.models import MIN_DURATION, Model

MAX_SAMPLES: Final = 16
MAX_LABEL: Final = 200
SEEDS: Final = 2**32
DEFAULT_DURATION: Final = 8.0
RANGES: Final = {"temperature": (0.0, 5.0), "top_k": (0, 100_000), "top_p": (0.0, 1.0), "guidance_scale": (1.0, 20.0)}
PRIORITIES: Final = (0, 9)
LABELS: Final = ("user_id", "client_id", "campaign_id", "brief_id", "collection")


class GenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name a stored prompt by `prompt_id` or give its text as `prompt`.

    Sample i is made with `seeds[i]`, or with `seed + i`; without either, the job's id gives the seed. `duration` is in
    seconds, by default the prompt's own. The audio streams as `output_format` unless the listener asks for another.
    Defaults are left out when it is written, so that its digest does not change when fields are added.
    """

    prompt_id: str | None = None
    prompt: str | None = None
    model_id: str | None = None
    num_samples: int | None = None
    duration: float | None = None
    adapter_id: str | None = None
    seed: int | None = None
    seeds: list[int] | None = None
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float = 3.0
    output_format: Format = "flac"
    priority: int = 0
    user_id: str | None = None
    client_id: str | None = None
    campaign_id: str | None = None
    brief_id: str | None = None
    collection: str | None = None


def submission(
    request: GenerationRequest,
    *,
    job_id: str,
    prompt_id: str,
    text: str,
    default_duration: float | None,
    model: Model,
    adapter: AdapterSnapshot | None,
    digest: str | None,
) -> JobSubmitted:
    """Raises InvalidError naming every value out of bounds and its bound."""
    wanted = default_duration if request.duration is None else request.duration
    duration = min(DEFAULT_DURATION, model.max_duration) if wanted is None else wanted
    faults = [*_faults(request, model, duration)]
    if adapter is not None and adapter.base_model != model.id:
        faults.append(Fault("/adapter_id", f"Adapter requires {adapter.base_model} but current model is {model.id}"))
    if faults:
        raise InvalidError(faults)
    count = request.num_samples or len(request.seeds or [0])
    first = crc32(job_id.encode()) if request.seed is None else request.seed
    return JobSubmitted(
        job_id=job_id,
        prompt_id=prompt_id,
        prompt=text,
        model_id=model.id,
        model_revision=model.revision,
        seeds=request.seeds or [(first + index) % SEEDS for index in range(count)],
        duration=duration,
        sampling=Sampling(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            guidance_scale=request.guidance_scale,
        ),
        adapter=adapter,
        output_format=request.output_format,
        priority=request.priority,
        user_id=request.user_id,
        client_id=request.client_id,
        campaign_id=request.campaign_id,
        brief_id=request.brief_id,
        collection=request.collection,
        request_digest=digest,
    )


def _faults(request: GenerationRequest, model: Model, duration: float) -> Iterator[Fault]:
    if not MIN_DURATION <= duration <= model.max_duration:
        yield Fault(
            "/duration",
            f"The requested duration is {duration:g} s; {model.id} makes from {MIN_DURATION:g} s "
            f"to {model.max_duration:g} s.",
        )
    if request.num_samples is not None and not 1 <= request.num_samples <= MAX_SAMPLES:
        yield Fault("/num_samples", f"num_samples is {request.num_samples:,}; ask for 1 to {MAX_SAMPLES}.")
    if request.seeds is not None:
        yield from _seed_faults(request, request.seeds)
    if request.seed is not None and not 0 <= request.seed < SEEDS:
        yield Fault("/seed", f"seed is {request.seed}; a seed is from 0 to {SEEDS - 1}.")
    for name, (low, high) in {**RANGES, "priority": PRIORITIES}.items():
        value = getattr(request, name)
        if not low <= value <= high:
            yield Fault(f"/{name}", f"{name} is {value}; it must be from {low:g} to {high:g}.")
    if request.top_p == 0:
        yield Fault("/top_p", "top_p is 0, which would leave no token to draw; 1 keeps all of them.")
    for name in LABELS:
        label = getattr(request, name)
        if label is not None and not 1 <= len(label) <= MAX_LABEL:
            yield Fault(f"/{name}", f"{name} has {len(label):,} characters; it must have 1 to {MAX_LABEL}.")


def _seed_faults(request: GenerationRequest, seeds: list[int]) -> Iterator[Fault]:
    if request.seed is not None:
        yield Fault("/seeds", "Give seed or seeds, not both.")
    if not 1 <= len(seeds) <= MAX_SAMPLES:
        yield Fault("/seeds", f"seeds has {len(seeds):,} entries; give 1 to {MAX_SAMPLES}.")
    if request.num_samples is not None and request.num_samples != len(seeds):
        yield Fault("/seeds", f"seeds has {len(seeds):,} entries, but num_samples is {request.num_samples:,}.")
    for index, seed in enumerate(seeds[:MAX_SAMPLES]):
        if not 0 <= seed < SEEDS:
            yield Fault(f"/seeds/{index}", f"seed is {seed}; a seed is from 0 to {SEEDS - 1}.")
