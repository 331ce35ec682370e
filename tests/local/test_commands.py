"""Commands under an Idempotency-Key: one request, however often it is sent, and whatever became of the first try."""

from collections.abc import Sequence
from typing import Any

import pytest

from commands.transact import identify
from domain.errors import UncertainError
from domain.jobs import JOBS
from domain.ports import Message, Position
from tests.local.parts import Parts

REQUEST = {"prompt": "rain on a tin roof", "duration": 1}


@pytest.fixture
def losing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Topics of which the log loses what is appended, and says that it does not know."""
    append, lost = parts.log.append, set[str]()

    async def appending(messages: Sequence[Message]) -> list[Position]:
        if kept := [message for message in messages if message.topic not in lost]:
            placed = await append(kept)
        if len(kept) < len(messages):
            raise UncertainError("Kafka may not have taken the append.")
        return placed

    monkeypatch.setattr(parts.log, "append", appending)
    return lost


@pytest.mark.parametrize("topic", ["prompts", "jobs"])
async def test_a_retry_completes_what_the_first_try_left(parts: Parts, losing: set[str], topic: str) -> None:
    key = {"Idempotency-Key": "once"}
    losing.add(topic)
    first = await parts.http.post("/generate", json=REQUEST, headers=key)
    assert (first.status_code, first.json()["code"]) == (503, "outcome_unknown")
    losing.clear()
    assert await parts.host.caught_up(10)
    answers = [await parts.http.post("/generate", json=REQUEST, headers=key) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    job = (await parts.http.get(f"/jobs/{job_id}")).json()
    assert (await parts.http.get(f"/prompts/{job['prompt_id']}")).json()["text"] == REQUEST["prompt"]
    assert await parts.history(job_id) == ["job.submitted.v1"]
    assert await parts.history(job["prompt_id"], "prompts") == ["prompt.created.v1"]


@pytest.mark.parametrize(
    "changed", [{"prompt": "snow"}, {"duration": 2}, {"prompt_id": "another", "prompt": None}, {"user_id": "ann"}]
)
async def test_the_key_with_another_request_is_refused_whatever_the_difference(
    parts: Parts, changed: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "once"}
    assert (await parts.http.post("/generate", json=REQUEST, headers=key)).status_code == 202
    other = await parts.http.post("/generate", json={**REQUEST, **changed}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_one_key_of_two_owners_names_two_aggregates(parts: Parts) -> None:
    ids = [identify(parts.journal, "job", owner, "once") for owner in ("ann", "bob", "ann")]
    assert ids[0] == ids[2] != ids[1]
    assert identify(parts.journal, "prompt", "ann", "once") != ids[0]


async def test_a_command_repeated_says_where_the_prompt_and_the_job_stand(parts: Parts) -> None:
    key = {"Idempotency-Key": "once"}
    for path, body in (("/prompts", {"text": "rain"}), ("/generate", REQUEST)):
        positions = {
            (await parts.http.post(path, json=body, headers=key)).headers["X-Event-Position"].split(", ")[-1]
            for _ in range(2)
        }
        assert len(positions) == 1


async def test_a_submission_without_a_key_does_not_wait_for_the_log_and_is_read_all_the_same(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[object] = []
    tail_wait = parts.services.tail.wait

    async def wait(positions: Any, seconds: float) -> bool:
        waited.append(positions)
        return await tail_wait(positions, seconds)

    monkeypatch.setattr(parts.services.tail, "wait", wait)
    submitted = await parts.http.post("/generate", json=REQUEST)
    assert not waited
    job_id = submitted.json()["job_id"]
    job = (await parts.http.get(f"/jobs/{job_id}")).json()
    assert job["status"] == "queued"
    assert (await parts.http.get(f"/prompts/{job['prompt_id']}")).status_code == 200
    assert (await parts.services.views.get(JOBS, [job_id]))[job_id].position >= 0
