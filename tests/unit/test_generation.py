from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from domain.errors import InvalidError
from domain.events.jobs import MAX_SAMPLES, SEEDS, AdapterSnapshot, JobSubmitted
from domain.events.prompts import PromptAttributes
from domain.generation import GenerationRequest, Rerun, rerun, submission
from domain.models import KNOWN, NOISE, Model, Registry

SMALL = "facebook/musicgen-small"
REGISTRY = Registry(replace(NOISE, id=SMALL, max_duration=30.0))


def submit(adapter: AdapterSnapshot | None = None, default: float | None = None, **fields: Any) -> JobSubmitted:
    return submission(
        GenerationRequest(prompt="rain", **fields),
        job_id="job-1",
        prompt_id="prompt-1",
        text="rain",
        attributes=PromptAttributes(duration=default),
        registry=REGISTRY,
        adapter=adapter,
        digest=None,
    )


@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        (
            {"duration": 301},
            "/duration",
            "The requested duration is 301 s; facebook/musicgen-small makes from 0.5 s to 300 s.",
        ),
        (
            {"duration": 0},
            "/duration",
            "The requested duration is 0 s; facebook/musicgen-small makes from 0.5 s to 300 s.",
        ),
        (
            {"duration": -1},
            "/duration",
            "The requested duration is -1 s; facebook/musicgen-small makes from 0.5 s to 300 s.",
        ),
        (
            {"duration": float("nan")},
            "/duration",
            "The requested duration is nan s; facebook/musicgen-small makes from",
        ),
        ({"num_samples": 0}, "/num_samples", "num_samples is 0; ask for 1 to 16."),
        ({"num_samples": 1000}, "/num_samples", "num_samples is 1,000; ask for 1 to 16."),
        ({"seed": -1}, "/seed", "seed is -1; a seed is from 0 to 4294967295."),
        ({"seeds": []}, "/seeds", "seeds has 0 entries; give 1 to 16."),
        ({"seeds": [1, -2]}, "/seeds/1", "seed is -2; a seed is from 0 to 4294967295."),
        ({"seeds": [1], "seed": 2}, "/seeds", "Give seed or seeds, not both."),
        ({"seeds": [1], "num_samples": 2}, "/seeds", "seeds has 1 entries, but num_samples is 2."),
        ({"temperature": 9.5}, "/temperature", "temperature is 9.5; it must be from 0 to 5."),
        ({"top_p": 0}, "/top_p", "top_p is 0, which would leave no token to draw; 1 keeps all of them."),
        ({"guidance_scale": 0.5}, "/guidance_scale", "guidance_scale is 0.5; it must be from 1 to 20."),
        ({"priority": 10}, "/priority", "priority is 10; it must be from 0 to 9."),
        ({"client_id": ""}, "/client_id", "client_id has 0 characters; it must have 1 to 200."),
        ({"num_samples": 10**400}, "/num_samples", "num_samples is 10,000,000"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_value_and_bound(fields: Any, pointer: str, detail: str) -> None:
    with pytest.raises(InvalidError) as caught:
        submit(**fields)
    (fault,) = caught.value.faults
    assert fault.pointer == pointer
    assert fault.detail.startswith(detail)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        submit(duration=301, num_samples=0, priority=-1)
    assert [fault.pointer for fault in caught.value.faults] == ["/duration", "/num_samples", "/priority"]


@given(st.integers(1, MAX_SAMPLES), st.integers(0, SEEDS - 1))
def test_every_sample_has_a_seed_of_its_own(count: int, seed: int) -> None:
    seeds = submit(num_samples=count, seed=seed).seeds
    assert len(seeds) == len(set(seeds)) == count
    assert seeds[0] == seed
    assert all(0 <= number < SEEDS for number in seeds)


def test_without_a_seed_the_job_gives_one_and_a_retry_of_it_the_same() -> None:
    assert submit(num_samples=3).seeds == submit(num_samples=3).seeds
    assert submit(seeds=[5, 5]).seeds == [5, 5]


def test_the_duration_comes_from_the_request_then_the_prompt_then_the_default() -> None:
    assert submit(duration=3, default=4).duration == 3
    assert submit(default=4).duration == 4
    assert submit().duration == 8
    with pytest.raises(InvalidError):
        submit(default=400)


def adapter(base_model: str) -> AdapterSnapshot:
    return AdapterSnapshot(id="a1", name="jazz", version="1.0.0", base_model=base_model, storage_path="adapters/a1")


def test_scenario_duration_validation_with_adapter() -> None:
    assert submit(adapter(SMALL)).adapter == adapter(SMALL)
    with pytest.raises(InvalidError, match="The requested duration is 301 s"):
        submit(adapter(SMALL), duration=301)


def test_scenario_reject_incompatible_adapter() -> None:
    message = "Adapter requires facebook/musicgen-large but current model is facebook/musicgen-small"
    with pytest.raises(InvalidError) as caught:
        submit(adapter("facebook/musicgen-large"))
    assert str(caught.value) == message


def test_the_registry_refuses_models_that_are_not_loaded() -> None:
    registry = Registry(NOISE)
    assert registry.usable(None).id == registry.usable(NOISE.id).id == NOISE.id
    assert [model.id for model in registry.models if model.is_active] == [NOISE.id]
    with pytest.raises(InvalidError, match=f"{SMALL} is not active; the active model is {NOISE.id}"):
        registry.usable(SMALL)
    with pytest.raises(InvalidError, match=f"Model nobody/knows is unknown; the active model is {NOISE.id}"):
        registry.usable("nobody/knows")


def test_how_much_of_an_adapter_is_added_is_kept_with_it() -> None:
    job = submit(adapter(SMALL), adapter_id="a1", adapter_scale=0.5)
    assert (job.adapter_scale, rerun(job, Rerun(), REGISTRY).adapter_scale) == (0.5, 0.5)
    assert rerun(job, Rerun(adapter_id="a1"), REGISTRY).adapter_scale == 0.5
    assert (
        rerun(job, Rerun(adapter_id="a2"), REGISTRY).adapter_scale
        == rerun(job, Rerun(adapter_id=None), REGISTRY).adapter_scale
        == 1
    )
    assert rerun(job, Rerun(adapter_id="a2", adapter_scale=0.25), REGISTRY).adapter_scale == 0.25
    for scale in (-0.1, 2.1):
        with pytest.raises(InvalidError, match=f"adapter_scale is {scale}; it must be from 0 to 2"):
            submit(adapter(SMALL), adapter_id="a1", adapter_scale=scale)
    with pytest.raises(InvalidError, match=r"adapter_scale is 0\.5, but there is no adapter_id"):
        submit(adapter_scale=0.5)


ACE = next(model for model in KNOWN if model.family == "ace-step")
OPEN = next(model for model in KNOWN if model.family == "stable-audio")
VERSES = "[verse]\nRain on the roof\n\n[chorus]\nStay a while"


def sung(model: Model = ACE, **fields: Any) -> JobSubmitted:
    return submission(
        GenerationRequest(prompt="rain", **fields),
        job_id="job-1",
        prompt_id="prompt-1",
        text="rain",
        attributes=PromptAttributes(),
        registry=Registry(model),
        adapter=None,
        digest=None,
    )


def test_a_job_says_all_that_its_model_takes() -> None:
    job = sung(parameters={"bpm": 90, "shift": 2, "key": "F# minor"}, lyrics=VERSES, duration=30)
    assert job.parameters == {
        "bpm": 90,
        "key": "F# minor",
        "timesignature": "",
        "vocal_language": "en",
        "num_inference_steps": 8,
        "shift": 2.0,
    }
    assert isinstance(job.parameters["shift"], float)
    assert job.lyrics == VERSES
    assert sung().parameters["bpm"] == sung(parameters={"bpm": 0}).parameters["bpm"] == 0
    assert sung(parameters={"timesignature": 4}).parameters["timesignature"] == "4"
    assert submit().parameters == {}


def test_what_a_request_leaves_out_is_the_models_own() -> None:
    assert (sung().duration, sung().sampling.guidance_scale) == (10, 1)
    assert (sung(OPEN).duration, sung(OPEN).sampling.guidance_scale) == (8, 7)
    assert submit().sampling.guidance_scale == 3


@pytest.mark.parametrize(
    ("model", "fields", "pointer", "detail"),
    [
        (ACE, {"parameters": {"bpm": 20}}, "/parameters/bpm", "bpm is 20; it must be from 30 to 300, or 0."),
        (ACE, {"parameters": {"bpm": 90.5}}, "/parameters/bpm", "bpm is 90.5; it must be a whole number."),
        (ACE, {"parameters": {"bpm": True}}, "/parameters/bpm", "bpm is true; it must be a whole number."),
        (ACE, {"parameters": {"bpm": "fast"}}, "/parameters/bpm", "bpm is 'fast'; it must be a whole number."),
        (ACE, {"parameters": {"shift": 5.1}}, "/parameters/shift", "shift is 5.1; it must be from 1 to 5."),
        (ACE, {"parameters": {"key": 5}}, "/parameters/key", "key is 5; it must be text."),
        (ACE, {"parameters": {"key": "C" * 41}}, "/parameters/key", "it must be of up to 40 characters."),
        (ACE, {"parameters": {"key": "C\x00"}}, "/parameters/key", "Character 2 of key is U+0000"),
        (ACE, {"parameters": {"timesignature": "5"}}, "/parameters/timesignature", "one of empty, 2, 3, 4, 6."),
        (ACE, {"parameters": {"a/b": 1}}, "/parameters/a~1b", f"'a/b' is no parameter of {ACE.id}; it takes bpm, key"),
        (NOISE, {"parameters": {"bpm": 90}}, "/parameters/bpm", f"no parameter of {NOISE.id}; it takes none."),
        (ACE, {"parameters": {str(n): n for n in range(33)}}, "/parameters", "parameters has 33 entries; it takes bpm"),
        (ACE, {"temperature": 0.9}, "/temperature", f"temperature is 0.9, but {ACE.id} draws no tokens. Leave it out"),
        (ACE, {"top_k": 50}, "/top_k", "top_k is 50, but"),
        (
            ACE,
            {"top_p": 0.5},
            "/top_p",
            "it takes bpm, key, timesignature, vocal_language, num_inference_steps, shift.",
        ),
        (ACE, {"guidance_scale": 7.0}, "/guidance_scale", f"guidance_scale is 7, but {ACE.id} has its guidance in its"),
        (ACE, {"duration": 9.5}, "/duration", f"The requested duration is 9.5 s; {ACE.id} makes from 10 s to 600 s."),
        (ACE, {"lyrics": " \n"}, "/lyrics", "The lyrics are empty; say what is to be sung, or leave them out."),
        (ACE, {"lyrics": "la" * 5_001}, "/lyrics", "The lyrics have 10,002 characters; the limit is 10,000."),
        (ACE, {"lyrics": "la\x1bla"}, "/lyrics", "Character 3 of the lyrics is U+001B"),
        (
            NOISE,
            {"lyrics": "la"},
            "/lyrics",
            f"{NOISE.id} does not sing. Send no lyrics (null), or use one that does: ",
        ),
        (
            OPEN,
            {"parameters": {"negative_prompt": "drums"}, "guidance_scale": 1.0},
            "/parameters/negative_prompt",
            "There is a negative_prompt, but guidance_scale is 1",
        ),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_what_it_takes(
    model: Model, fields: dict[str, Any], pointer: str, detail: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        sung(model, **fields)
    assert detail in next(fault.detail for fault in caught.value.faults if fault.pointer == pointer)


def test_a_job_made_again_keeps_what_its_model_takes() -> None:
    registry = Registry(ACE)
    job = sung(parameters={"bpm": 90, "key": "C major"}, lyrics=VERSES)

    def again(changes: Rerun) -> JobSubmitted:
        request = rerun(job, changes, registry)
        return sung(**{name: getattr(request, name) for name in ("parameters", "lyrics", "guidance_scale", "model_id")})

    assert again(Rerun()).parameters == job.parameters
    assert again(Rerun()).lyrics == VERSES
    assert again(Rerun(parameters={"bpm": 120})).parameters == {**job.parameters, "bpm": 120}
    assert again(Rerun(parameters=None)).parameters["key"] == ""
    assert again(Rerun(lyrics=None)).lyrics is None
    other = rerun(job, Rerun(model_id=SMALL, lyrics=None), registry)
    assert (other.parameters, other.guidance_scale, other.lyrics) == (None, UNSET, None)
    drawn = rerun(submit(temperature=0.9), Rerun(model_id=ACE.id), registry)
    assert (drawn.temperature, drawn.parameters) == (1.0, None)


def test_diffrhythm_is_stood_in_for_and_the_job_says_so() -> None:
    job = sung(model_id="ASLP-lab/DiffRhythm-full")
    assert job.model_id == ACE.id
    (warning,) = job.warnings
    assert warning.startswith(f"ASLP-lab/DiffRhythm-full has no engine here: {ACE.id}, which writes whole songs")
    with pytest.raises(InvalidError, match=f"{ACE.id} stands in for it, but no worker has that loaded"):
        Registry(NOISE).usable("diffrhythm")


def test_a_model_that_says_nothing_of_what_it_takes_takes_what_its_family_does() -> None:
    bare = replace(ACE, id="local/song@1", parameters=[], capabilities=["text-to-music"], min_duration=0.5)
    found = Registry(bare).active
    assert (found.parameters, found.min_duration, found.guidance_scale) == (ACE.parameters, 10, 7)
    assert found.capabilities == ["text-to-music", "adapters", "lyrics", "seeds", "stereo"]
    assert Registry(replace(bare, id=ACE.id)).active.guidance_scale is None
    strange = replace(bare, family="strange")
    assert Registry(strange).active == replace(strange, is_active=True)
