from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain.errors import InvalidError
from domain.events.jobs import MAX_SAMPLES, SEEDS, AdapterSnapshot, JobSubmitted
from domain.events.prompts import PromptAttributes
from domain.generation import GenerationRequest, Rerun, rerun, submission
from domain.models import NOISE, Registry

SMALL = "facebook/musicgen-small"


def submit(adapter: AdapterSnapshot | None = None, default: float | None = None, **fields: Any) -> JobSubmitted:
    return submission(
        GenerationRequest(prompt="rain", **fields),
        job_id="job-1",
        prompt_id="prompt-1",
        text="rain",
        attributes=PromptAttributes(duration=default),
        registry=Registry(replace(NOISE, id=SMALL, max_duration=30.0)),
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
    assert (job.adapter_scale, rerun(job, Rerun()).adapter_scale) == (0.5, 0.5)
    assert rerun(job, Rerun(adapter_id="a1")).adapter_scale == 0.5
    assert rerun(job, Rerun(adapter_id="a2")).adapter_scale == rerun(job, Rerun(adapter_id=None)).adapter_scale == 1
    assert rerun(job, Rerun(adapter_id="a2", adapter_scale=0.25)).adapter_scale == 0.25
    for scale in (-0.1, 2.1):
        with pytest.raises(InvalidError, match=f"adapter_scale is {scale}; it must be from 0 to 2"):
            submit(adapter(SMALL), adapter_id="a1", adapter_scale=scale)
    with pytest.raises(InvalidError, match=r"adapter_scale is 0\.5, but there is no adapter_id"):
        submit(adapter_scale=0.5)
