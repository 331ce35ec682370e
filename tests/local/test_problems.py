"""Bad input over HTTP: each row names what was wrong and leaves nothing behind."""

import asyncio
from base64 import urlsafe_b64encode
from typing import Any

import msgspec
import pytest

from domain.aggregates import AGGREGATES
from tests.contract.conftest import full_disk
from tests.local.conftest import Running
from tests.local.parts import Parts

JSON = {"Content-Type": "application/json"}


def jobs(studio: Running) -> int:
    return int(studio.http.get("/jobs").json()["total"])


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"prompt": ""}, "/prompt", "The prompt is empty"),
        ({"prompt": "   "}, "/prompt", "The prompt is empty"),
        ({"prompt": "x" * 4001}, "/prompt", "The prompt has 4,001 characters; the limit is 4,000."),
        (
            {"prompt": "x", "duration": 0},
            "/duration",
            "requested duration is 0 s; text2song/wiring-noise makes from 0.5 s",
        ),
        ({"prompt": "x", "duration": -1}, "/duration", "requested duration is -1 s; text2song/wiring-noise makes from"),
        ({"prompt": "x", "duration": 300.5}, "/duration", "requested duration is 300.5 s; text2song/wiring-noise"),
        (
            {"prompt": "x", "duration": 300.0000001},
            "/duration",
            "requested duration is 300.0000001 s; text2song/wiring-",
        ),
        ({"prompt": "x", "duration": 0.4999999999}, "/duration", "requested duration is 0.4999999999 s; text2song/wir"),
        ({"prompt": "x", "top_p": 1.0000001}, "/top_p", "top_p is 1.0000001; it must be from 0 to 1."),
        ({"prompt": "x", "duration": "long"}, "/duration", "duration is 'long': Expected `float | null`, got `str`."),
        ({"prompt": "x", "num_samples": 0}, "/num_samples", "num_samples is 0; ask for 1 to 16."),
        ({"prompt": "x", "num_samples": 1000}, "/num_samples", "num_samples is 1,000; ask for 1 to 16."),
        ({"prompt": "x", "seeds": [1, "two"]}, "/seeds/1", "seeds[1] is 'two': Expected `int`, got `str`."),
        ({"prompt": "x", "output_format": "WAV"}, "/output_format", "is 'WAV'; it is one of flac, mp3, ogg, wav."),
        ({"prompt": "x", "output_format": None}, "/output_format", "is null; it is one of flac, mp3, ogg, wav."),
        ({"prompt": "x", "tempo": 120}, "/tempo", "There is no field 'tempo'; the body takes prompt_id, prompt, model"),
        ({"prompt": "x", "a.b/c": 1}, "/a.b~1c", "There is no field 'a.b/c'"),
        ({}, "/prompt", "Give either prompt_id or prompt"),
        ({"prompt": "x", "prompt_id": "y"}, "/prompt", "Give either prompt_id or prompt"),
        ([1], "", "Expected `object`, got `array`"),
        ({"prompt": "x", "model_id": "nobody/knows"}, "/model_id", "Model nobody/knows is unknown"),
    ],
)
def test_a_bad_request_is_400_with_a_pointer(studio: Running, body: Any, pointer: str, words: str) -> None:
    before = jobs(studio)
    answer = studio.http.post("/generate", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["errors"][0]["detail"]
    assert words in problem["detail"]
    assert (problem["status"], problem["code"], problem["title"]) == (400, "invalid_request", "Bad Request")
    assert answer.headers["X-Request-ID"] == problem["request_id"]
    assert jobs(studio) == before


@pytest.mark.parametrize(
    ("raw", "pointer", "words"),
    [
        (b'{"prompt": "x", "duration": 1e400}', "/duration", "duration is 1e400; numbers go from -1.7e308 to 1.7e308."),
        (b'{"prompt": "x", "seeds": [1, -2E999]}', "/seeds/1", "seeds[1] is -2E999; numbers go from"),
        (b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}", "/seed", "seed is a number of 5,000 characters; numbers go"),
        (b'{"prompt": "\\ud83c"}', "/prompt", "prompt has \\ud83c, half of a surrogate pair"),
        (b"{}", "/text", "text is missing."),
        (b'{"text": "x", "attributes": {"moood": 1}}', "/attributes/moood", "attributes takes style, tempo, instrume"),
    ],
)
async def test_what_no_reader_can_hold_is_named_as_it_was_sent(
    parts: Parts, raw: bytes, pointer: str, words: str
) -> None:
    path = "/generate" if b"prompt" in raw else "/prompts"
    answer = await parts.http.post(path, content=raw, headers=JSON)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["pointer"]) == (400, pointer)
    assert words in error["detail"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
async def test_a_byte_order_mark_is_no_part_of_a_body(parts: Parts, mark: bytes) -> None:
    taken = await parts.http.post("/prompts", content=mark + b'{"text": "x"}', headers=JSON)
    assert (taken.status_code, taken.json()["text"]) == (201, "x")
    empty = await parts.http.post("/prompts", content=mark, headers=JSON)
    assert (empty.status_code, empty.json()["detail"]) == (400, "The body is missing; send one JSON object.")


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"",
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "x", "duration": NaN}',
        b'{"prompt": "x", "duration": 1e999}',
        b'{"prompt": "\xff"}',
        b"null",
    ],
)
def test_broken_json_is_400_and_queues_nothing(studio: Running, raw: bytes) -> None:
    before = jobs(studio)
    answer = studio.http.post("/generate", content=raw, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert jobs(studio) == before


def test_a_body_nested_without_end_is_400(studio: Running) -> None:
    answer = studio.http.post("/generate", content=b'{"prompt":' + b"[" * 3000 + b"]" * 3000 + b"}", headers=JSON)
    assert answer.status_code == 400


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_foreign_page_could_post_is_415(studio: Running, media_type: str) -> None:
    before = jobs(studio)
    answer = studio.http.post("/generate", content=b'{"prompt":"x"}', headers={"Content-Type": media_type})
    assert (answer.status_code, answer.headers["Content-Type"]) == (415, "application/problem+json")
    assert jobs(studio) == before


def test_a_body_of_50_megabytes_is_413(studio: Running) -> None:
    body = msgspec.json.encode({"prompt": "x" * 50_000_000})
    answer = studio.http.post("/generate", content=body, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "The body is over the limit of 1,000,000 bytes."


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"limit": 0}, "limit is 0; ask for 1 to 200 items."),
        ({"limit": 1000}, "limit is 1000; ask for 1 to 200 items."),
        ({"limit": "many"}, "limit is 'many': Expected `int`, got `str`."),
        ({"limit": ""}, "limit is '': Expected `int`, got `str`."),
        ({"offset": -1}, "offset is -1; it goes from 0 to 1,000,000."),
        ({"offset": 10**30}, "Go further with next_cursor."),
        ({"status": "lost"}, "status is 'lost'; it is one of queued, processing, completed"),
        ({"start_date": "yesterday"}, "start_date is 'yesterday'; write a date or time such as 2026-01-31"),
        ({"cursor": "?!"}, "'?!' is not a cursor"),
        ({"cursor": urlsafe_b64encode(b"0001-01-01T00:00:00+01:00|x").decode()}, "is not a cursor"),
    ],
)
def test_a_bad_query_is_400_naming_the_value(studio: Running, query: Any, words: str) -> None:
    answer = studio.http.get("/jobs", params=query)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "headers", "pointer", "words"),
    [
        ("/audio/x/stream?format=m4a", {}, "/format", "format is 'm4a'; it is one of flac, mp3, ogg, wav."),
        ("/prompts?limit=x", {}, "/limit", "limit is 'x'"),
        ("/prompts", {"Idempotency-Key": "k" * 201}, "/Idempotency-Key", f"Idempotency-Key is '{'k' * 99}…: Expected"),
    ],
)
async def test_a_parameter_is_named_as_clients_write_it(
    parts: Parts, path: str, headers: dict[str, str], pointer: str, words: str
) -> None:
    method = "POST" if headers else "GET"
    answer = await parts.http.request(method, path, headers=headers, json={"text": "x"} if headers else None)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["pointer"]) == (400, pointer)
    assert words in error["detail"]


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T13:00:00%2B01:00",
        "2026-01-31T13:00:00+01:00",
        "2026-01-31T13:00:00.5+0100",
        "2026-01-31T13:00+01:00",
        "2026-01-31t12:00:00z",
        "2026-01-31+12:00:00",
    ],
)
async def test_dates_are_taken_as_clients_write_them(parts: Parts, text: str) -> None:
    parts.journal.now = lambda: "2026-01-31T12:00:00.500000Z"
    await parts.submit("j1")
    await parts.host.caught_up(10)
    found = (await parts.http.get(f"/jobs?start_date={text}")).json()
    assert [job["id"] for job in found["items"]] == ["j1"]
    assert (await parts.http.get(f"/jobs?end_date={text.replace('-31', '-30')}")).json()["items"] == []


