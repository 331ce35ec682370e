"""What may be asked of a model, and how a request becomes a submission that a worker can carry out alone."""

from collections.abc import Iterator
from typing import Annotated, Any
from zlib import crc32

from msgspec import UNSET, Meta, Struct, UnsetType, convert
from msgspec.structs import asdict

from domain import candidates, continuation, melodies, models, parameters, webhooks
from domain.continuation import Source
from domain.errors import Fault, InvalidError, plain
from domain.events import MAX_LABEL
from domain.events.jobs import (
    LABELS,
    MAX_SAMPLES,
    RANGES,
    SEEDS,
    AdapterSnapshot,
    Basis,
    Format,
    JobSubmitted,
    Melody,
)
from domain.events.prompts import PromptAttributes
from domain.events.webhooks import Kind
from domain.models import Model, Registry
from domain.reading import with_unit, wording
from domain.webhooks import KINDS


class GenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name a stored prompt by `prompt_id` or give its text as `prompt`.

    Sample i is made with `seeds[i]`, or with `seed + i`; without either, the job's id gives the seed. `duration` is in
    seconds, by default the prompt's own. `adapter_scale` says how much of the adapter is added to the model. With
    `continue_from`, each sample begins with the last `continue_seconds` of that stored one and goes on; they count
    towards `duration`. With `melody_from`, it follows the tones of that sample, or of that uploaded clip. The audio
    streams as `output_format` unless the listener asks for another. `webhook_url` is sent a message at the job's end,
    or at each of `webhook_events`.

    With `best_of`, that many candidates are made for each sample, each with a seed of its own, and the best is kept:
    by `likelihood`, which is how much likelier the prompt makes it, or by `preference`, as the adapter's preference
    model finds. That is the default where the adapter has one.

    `parameters` are those that only some models take, by name, as `GET /models` lists them; `lyrics` are for models
    that sing, with tags such as [verse] and [chorus] where parts of the song begin. `temperature`, `top_k` and `top_p`
    are for models that draw tokens; each model has a default of its own for `guidance_scale`.

    Defaults are left out when it is written, so that its digest does not change when fields are added.
    """

    prompt_id: str | None = None
    prompt: Annotated[str | None, Meta(examples=["slow blues, brushed drums"])] = None
    model_id: str | None = None
    num_samples: int | None = None
    duration: float | None = None
    adapter_id: str | None = None
    seed: int | None = None
    seeds: list[int] | None = None
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float | UnsetType = UNSET
    output_format: Format = "flac"
    priority: int = 0
    user_id: str | None = None
    client_id: str | None = None
    campaign_id: str | None = None
    brief_id: str | None = None
    collection: str | None = None
    adapter_scale: float = 1.0
    continue_from: str | None = None
    continue_seconds: float | None = None
    melody_from: str | None = None
    webhook_url: Annotated[str | None, Meta(examples=["https://example.org/hook"])] = None
    webhook_events: list[Kind] | None = None
    best_of: int | None = None
    best_of_by: Basis | None = None
    parameters: dict[str, bool | int | float | str] | None = None
    lyrics: Annotated[str | None, Meta(examples=["[verse]\nRain on the roof\n\n[chorus]\nStay a while"])] = None


class Rerun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a job that is made again; fields left out stay as they were, null takes the default.
    `parameters` are laid over the job's own. With a model of another family, those and how tokens were drawn do not
    stay.

    The seeds are new ones unless `seed` or `seeds` gives them, or `same_seeds` keeps the first `num_samples` of them.
    """

    same_seeds: bool = False
    prompt_id: str | UnsetType | None = UNSET
    prompt: Annotated[str | UnsetType | None, Meta(examples=["slow blues, brushed drums"])] = UNSET
    model_id: str | UnsetType | None = UNSET
    num_samples: int | UnsetType | None = UNSET
    duration: float | UnsetType | None = UNSET
    adapter_id: str | UnsetType | None = UNSET
    seed: int | UnsetType | None = UNSET
    seeds: list[int] | UnsetType | None = UNSET
    temperature: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    guidance_scale: float | UnsetType = UNSET
    output_format: Format | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    user_id: str | UnsetType | None = UNSET
    client_id: str | UnsetType | None = UNSET
    campaign_id: str | UnsetType | None = UNSET
    brief_id: str | UnsetType | None = UNSET
    collection: str | UnsetType | None = UNSET
    adapter_scale: float | UnsetType = UNSET
    continue_from: str | UnsetType | None = UNSET
    continue_seconds: float | UnsetType | None = UNSET
    melody_from: str | UnsetType | None = UNSET
    webhook_url: str | UnsetType | None = UNSET
    webhook_events: list[Kind] | UnsetType | None = UNSET
    best_of: int | UnsetType | None = UNSET
    best_of_by: Basis | UnsetType | None = UNSET
    parameters: dict[str, bool | int | float | str] | UnsetType | None = UNSET
    lyrics: str | UnsetType | None = UNSET


