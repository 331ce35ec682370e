import uuid

import pytest

from domain.models import NANO
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from workers.engines.checkpoints import resolve
from workers.engines.reading import reader

ATTRIBUTES = {"style": "jazz", "tempo": "slow", "instrumentation": ["piano", "bass"], "mood": "late", "duration": 8.0}


def test_a_prompt_is_created_read_and_listed(studio: Running) -> None:
    made = studio.http.post("/prompts", json={"text": "smoky bar", "attributes": ATTRIBUTES, "user_id": "u1"})
    assert made.status_code == 201
    prompt = made.json()
    assert prompt["attributes"] == ATTRIBUTES
    assert made.headers["Location"] == f"/prompts/{prompt['id']}"
    assert studio.http.get(made.headers["Location"]).json() == prompt
    page = studio.http.get("/prompts", params={"limit": 1}).json()
    assert page["items"] == [prompt]
    assert page["total"] >= 1


def test_prompts_are_walked_by_cursor_and_by_offset_alike(studio: Running) -> None:
    for number in range(5):
        studio.http.post("/prompts", json={"text": f"walk {number}"})
    first = studio.http.get("/prompts", params={"limit": 2}).json()
    by_cursor = studio.http.get("/prompts", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    by_offset = studio.http.get("/prompts", params={"limit": 2, "offset": 2}).json()
    assert by_cursor["items"] == by_offset["items"]
    assert [item["text"] for item in first["items"] + by_cursor["items"]] == ["walk 4", "walk 3", "walk 2", "walk 1"]


def test_a_prompt_given_as_text_at_submission_is_kept(studio: Running) -> None:
    job_id = studio.http.post("/generate", json={"prompt": "kept", "duration": 1}).json()["job_id"]
    prompt_id = studio.http.get(f"/jobs/{job_id}").json()["prompt_id"]
    assert studio.http.get(f"/prompts/{prompt_id}").json()["text"] == "kept"


def test_a_retry_under_one_key_is_one_prompt(studio: Running) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (studio.http.post("/prompts", json={"text": "once"}, headers=key) for _ in range(2))
    assert first.json() == second.json()
    other = studio.http.post("/prompts", json={"text": "twice"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_an_unknown_attribute_is_refused_by_name(studio: Running) -> None:
    answer = studio.http.post("/prompts", json={"text": "x", "attributes": {"colour": "blue"}})
    assert answer.status_code == 400
    detail = "There is no field 'colour'; attributes takes style, tempo, instrumentation, mood, duration."
    assert answer.json()["errors"] == [{"pointer": "/attributes/colour", "detail": detail}]


def test_an_unknown_prompt_is_not_found(studio: Running) -> None:
    answer = studio.http.get("/prompts/unknown")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no prompt 'unknown'.")


async def test_the_model_is_given_the_attributes_and_the_job_says_so(parts: Parts) -> None:
    attributes = {"style": "jazz", "tempo": "60 bpm", "instrumentation": ["violin"], "mood": "sad"}
    prompt = (await parts.http.post("/prompts", json={"text": "a rainy evening", "attributes": attributes})).json()
    engine = ScriptedEngine()
    async with parts.working(engine):
        receipt = (await parts.http.post("/generate", json={"prompt_id": prompt["id"], "duration": 1})).json()
        await parts.when(receipt["job_id"], "completed")
    assert [request.prompt for request in engine.requests] == ["a rainy evening, jazz, sad, violin, 60 bpm"]
    job = (await parts.http.get(f"/jobs/{receipt['job_id']}")).json()
    assert (job["prompt"], job["model_prompt"]) == ("a rainy evening", engine.requests[0].prompt)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}])
async def test_what_the_model_does_not_read_is_said_on_receipt_and_job(
    parts: Parts, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.services.registry, "_reader", reader(resolve(NANO.id)))
    for prompt, said in (("slow piano", []), ("快乐的钢琴曲", ["can read nothing of this prompt"])):
        key = {name: f"{value} {prompt[:1].encode().hex()}" for name, value in headers.items()}
        receipt = (await parts.http.post("/generate", json={"prompt": prompt, "duration": 1}, headers=key)).json()
        told = receipt.get("warnings", [])
        assert [each in warning for each, warning in zip(said, told, strict=True)] == [True] * len(said)
        job = (await parts.http.get(f"/jobs/{receipt['job_id']}")).json()
        assert job["warnings"] == told