@pytest.mark.parametrize("topic", ["progress", "deadletter"])
async def test_a_position_that_no_view_shows_is_400(parts: Parts, topic: str) -> None:
    answer = await parts.http.get("/jobs", headers={"If-Event-Position": f"{topic}/0/0"})
    assert answer.status_code == 400
    detail = f"the views hold nothing of {topic}, only of {', '.join(AGGREGATES)}. Send an answer's"
    assert detail in answer.json()["detail"]


async def test_the_key_of_a_deleted_job_is_a_conflict(parts: Parts) -> None:
    request, key = {"prompt": "x", "seed": 1}, {"Idempotency-Key": "once"}
    job_id = (await parts.http.post("/generate", json=request, headers=key)).json()["job_id"]
    assert (await parts.http.delete(f"/jobs/{job_id}")).status_code == 200
    before = await parts.history(job_id)
    again = await parts.http.post("/generate", json=request, headers=key)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert again.json()["detail"] == f"Job {job_id} of this Idempotency-Key was deleted; use a new key for a new job."
    assert await parts.history(job_id) == before
    other = await parts.http.post("/generate", json={"prompt": "y"}, headers=key)
    assert other.status_code == 422


def test_unknown_addresses_and_methods_are_problems_too(studio: Running) -> None:
    missing = studio.http.get("/nowhere")
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json")
    wrong = studio.http.put("/jobs")
    assert (wrong.status_code, wrong.headers["Content-Type"]) == (405, "application/problem+json")
    assert {"GET", "HEAD"} <= set(wrong.headers["Allow"].split(", "))


