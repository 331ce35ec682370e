"""A job made again, with changes."""

from typing import Any

import pytest

from domain.generation import GenerationRequest, Rerun
from domain.jobs import Job
from tests.local.parts import Parts

REQUEST: dict[str, Any] = {
    "prompt": "rain on a tin roof",
    "seeds": [7, 8, 9],
    "duration": 2.5,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 0.8,
    "guidance_scale": 2.0,
    "output_format": "mp3",
    "priority": 3,
    "user_id": "ann",
    "client_id": "client",
    "campaign_id": "campaign",
    "brief_id": "brief",
    "collection": "collection",
}


async def rerun(parts: Parts, job_id: str, changes: Any, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await parts.http.post(f"/jobs/{job_id}/rerun", json=changes, headers=headers)


@pytest.fixture
async def first(parts: Parts) -> Job:
    answer = await parts.http.post("/generate", json=REQUEST)
    return await parts.when(answer.json()["job_id"], "queued")


async def again(parts: Parts, job: Job, changes: Any) -> Job:
    answer = await rerun(parts, job.id, changes)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/generate/{answer.json()['job_id']}"
    return await parts.when(answer.json()["job_id"], "queued")


def differences(job: Job, other: Job) -> dict[str, Any]:
    before, after = job.request, other.request
    names = set(before.__struct_fields__) - {"job_id", "request_digest"}
    return {name: getattr(after, name) for name in names if getattr(before, name) != getattr(after, name)}


def test_everything_that_can_be_asked_for_can_be_changed() -> None:
    assert set(Rerun.__struct_fields__) == {*GenerationRequest.__struct_fields__, "same_seeds"}


async def test_without_changes_only_the_seeds_are_new(parts: Parts, first: Job) -> None:
    second = await again(parts, first, {})
    assert second.id != first.id
    assert differences(first, second).keys() == {"seeds"}
    assert len(set(second.request.seeds) - set(first.request.seeds)) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"same_seeds": True}, {}),
        ({"same_seeds": True, "num_samples": 2}, {"seeds": [7, 8]}),
        ({"same_seeds": True, "duration": 1, "collection": None}, {"duration": 1.0, "collection": None}),
        ({"seed": 5}, {"seeds": [5, 6, 7]}),
        ({"seed": 5, "num_samples": 1}, {"seeds": [5]}),
        ({"seeds": [1]}, {"seeds": [1]}),
        ({"same_seeds": True, "output_format": "wav", "priority": 0}, {"output_format": "wav", "priority": 0}),
        ({"same_seeds": True, "duration": None}, {"duration": 8.0}),
    ],
)
async def test_changes_are_laid_over_the_jobs_own_request(
    parts: Parts, first: Job, changes: Any, expected: dict[str, Any]
) -> None:
    assert differences(first, await again(parts, first, changes)) == expected


async def test_another_prompt_is_a_prompt_of_its_own(parts: Parts, first: Job) -> None:
    second = await again(parts, first, {"prompt": "hail", "same_seeds": True})
    assert differences(first, second).keys() == {"prompt", "prompt_id"}
    assert (await parts.http.get(f"/prompts/{second.request.prompt_id}")).json()["text"] == "hail"
    third = await again(parts, first, {"prompt_id": second.request.prompt_id, "same_seeds": True})
    assert differences(second, third) == {}


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"duration": 301}, "/duration", "The requested duration is 301 s; text2song/wiring-noise makes from 0.5 s"),
        ({"same_seeds": True, "seed": 1}, "/seed", "same_seeds keeps the job's seeds; give it or seed, not both."),
        ({"same_seeds": True, "seeds": [1]}, "/seeds", "give it or seeds, not both."),
        ({"same_seeds": True, "num_samples": 4}, "/seeds", "seeds has 3 entries, but num_samples is 4."),
        ({"num_samples": 17}, "/num_samples", "num_samples is 17; ask for 1 to 16."),
        ({"tempo": 120}, "/tempo", "There is no field 'tempo'; the body takes same_seeds"),
        ({"model_id": "nobody/knows"}, "/model_id", "Model nobody/knows is unknown"),
        ({"prompt": "x", "prompt_id": "y"}, "/prompt", "Give either prompt_id or prompt"),
    ],
)
async def test_the_limits_are_those_of_a_new_request(
    parts: Parts, first: Job, changes: Any, pointer: str, words: str
) -> None:
    answer = await rerun(parts, first.id, changes)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert words in answer.json()["detail"]
    assert (await parts.http.get("/jobs")).json()["total"] == 1


async def test_a_retry_under_one_key_is_one_job_and_other_changes_are_refused(parts: Parts, first: Job) -> None:
    one, two = [await rerun(parts, first.id, {"duration": 1}, "key") for _ in range(2)]
    assert (one.status_code, two.status_code) == (202, 202)
    assert one.json()["job_id"] == two.json()["job_id"]
    other = await rerun(parts, first.id, {"duration": 2}, "key")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_deleted_job_is_not_made_again_and_a_cancelled_one_is(parts: Parts, first: Job) -> None:
    await parts.http.delete(f"/generate/{first.id}")
    await again(parts, first, {})
    await parts.http.delete(f"/jobs/{first.id}")
    for job_id in (first.id, "unknown"):
        answer = await rerun(parts, job_id, {})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no job '{job_id}'.")
