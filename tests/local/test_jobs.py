"""The scenarios of jobs, one test each, over HTTP against a running studio with its real engine."""

import asyncio
import io
import uuid
import wave
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeAlias

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from domain.events.jobs import AdapterSnapshot, JobCancelRequested, JobDeleted
from domain.models import NOISE
from domain.ports import Message
from tests import audit
from tests.conditions import eventually, eventually_sync
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from text2song.client import AsyncStudio
from workers.engine import EngineError

LONG: dict[str, Any] = {"duration": 30, "num_samples": 16}
# Is as far from its end when its first sample is there.
MANY: dict[str, Any] = {"duration": 5, "num_samples": 16}


def submit(studio: Running, **request: Any) -> str:
    answer = studio.http.post("/generate", json={"prompt": "rain on a tin roof", "duration": 1, **request})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def job(studio: Running, job_id: str) -> dict[str, Any]:
    answer = studio.http.get(f"/generate/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def when(studio: Running, job_id: str, *statuses: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = job(studio, job_id)
        return found if found["status"] in statuses else None

    found = eventually_sync(reached)
    assert found is not None
    return found


def ids(studio: Running, **query: Any) -> list[str]:
    answer = studio.http.get("/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def hold_the_worker(studio: Running) -> str:
    """A long job, so that others stay queued behind it."""
    job_id = submit(studio, **LONG, priority=9)
    when(studio, job_id, "processing")
    return job_id


def test_scenario_submit_generation_job(studio: Running) -> None:
    prompt = studio.http.post("/prompts", json={"text": "slow blues", "attributes": {"mood": "blue", "duration": 1.5}})
    assert prompt.status_code == 201
    answer = studio.http.post("/generate", json={"prompt_id": prompt.json()["id"]})
    assert answer.status_code == 202
    assert answer.json()["status"] in {"queued", "processing"}
    assert answer.headers["Location"] == f"/generate/{answer.json()['job_id']}"
    done = when(studio, answer.json()["job_id"], "completed")
    assert (done["prompt"], done["generation_params"]["duration"]) == ("slow blues", 1.5)


def test_scenario_submit_generation_with_multiple_samples(studio: Running) -> None:
    done = when(studio, submit(studio, num_samples=4), "completed")
    assert len(set(done["sample_ids"])) == 4
    seeds = [studio.http.get(f"/audio/{sample}").json()["generation_params"]["seed"] for sample in done["sample_ids"]]
    assert len(set(seeds)) == 4
    audio = {studio.http.get(f"/audio/{sample}").json()["sha256"] for sample in done["sample_ids"]}
    assert len(audio) == 4


def test_the_same_seed_gives_the_same_audio(studio: Running) -> None:
    def pcm(job_id: str) -> str:
        (sample,) = when(studio, job_id, "completed")["sample_ids"]
        digest: str = studio.http.get(f"/audio/{sample}").json()["pcm_sha256"]
        wav = studio.http.get(f"/audio/{sample}/stream", params={"format": "wav"}).content
        with wave.open(io.BytesIO(wav)) as file:
            assert sha256(file.readframes(file.getnframes())).hexdigest() == digest
        return digest

    one, two, other = (pcm(submit(studio, seed=seed)) for seed in (5, 5, 6))
    assert one == two != other


def test_scenario_submit_generation_with_adapter_selection(studio: Running) -> None:
    """No adapter is registered, so naming one is answered as unknown and nothing is queued."""
    answer = studio.http.post("/generate", json={"prompt": "x", "adapter_id": "jazz", "collection": "adapters"})
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no adapter 'jazz'.")
    assert ids(studio, collection="adapters") == []


def test_scenario_reject_generation_for_invalid_prompt(studio: Running) -> None:
    answer = studio.http.post("/generate", json={"prompt_id": "nobody-wrote-this", "collection": "invalid"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert ids(studio, collection="invalid") == []


@pytest.mark.parametrize("duration", [0.5, 2.25])
def test_scenario_submit_generation_with_duration_parameter(studio: Running, duration: float) -> None:
    (sample,) = when(studio, submit(studio, duration=duration), "completed")["sample_ids"]
    assert studio.http.get(f"/audio/{sample}").json()["duration_seconds"] == duration


def test_scenario_duration_within_limits(studio: Running) -> None:
    job_id = submit(studio, duration=NOISE.max_duration)
    assert job(studio, job_id)["generation_params"]["duration"] == NOISE.max_duration
    studio.http.delete(f"/jobs/{job_id}")


def test_scenario_duration_exceeds_model_limit(studio: Running) -> None:
    answer = studio.http.post("/generate", json={"prompt": "x", "duration": 301, "collection": "too long"})
    assert answer.status_code == 400
    assert answer.json()["errors"] == [
        {
            "pointer": "/duration",
            "detail": "The requested duration is 301 s; text2song/wiring-noise makes from 0.5 s to 300 s.",
        }
    ]
    assert ids(studio, collection="too long") == []


def test_scenario_poll_job_status_while_processing(studio: Running) -> None:
    job_id = submit(studio, **LONG)
    when(studio, job_id, "processing")

    def progressing() -> dict[str, Any] | None:
        found = job(studio, job_id)
        return found if found["progress"] > 0 else None

    found = eventually_sync(progressing)
    assert found is not None
    assert 0 < found["progress"] < 100
    assert found["stage"]
    assert found["eta_seconds"] > 0
    studio.http.delete(f"/generate/{job_id}")


def test_scenario_get_completed_job_results(studio: Running) -> None:
    done = when(studio, submit(studio, num_samples=2), "completed")
    assert len(done["sample_ids"]) == 2
    assert done["progress"] == 100
    assert done["error"] is None
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]


async def test_scenario_get_failed_job_details(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [EngineError("The prompt has no words this model knows.")]
    async with parts.working(engine):
        job_id = (await parts.http.post("/generate", json={"prompt": "x"})).json()["job_id"]
        await parts.when(job_id, "failed")
        found = (await parts.http.get(f"/generate/{job_id}")).json()
    assert (found["status"], found["error"]) == ("failed", "The prompt has no words this model knows.")


def test_scenario_cancel_queued_job(studio: Running) -> None:
    blocker = hold_the_worker(studio)
    job_id = submit(studio)
    answer = studio.http.delete(f"/generate/{job_id}")
    assert (answer.status_code, answer.json()) == (200, {"job_id": job_id, "status": "cancelled"})
    assert job_id not in ids(studio, status="queued")
    again = studio.http.delete(f"/generate/{job_id}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    studio.http.delete(f"/jobs/{blocker}")


def test_scenario_cancel_processing_job(studio: Running) -> None:
    job_id = submit(studio, **MANY)
    folder = studio.data / "objects" / "samples" / job_id
    eventually_sync(lambda: list(folder.rglob("*.flac")))
    answer = studio.http.delete(f"/generate/{job_id}")
    assert answer.status_code == 202
    assert answer.json()["status"] in {"cancelling", "cancelled"}
    assert when(studio, job_id, "cancelled")["sample_ids"] == []
    assert not folder.exists()


def test_cancelling_a_finished_job_is_a_conflict(studio: Running) -> None:
    job_id = submit(studio)
    when(studio, job_id, "completed")
    answer = studio.http.delete(f"/generate/{job_id}")
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"Job {job_id} is completed; only a queued or processing job can be cancelled."
    assert studio.http.delete("/generate/unknown").status_code == 404


def test_scenario_delete_a_completed_job(studio: Running) -> None:
    job_id = submit(studio)
    (sample,) = when(studio, job_id, "completed")["sample_ids"]
    answer = studio.http.delete(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["job_id"] == job_id
    assert answer.json()["deleted_at"]
    for path in (f"/jobs/{job_id}", f"/audio/{sample}", f"/audio/{sample}/stream", f"/audio/{sample}/waveform"):
        assert studio.http.get(path).status_code == 404


def test_scenario_delete_a_queued_job(studio: Running) -> None:
    blocker = hold_the_worker(studio)
    job_id = submit(studio)
    answer = studio.http.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert job_id not in ids(studio)
    studio.http.delete(f"/jobs/{blocker}")


def test_scenario_delete_a_processing_job(studio: Running) -> None:
    job_id = submit(studio, **MANY)
    folder = studio.data / "objects" / "samples" / job_id
    eventually_sync(lambda: list(folder.rglob("*.flac")))
    answer = studio.http.delete(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] in {"cancelling", "cancelled"}
    assert studio.http.get(f"/jobs/{job_id}").status_code == 404
    eventually_sync(lambda: not folder.exists())


def test_scenario_attempt_to_delete_non_existent_job(studio: Running) -> None:
    answer = studio.http.delete("/jobs/unknown")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no job 'unknown'.")


def test_scenario_list_jobs_excludes_deleted_and_get_deleted_job_returns_404(studio: Running) -> None:
    kept, gone = (submit(studio, collection="partly deleted") for _ in range(2))
    assert studio.http.delete(f"/jobs/{gone}").status_code == 200
    assert ids(studio, collection="partly deleted") == [kept]
    assert studio.http.get(f"/jobs/{gone}").status_code == 404
    assert studio.http.get(f"/generate/{gone}").status_code == 404
    assert studio.http.delete(f"/jobs/{gone}").status_code == 404
    assert studio.http.get(f"/jobs/{gone}/events").status_code == 404


def test_scenario_list_all_jobs(studio: Running) -> None:
    made = [submit(studio, collection="all") for _ in range(5)]
    assert ids(studio)[:5] == ids(studio, collection="all") == made[::-1]
    page = studio.http.get("/jobs", params={"collection": "all", "limit": 2, "offset": 1}).json()
    assert [item["id"] for item in page["items"]] == made[3:1:-1]
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    walked: list[str] = []
    cursor: str | None = None
    while True:
        query = {"collection": "all", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = studio.http.get("/jobs", params=query).json()
        walked += [item["id"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert walked == made[::-1]


def test_scenario_filter_jobs_by_status(studio: Running) -> None:
    blocker = hold_the_worker(studio)
    queued, cancelled = (submit(studio, collection="by status") for _ in range(2))
    studio.http.delete(f"/generate/{cancelled}")
    assert ids(studio, status="queued", collection="by status") == [queued]
    assert ids(studio, status="cancelled", collection="by status") == [cancelled]
    assert blocker in ids(studio, status="processing")
    total = studio.http.get("/jobs", params={"status": "queued"}).json()["total"]
    assert total == len(ids(studio, status="queued", limit=200))
    studio.http.delete(f"/jobs/{blocker}")
    when(studio, queued, "completed")
    assert ids(studio, status="completed", collection="by status") == [queued]


async def test_scenario_filter_jobs_by_adapter(parts: Parts) -> None:
    adapter = AdapterSnapshot(id="a1", name="jazz", version="1.0.0", base_model=NOISE.id, storage_path="adapters/a1")
    await parts.submit("with", adapter=adapter)
    await parts.submit("without")
    await parts.submit("deleted", adapter=adapter)
    assert await parts.host.caught_up(10)
    await parts.http.delete("/jobs/deleted")
    page = (await parts.http.get("/jobs", params={"adapter_id": "a1"})).json()
    assert [(item["id"], item["adapter_id"]) for item in page["items"]] == [("with", "a1")]
    assert page["total"] == 1


async def test_scenario_filter_jobs_by_date_range(parts: Parts) -> None:
    for day in (1, 2, 3):
        parts.journal.now = lambda day=day: f"2026-01-0{day}T12:00:00.000000Z"  # type: ignore[misc]
        await parts.submit(f"day-{day}")
    await parts.host.caught_up(5)

    async def between(**query: str) -> list[str]:
        answer = await parts.http.get("/jobs", params=query)
        return [item["id"] for item in answer.json()["items"]]

    assert await between(start_date="2026-01-02") == ["day-3", "day-2"]
    assert await between(end_date="2026-01-02") == ["day-2", "day-1"]
    assert await between(start_date="2026-01-02", end_date="2026-01-02") == ["day-2"]
    assert await between(start_date="2026-01-02T12:00:00Z", end_date="2026-01-03T13:00:00+01:00") == ["day-3", "day-2"]
    assert await between(start_date="2026-01-02T12:00:01Z", end_date="2026-01-03T11:59:59Z") == []


@pytest.mark.parametrize("name", ["client_id", "campaign_id", "brief_id", "collection", "user_id"])
def test_jobs_keep_their_labels_and_are_found_by_them(studio: Running, name: str) -> None:
    label = uuid.uuid4().hex
    job_id = submit(studio, **{name: label})
    assert job(studio, job_id)[name] == label
    if name != "user_id":
        assert ids(studio, **{name: label}) == [job_id]


async def test_scenario_get_queue_statistics(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        for number in range(3):
            await parts.submit(f"done-{number}", seeds=[1])
            await parts.when(f"done-{number}", "completed")
    await parts.submit("waiting")
    assert await parts.host.caught_up(10)
    stats = (await parts.http.get("/jobs/stats")).json()
    assert stats["counts"] == {"completed": 3, "queued": 1}
    assert stats["throughput_per_hour"] == 3
    jobs = [await parts.when(f"done-{number}", "completed") for number in range(3)]
    spans = [seconds(done.completed_at) - seconds(done.started_at) for done in jobs]
    assert stats["average_processing_seconds"] == pytest.approx(sum(spans) / 3, abs=0.001)
    for name in ("done-0", "waiting"):
        assert (await parts.http.delete(f"/jobs/{name}")).status_code == 200
    stats = (await parts.http.get("/jobs/stats")).json()
    assert (stats["counts"], stats["throughput_per_hour"]) == ({"completed": 2}, 2)


def seconds(text: str | None) -> float:
    assert text is not None
    return datetime.fromisoformat(text).timestamp()


def test_a_retry_under_one_key_is_one_job_and_another_body_is_refused(studio: Running) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    request = {"prompt": "once", "duration": 1}
    first, second = (studio.http.post("/generate", json=request, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json()["job_id"] == second.json()["job_id"]
    assert studio.http.post("/generate", json=request, headers={"Idempotency-Key": ""}).status_code == 400
    other = studio.http.post("/generate", json={**request, "duration": 2}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_retries_that_race_are_one_job_too(parts: Parts) -> None:
    key = {"Idempotency-Key": "race"}
    bodies = [{"prompt": "once"}] * 8 + [{"prompt": "twice"}]
    answers = await asyncio.gather(*(parts.http.post("/generate", json=body, headers=key) for body in bodies))
    codes = [answer.status_code for answer in answers]
    assert sorted(set(codes)) == [202, 422]
    assert len({answer.json()["job_id"] for answer in answers if answer.status_code == 202}) == 1
    assert (await parts.http.get("/jobs")).json()["total"] == 1


async def test_a_retry_is_the_same_job_even_where_the_model_has_changed(parts: Parts) -> None:
    key = {"Idempotency-Key": "before the restart"}
    request = {"prompt": "once", "model_id": NOISE.id}
    first = await parts.http.post("/generate", json=request, headers=key)
    parts.services.registry.__init__(replace(NOISE, id="local/other"))  # type: ignore[misc]
    again = await parts.http.post("/generate", json=request, headers=key)
    assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])


async def test_prompts_that_race_under_one_key_are_told_apart(parts: Parts) -> None:
    key = {"Idempotency-Key": "race"}
    answers = await asyncio.gather(
        *(parts.http.post("/prompts", json={"text": text}, headers=key) for text in ("a", "b", "a"))
    )
    assert sorted(answer.status_code for answer in answers) in ([201, 201, 422], [201, 422, 422])
    assert len({answer.json()["text"] for answer in answers if answer.status_code == 201}) == 1


def test_a_client_reads_its_own_write_by_position(studio: Running) -> None:
    answer = studio.http.post("/generate", json={"prompt": "x", "duration": 1})
    position = answer.headers["X-Event-Position"]
    listed = studio.http.get("/jobs", headers={"If-Event-Position": position}).json()["items"]
    assert answer.json()["job_id"] in [item["id"] for item in listed]
    ahead = studio.http.get("/jobs", headers={"If-Event-Position": "jobs/0/999999999"})
    assert ahead.status_code == 400
    for position in ("yesterday", "jobs/99/0", "nothing/0/0", "jobs/0/" + "9" * 5000, ""):
        assert studio.http.get("/jobs", headers={"If-Event-Position": position}).status_code == 400


Event: TypeAlias = tuple[str, str | None, dict[str, Any]]


def follow(
    studio: Running, job_id: str, last: str | None = None, at_first: Callable[[], object] = lambda: None
) -> list[Event]:
    """Every event up to the stream's end; `at_first` is called when the first one is in."""
    headers = {} if last is None else {"Last-Event-ID": last}
    events: list[Event] = []
    with studio.http.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                if "event" in fields:
                    events.append((fields["event"], fields.get("id"), msgspec.json.decode(fields["data"])))
                    if len(events) == 1:
                        at_first()
                fields = {}
    return events


def test_a_job_is_followed_live_and_from_where_a_client_stopped(studio: Running) -> None:
    blocker = hold_the_worker(studio)
    job_id = submit(studio, num_samples=2, duration=2)
    events = follow(studio, job_id, at_first=lambda: delete(studio, blocker))
    names = [name for name, _, _ in events if name != "progress"]
    assert names == ["snapshot", "started", "sample", "sample", "completed"]
    assert events[0][2]["status"] == "queued"
    assert len(events[-1][2]["sample_ids"]) == 2
    versions = [version for name, version, _ in events if name != "progress"]
    missed = [event for event in follow(studio, job_id, versions[1]) if event[0] != "progress"]
    assert [(name, version) for name, version, _ in missed] == list(zip(names[2:], versions[2:], strict=True))
    last = studio.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(versions[-1])})
    assert last.status_code == 204


async def test_a_client_waits_through_heartbeats(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.job_events.HEARTBEAT_SECONDS", 0.02)
    engine = ScriptedEngine()
    engine.close_after(0)
    client = AsyncStudio("studio")
    await client._http.aclose()
    client._http = parts.http
    async with parts.working(engine):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "processing")
        asyncio.get_running_loop().call_later(0.3, engine.release)
        names = [update.name async for update in client.follow("j1")]
    assert (names[0], names[-1]) == ("snapshot", "completed")


async def test_what_strays_among_the_telemetry_is_no_part_of_a_job(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.close_after(0)
    damaged = [Message("progress", "j1", value, {}) for value in (b"{", b'{"type": "Strange"}')] * 10

    async with parts.working(engine), asyncio.timeout(30):
        await parts.submit("j1", seeds=[1])
        await parts.when("j1", "processing")
        following = asyncio.create_task(parts.http.get("/jobs/j1/events"))
        await eventually(lambda: asyncio.sleep(0, "j1" in parts.services.feed._listeners))
        await parts.log.append(damaged)
        engine.release()
        told = (await following).text
    assert told.count("event: completed") == 1


async def test_what_landed_twice_is_told_once(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        ended = await parts.when("j1", "completed")
    landed = await audit.records(parts.log, "jobs")
    await parts.log.append([Message("jobs", record.key, record.value, record.headers) for record in landed])
    told = await parts.http.get("/jobs/j1/events", headers={"Last-Event-ID": str(ended.origin)})
    assert [line for line in told.text.splitlines() if line.startswith("event")] == [
        "event: started",
        "event: sample",
        "event: completed",
    ]


@pytest.mark.parametrize("last", ["", "abc", "7f3c-1", "-1", "9" * 30, "999999999999"])
def test_an_id_that_is_none_of_the_jobs_gets_a_snapshot(studio: Running, last: str) -> None:
    job_id = submit(studio)
    when(studio, job_id, "completed")
    assert [name for name, _, _ in follow(studio, job_id, last)] == ["snapshot"]


async def test_a_client_that_missed_nothing_makes_nobody_read_the_log(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.submit("waiting")
    job = await parts.when("waiting", "queued")

    async def read(*_: object) -> list[object]:
        raise AssertionError

    monkeypatch.setattr(parts.log, "read", read)
    following = asyncio.create_task(
        parts.http.get("/jobs/waiting/events", headers={"Last-Event-ID": str(job.position)})
    )
    await eventually(lambda: asyncio.sleep(0, "waiting" in parts.services.feed._listeners))
    await parts.http.delete("/generate/waiting")
    told = (await following).text
    assert [line for line in told.splitlines() if line.startswith("event")] == ["event: cancelled"]


async def test_a_client_that_missed_very_much_gets_a_snapshot(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.job_events.MISSED", 3)
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        ended = await parts.when("j1", "completed")
        assert ended.position - ended.origin == 3
        await parts.journal.append(JobDeleted(job_id="other"), JobCancelRequested(job_id="j1"))
        await parts.when("j1", "completed")
    told = await parts.http.get("/jobs/j1/events", headers={"Last-Event-ID": str(ended.origin)})
    assert [line for line in told.text.splitlines() if line.startswith("event")] == ["event: snapshot"]


def test_a_cancel_is_seen_by_who_follows(studio: Running) -> None:
    job_id = submit(studio, **LONG)
    when(studio, job_id, "processing")
    events = follow(studio, job_id, at_first=lambda: delete(studio, job_id))
    assert [name for name, _, _ in events if name not in {"progress", "sample"}] == [
        "snapshot",
        "cancelling",
        "cancelled",
    ]


def delete(studio: Running, job_id: str) -> None:
    """Cancels on a connection of its own: the shared one is busy with a stream."""
    httpx.delete(f"{studio.url}/generate/{job_id}", trust_env=False).raise_for_status()