def test_a_request_id_given_by_the_client_comes_back(studio: Running) -> None:
    answer = studio.http.get("/jobs/unknown", headers={"X-Request-ID": "trace-me"})
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "trace-me"


def test_every_route_is_documented(studio: Running) -> None:
    schema = studio.http.get("/schema/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    operations = {
        operation["operationId"]: operation
        for path in schema["paths"].values()
        for method, operation in path.items()
        if method in {"get", "post", "delete", "head"}
    }
    assert {"submitGeneration", "listJobs", "followJob", "getAudioStream", "isReady"} <= operations.keys()
    assert all(operation.get("tags") for operation in operations.values())


def test_health_tells_alive_from_ready(studio: Running) -> None:
    assert studio.http.get("/health/live").json() == {"status": "ok"}
    ready = studio.http.get("/health/ready").json()
    assert (ready["status"], ready["log"], ready["views"]) == ("ready", True, True)
    assert [worker["state"] in {"ready", "busy"} for worker in ready["workers"]] == [True]


async def test_an_api_without_workers_is_ready_and_says_that_nobody_generates(parts: Parts) -> None:
    answer = await parts.http.get("/health/ready")
    assert (answer.status_code, answer.json()["status"], answer.json()["generates"]) == (200, "ready", False)


async def test_health_does_not_wait_for_a_log_that_keeps_silent(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(_: str) -> dict[int, int]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("api.health.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(parts.log, "ends", ends)
    async with asyncio.timeout(5):
        answer = await parts.http.get("/health/ready")
    assert (answer.status_code, answer.json()["status"], answer.json()["log"]) == (503, "unavailable", False)


async def test_a_full_disk_refuses_the_job_loudly_and_nothing_is_half_written(parts: Parts) -> None:
    size = parts.folder.joinpath("events.db-wal").stat().st_size
    with full_disk(size):
        refused = await parts.http.post("/generate", json={"prompt": "x" * 4000})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "free space. Nothing was appended." in refused.json()["detail"]
    assert (await parts.http.get("/jobs")).json()["total"] == 0
    taken = await parts.http.post("/generate", json={"prompt": "x" * 4000})
    assert taken.status_code == 202
    assert (await parts.http.get("/jobs")).json()["total"] == 1