def rerun(job: JobSubmitted, changes: Rerun, registry: Registry) -> GenerationRequest:
    """The job's own request with the changes laid over it. Raises InvalidError for seeds that are given and kept."""
    changed = {name: value for name, value in asdict(changes).items() if value is not UNSET}
    kept = {name: getattr(job, name) for name in ("prompt_id", "model_id", "duration", "output_format", "priority")}
    kept |= {name: getattr(job, name) for name in ("user_id", "lyrics", *LABELS)}
    # What a model of another family takes, nobody has chosen.
    if registry.family(changed.get("model_id", job.model_id)) == registry.family(job.model_id):
        kept |= asdict(job.sampling) | {"parameters": job.parameters or None}
        if changed.get("parameters"):
            changed["parameters"] = job.parameters | changed["parameters"]
    kept |= {"num_samples": -(-len(job.seeds) // job.best_of), "adapter_id": job.adapter.id if job.adapter else None}
    if job.best_of > 1 and changed.get("best_of", job.best_of) is not None:
        kept["best_of"] = job.best_of
        if changed.get("adapter_id", kept["adapter_id"]) == kept["adapter_id"]:
            kept["best_of_by"] = job.best_of_by
    # Of another adapter, or of none, nobody has chosen how much.
    if changed.get("adapter_id", kept["adapter_id"]) == kept["adapter_id"]:
        kept["adapter_scale"] = job.adapter_scale
    if job.continuation is not None:
        kept["continue_from"] = job.continuation.sample_id
        if changed.get("continue_from", kept["continue_from"]) == kept["continue_from"]:
            kept["continue_seconds"] = job.continuation.seconds
    if job.melody is not None:
        kept["melody_from"] = job.melody.id
    if changed.get("webhook_url", job.webhook_url) is not None:
        kept |= {"webhook_url": job.webhook_url, "webhook_events": list(job.webhook_events) or None}
    if changed.get("prompt") is not None:
        del kept["prompt_id"]
    if changed.pop("same_seeds"):
        if given := {"seed", "seeds"} & changed.keys():
            name = min(given)
            raise InvalidError([Fault(f"/{name}", f"same_seeds keeps the job's seeds; give it or {name}, not both.")])
        several = changed.get("best_of", kept.get("best_of")) or 1
        kept["seeds"] = job.seeds[: (changed.get("num_samples") or kept["num_samples"]) * several]
    elif changed.get("seeds") is not None:
        del kept["num_samples"]
    return GenerationRequest(**kept | changed)


def submission(
    request: GenerationRequest,
    *,
    job_id: str,
    prompt_id: str,
    text: str,
    attributes: PromptAttributes,
    registry: Registry,
    adapter: AdapterSnapshot | None,
    digest: str | None,
    source: Source | None = None,
    melody: Melody | None = None,
) -> JobSubmitted:
    """`source` is the sample to continue, `melody` the clip to follow. Raises InvalidError naming every value out of
    bounds and its bound.
    """
    model = registry.usable(request.model_id)
    wanted = attributes.duration if request.duration is None else request.duration
    duration = model.usual_duration if wanted is None else wanted
    faults = [
        *bound_faults(request, model, duration),
        *parameters.faults(request, model, registry.models),
        *adapter_faults(adapter, model, "/adapter_id"),
        *candidates.faults(request, model, registry.models, adapter),
    ]
    if melody is not None:
        faults += melodies.faults(melody, model, registry.models)
    kept = None
    if source is not None:
        kept = continuation.continuation(source, request.continue_seconds, model)
        faults += continuation.faults(kept, source, model, duration)
    if faults:
        raise InvalidError(faults)
    best_of = request.best_of or 1
    count = (request.num_samples or 1) * best_of
    first = crc32(job_id.encode()) if request.seed is None else request.seed
    decided = {
        "job_id": job_id,
        "prompt_id": prompt_id,
        "prompt": text,
        **worded(text, attributes, model, registry, request.model_id),
        "model_id": model.id,
        "model_revision": model.revision,
        "seeds": request.seeds or [(first + index) % SEEDS for index in range(count)],
        "duration": duration,
        "sampling": parameters.sampling(request, model),
        "parameters": parameters.settled(request, model),
        "adapter": adapter,
        "continuation": kept,
        "melody": melody,
        "request_digest": digest,
        "best_of": best_of,
        "best_of_by": candidates.basis(best_of, request.best_of_by, adapter),
        "webhook_events": tuple(dict.fromkeys(request.webhook_events or ())),
    }
    return convert(asdict(request) | decided, JobSubmitted, from_attributes=True)


def worded(
    text: str, attributes: PromptAttributes, model: Model, registry: Registry, asked: str | None
) -> dict[str, Any]:
    """`model_prompt` and `warnings` of a prompt, as in JobSubmitted; `asked` is the model that the request names."""
    words = wording(text, attributes)
    if model.tempi:
        words = with_unit(words)
    warnings = [*models.stand_in_warnings(asked, model), *registry.warnings(model, words)]
    return {"model_prompt": None if words == text else words, "warnings": tuple(warnings)}


def adapter_faults(adapter: AdapterSnapshot | None, model: Model, pointer: str) -> Iterator[Fault]:
    if adapter is None:
        return
    if adapter.base_model != model.id:
        yield Fault(pointer, mismatch(adapter.base_model, model.id))
    elif not model.may("adapters"):
        yield Fault(pointer, f"{model.id} takes no adapters; leave {pointer.removeprefix('/')} out.")
    elif not fits(adapter, model.revision):
        required, current = (f"{model.id}@{revision}" for revision in (adapter.base_revision, model.revision))
        yield Fault(pointer, mismatch(required, current))


def fits(adapter: AdapterSnapshot, revision: str | None) -> bool:
    """Whether an adapter of a model can be used with that revision of it, as far as both are known."""
    if adapter.base_revision is None or revision is None:
        return True
    return adapter.base_revision.startswith(revision) or revision.startswith(adapter.base_revision)


def mismatch(required: str, current: str) -> str:
    return f"Adapter requires {required} but current model is {current}"


def bound_faults(request: GenerationRequest, model: Model, duration: float) -> Iterator[Fault]:
    if not model.min_duration <= duration <= model.max_extended_duration:
        yield Fault(
            "/duration",
            f"The requested duration is {plain(duration)} s; {model.id} makes from {plain(model.min_duration)} s "
            f"to {plain(model.max_extended_duration)} s.",
        )
    if request.num_samples is not None and not 1 <= request.num_samples <= MAX_SAMPLES:
        yield Fault("/num_samples", f"num_samples is {request.num_samples:,}; ask for 1 to {MAX_SAMPLES}.")
    if request.seeds is not None:
        yield from _seed_faults(request, request.seeds)
    if request.seed is not None and not 0 <= request.seed < SEEDS:
        yield Fault("/seed", f"seed is {request.seed}; a seed is from 0 to {SEEDS - 1}.")
    for name, (low, high) in RANGES.items():
        value = getattr(request, name)
        if value is not UNSET and not low <= value <= high:
            yield Fault(f"/{name}", f"{name} is {plain(value)}; it must be from {plain(low)} to {plain(high)}.")
    if request.adapter_id is None and request.adapter_scale != 1:
        detail = f"adapter_scale is {plain(request.adapter_scale)}, but there is no adapter_id; give both or neither."
        yield Fault("/adapter_scale", detail)
    if request.continue_from is None and request.continue_seconds is not None:
        detail = f"continue_seconds is {plain(request.continue_seconds)}, but there is no continue_from; give both."
        yield Fault("/continue_seconds", detail)
    if request.webhook_url is not None:
        yield from webhooks.url_faults(request.webhook_url, "/webhook_url")
    elif request.webhook_events is not None:
        yield Fault("/webhook_events", "There are webhook_events, but there is no webhook_url; give both or neither.")
    if request.webhook_events == []:
        detail = f"webhook_events is empty; name some of {', '.join(KINDS)}, or leave it out for those that end a job."
        yield Fault("/webhook_events", detail)
    if request.top_p == 0:
        yield Fault("/top_p", "top_p is 0, which would leave no token to draw; 1 keeps all of them.")
    for name in ("user_id", *LABELS):
        label = getattr(request, name)
        if label is not None and not 1 <= len(label) <= MAX_LABEL:
            yield Fault(f"/{name}", f"{name} has {len(label):,} characters; it must have 1 to {MAX_LABEL}.")


def _seed_faults(request: GenerationRequest, seeds: list[int]) -> Iterator[Fault]:
    if request.seed is not None:
        yield Fault("/seeds", "Give seed or seeds, not both.")
    if not 1 <= len(seeds) <= MAX_SAMPLES:
        yield Fault("/seeds", f"seeds has {len(seeds):,} entries; give 1 to {MAX_SAMPLES}.")
    if request.best_of is None and request.num_samples is not None and request.num_samples != len(seeds):
        yield Fault("/seeds", f"seeds has {len(seeds):,} entries, but num_samples is {request.num_samples:,}.")
    for index, seed in enumerate(seeds[:MAX_SAMPLES]):
        if not 0 <= seed < SEEDS:
            yield Fault(f"/seeds/{index}", f"seed is {seed}; a seed is from 0 to {SEEDS - 1}.")
