"""Audio samples side by side."""

from typing import Any

import pytest

from domain.events.jobs import AdapterSnapshot, Sampling
from domain.models import NOISE
from tests import adapter as made_adapter
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts

JAZZ = AdapterSnapshot(
    id="jazz-2",
    name="jazz",
    version="2",
    base_model=NOISE.id,
    storage_path="adapters/jazz-2",
    sha256=made_adapter.DIGEST,
)


@pytest.fixture
async def made(parts: Parts) -> Parts:
    """`same` and `adapted` are of one prompt, `alike` has the same words under another one."""
    jobs: dict[str, dict[str, Any]] = {
        "same": {"seeds": [1, 2, 3]},
        "adapted": {"seeds": [1], "adapter": JAZZ},
        "alike": {"seeds": [9], "prompt_id": "another", "sampling": Sampling(temperature=0.7, top_k=50)},
        "other": {"seeds": [1], "prompt_id": "storm", "prompt": "a storm", "duration": 2.0},
    }
    await made_adapter.store(parts.objects, JAZZ)
    async with parts.working(ScriptedEngine()):
        for job_id, changes in jobs.items():
            await parts.submit(job_id, **changes)
        for job_id in jobs:
            await parts.when(job_id, "completed")
    return parts


async def ids_of(made: Parts, *job_ids: str) -> list[str]:
    answers = [(await made.http.get(f"/jobs/{job_id}")).json() for job_id in job_ids]
    return [sample_id for answer in answers for sample_id in answer["sample_ids"]]


async def test_scenario_compare_samples_from_same_prompt(made: Parts) -> None:
    first, second, third = await ids_of(made, "same")
    asked = [third, first, second]
    answer = await made.http.get("/audio/compare", params={"ids": ",".join(asked)})
    assert answer.status_code == 200
    found = answer.json()
    assert found["samples"] == [(await made.http.get(f"/audio/{sample_id}")).json() for sample_id in asked]
    for sample in found["samples"]:
        stream = await made.http.get(sample["stream_url"], params={"format": "wav"})
        assert (stream.status_code, stream.headers["Content-Type"]) == (200, "audio/wav")
        assert (await made.http.get(sample["waveform_url"])).status_code == 200
    assert found["same_prompt"] is True
    assert found["differences"] == [{"parameter": "seed", "values": {third: 3, first: 1, second: 2}}]
    assert list(found["differences"][0]["values"]) == asked


async def test_scenario_compare_samples_with_different_adapters(made: Parts) -> None:
    (adapted,) = await ids_of(made, "adapted")
    plain = (await ids_of(made, "same"))[0]
    found = (await made.http.get("/audio/compare", params={"ids": f"{adapted},{plain}"})).json()
    assert [(sample["adapter_id"], sample["adapter"]) for sample in found["samples"]] == [
        ("jazz-2", {"name": "jazz", "version": "2"}),
        (None, None),
    ]
    assert found["same_prompt"] is True
    assert found["differences"] == [{"parameter": "adapter_id", "values": {adapted: "jazz-2", plain: None}}]


async def test_everything_that_differs_is_side_by_side(made: Parts) -> None:
    plain = (await ids_of(made, "same"))[0]
    alike, other = await ids_of(made, "alike", "other")
    found = (await made.http.get("/audio/compare", params={"ids": [plain, alike, other]})).json()
    assert found["same_prompt"] is False
    assert {each["parameter"]: list(each["values"].values()) for each in found["differences"]} == {
        "prompt": ["rain on a tin roof", "rain on a tin roof", "a storm"],
        "seed": [1, 9, 1],
        "duration": [1.0, 1.0, 2.0],
        "temperature": [1.0, 0.7, 1.0],
        "top_k": [250, 50, 250],
    }


async def test_the_same_words_under_another_prompt_are_not_the_same_prompt(made: Parts) -> None:
    plain = (await ids_of(made, "same"))[0]
    (alike,) = await ids_of(made, "alike")
    found = (await made.http.get("/audio/compare", params={"ids": f"{plain},{alike}"})).json()
    assert found["same_prompt"] is False
    assert "prompt" not in {each["parameter"] for each in found["differences"]}


async def test_a_sample_that_is_not_there_is_named_and_so_is_one_of_a_deleted_job(made: Parts) -> None:
    first, second, _ = await ids_of(made, "same")
    (adapted,) = await ids_of(made, "adapted")
    assert (await made.http.delete("/jobs/adapted")).status_code == 200
    answer = await made.http.get("/audio/compare", params={"ids": f"{first},nobody,{second},{adapted}"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["detail"] == f"There is no audio sample 'nobody' or '{adapted}'."


@pytest.mark.parametrize(
    ("query", "details"),
    [
        ("ids=", ["ids names 0 samples; name 2 to 16, with commas between."]),
        ("ids=a", ["ids names 1 sample; name 2 to 16, with commas between."]),
        (
            "ids=a,",
            [
                "ids names 1 sample; name 2 to 16, with commas between.",
                "ids has nothing at place 2; write one comma between two samples.",
            ],
        ),
        ("ids=,a,,b", ["ids has nothing at place 1, 3; write one comma between two samples."]),
        ("ids=a,b&ids=a", ["ids names 'a' 2 times; name each sample once."]),
        (f"ids={','.join(map(str, range(17)))}", ["ids names 17 samples; name 2 to 16, with commas between."]),
        ("&".join(f"ids={n}" for n in range(17)), ["ids names 17 samples; name 2 to 16, with commas between."]),
        ("", ["ids is missing."]),
    ],
)
async def test_what_cannot_be_compared_is_400(parts: Parts, query: str, details: list[str]) -> None:
    answer = await parts.http.get(f"/audio/compare?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"] == [{"pointer": "/ids", "detail": detail} for detail in details]


async def test_an_unknown_parameter_is_refused_by_name(parts: Parts) -> None:
    answer = await parts.http.get("/audio/compare?ids=a,b&id=a")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/id")


async def test_two_and_sixteen_are_enough_and_not_too_many(parts: Parts) -> None:
    for count in (2, 16):
        answer = await parts.http.get("/audio/compare", params={"ids": ",".join(map(str, range(count)))})
        assert answer.status_code == 404
        assert answer.json()["detail"].endswith(f" or '{count - 1}'.")
