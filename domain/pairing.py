"""How a request becomes an A/B test with all its pairs, held to the limits that a generation is held to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final
from zlib import crc32

from msgspec import UNSET, Meta, Struct, UnsetType

from domain import parameters, prompts
from domain.ab_tests import prompt_id
from domain.errors import Fault, InvalidError
from domain.events import MAX_LABEL
from domain.events.ab_tests import MAX_PAIRS, ABTestCreated, Pair
from domain.events.jobs import SEEDS, AdapterSnapshot
from domain.events.prompts import PromptAttributes
from domain.generation import GenerationRequest, adapter_faults, bound_faults, worded
from domain.models import Registry
from domain.prompts import Prompt, control_faults, is_visible
from domain.trials import PAIRS_A_CATCH

AA: Final = "Both arms are {0}: this is an A/A test, which shows how often listeners prefer one of two equal arms."


class ABTestRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name stored prompts by `prompt_ids` or give texts as `prompts`; each makes `pairs_per_prompt` pairs.

    An arm is an adapter's id, or null for the base model; the same one in both arms makes an A/A test. Both samples of
    pair i are made with `seed` + i; without it, the test's id gives the seed. `duration` is in seconds, by default the
    prompts' own where they agree. Each voter gets `catch_trials` trials of identical sides, one in ten at most.
    """

    name: Annotated[str, Meta(examples=["jazz against the base model"])]
    prompt_ids: list[str] | None = None
    prompts: Annotated[list[str] | None, Meta(examples=[["slow blues, brushed drums"]])] = None
    adapter_a: str | None = None
    adapter_b: str | None = None
    pairs_per_prompt: int = 1
    duration: float | None = None
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float | UnsetType = UNSET
    model_id: str | None = None
    catch_trials: int = 0
    user_id: str | None = None
    parameters: dict[str, bool | int | float | str] | None = None
    lyrics: str | None = None


def check(request: ABTestRequest) -> None:
    """Raises InvalidError for what a test cannot be made of, whatever the prompts are and the model."""
    if faults := [*_faults(request)]:
        raise InvalidError(faults)


def creation(
    request: ABTestRequest,
    *,
    ab_test_id: str,
    stored: Mapping[str, Prompt],
    registry: Registry,
    adapters: tuple[AdapterSnapshot | None, AdapterSnapshot | None],
    digest: str,
) -> ABTestCreated:
    """`stored` has the prompts that the request names. Raises InvalidError naming every value out of bounds."""
    model = registry.usable(request.model_id)
    wanted = _prompts(request, ab_test_id, stored)
    duration = request.duration
    if duration is None:
        own = {attributes.duration for _, _, attributes in wanted}
        agreed = own.pop() if len(own) == 1 else None
        duration = model.usual_duration if agreed is None else agreed
    shared = set(GenerationRequest.__struct_fields__).intersection(request.__struct_fields__)
    asked = GenerationRequest(**{name: getattr(request, name) for name in shared})
    faults = [*bound_faults(asked, model, duration), *parameters.faults(asked, model, registry.models)]
    for name, adapter in zip(("adapter_a", "adapter_b"), adapters, strict=True):
        faults += adapter_faults(adapter, model, f"/{name}")
    if faults:
        raise InvalidError(faults)
    first = crc32(ab_test_id.encode()) if request.seed is None else request.seed
    pairs: list[Pair] = []
    for ident, text, attributes in wanted:
        words = worded(text, attributes, model, registry, request.model_id)
        for _ in range(request.pairs_per_prompt):
            pairs.append(Pair(prompt_id=ident, prompt=text, seed=(first + len(pairs)) % SEEDS, **words))
    return ABTestCreated(
        ab_test_id=ab_test_id,
        test_name=request.name,
        pairs=tuple(pairs),
        model_id=model.id,
        model_revision=model.revision,
        duration=duration,
        adapter_a=adapters[0],
        adapter_b=adapters[1],
        sampling=parameters.sampling(asked, model),
        parameters=parameters.settled(asked, model),
        lyrics=request.lyrics,
        catch_trials=request.catch_trials,
        user_id=request.user_id,
        request_digest=digest,
    )


def notice(test: ABTestCreated) -> str | None:
    """What has to be said of a test whose arms are the same."""
    a, b = test.adapter_a, test.adapter_b
    if (a and a.id) != (b and b.id):
        return None
    return AA.format("the base model" if a is None else f"the adapter {a.name} {a.version}")


def _prompts(
    request: ABTestRequest, ab_test_id: str, stored: Mapping[str, Prompt]
) -> Sequence[tuple[str, str, PromptAttributes]]:
    if request.prompt_ids is not None:
        named = (stored[ident] for ident in request.prompt_ids)
        return [(prompt.id, prompt.text, prompt.attributes) for prompt in named]
    texts = enumerate(request.prompts or [])
    return [(prompt_id(ab_test_id, number), text, PromptAttributes()) for number, text in texts]


def _faults(request: ABTestRequest) -> Iterator[Fault]:
    if not any(map(is_visible, request.name)):
        yield Fault("/name", "The name is empty; say what the test is to find out.")
    elif faults := control_faults(request.name, "/name", " of the name"):
        yield from faults
    elif len(request.name) > MAX_LABEL:
        yield Fault("/name", f"name has {len(request.name):,} characters; it must have 1 to {MAX_LABEL}.")
    if (request.prompt_ids is None) == (request.prompts is None):
        yield Fault("/prompts", "Give either prompt_ids or prompts: stored prompts, or the texts of new ones.")
        return
    field = "prompts" if request.prompt_ids is None else "prompt_ids"
    count = len(request.prompts or request.prompt_ids or [])
    each = request.pairs_per_prompt
    if not 1 <= count <= MAX_PAIRS:
        yield Fault(f"/{field}", f"{field} has {count:,} entries; give 1 to {MAX_PAIRS}.")
        return
    for number, text in enumerate(request.prompts or []):
        yield from prompts.text_faults(text, f"/prompts/{number}")
    if not 1 <= each <= MAX_PAIRS:
        yield Fault("/pairs_per_prompt", f"pairs_per_prompt is {each:,}; ask for 1 to {MAX_PAIRS}.")
        return
    if count * each > MAX_PAIRS:
        detail = (
            f"{count:,} prompts with {each:,} pairs each make {count * each:,} pairs; a test has at most {MAX_PAIRS}."
        )
        yield Fault("/pairs_per_prompt", detail)
        return
    most = count * each // PAIRS_A_CATCH
    if not 0 <= request.catch_trials <= most:
        pairs = "1 pair" if count * each == 1 else f"{count * each} pairs"
        detail = (
            f"catch_trials is {request.catch_trials:,}; with {pairs} it goes from 0 to {most}, one in ten of a voter's "
            "trials."
        )
        yield Fault("/catch_trials", detail)
