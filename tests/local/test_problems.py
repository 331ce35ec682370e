"""Bad input over HTTP: each row names what was wrong and leaves nothing behind."""

from base64 import urlsafe_b64encode
from typing import Any

import msgspec
import pytest

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
        ({"prompt": "x", "duration": 30.5}, "/duration", "requested duration is 30.5 s; text2song/wiring-noise makes"),
        ({"prompt": "x", "duration": "long"}, "/duration", "Expected `float | null`, got `str`"),
        ({"prompt": "x", "num_samples": 0}, "/num_samples", "num_samples is 0; ask for 1 to 16."),
        ({"prompt": "x", "num_samples": 1000}, "/num_samples", "num_samples is 1,000; ask for 1 to 16."),
        ({"prompt": "x", "seeds": [1, "two"]}, "/seeds/1", "Expected `int`, got `str`"),
        ({"prompt": "x", "output_format": "aiff"}, "/output_format", "Invalid enum value 'aiff'"),
        ({"prompt": "x", "tempo": 120}, "/tempo", "unknown field `tempo`"),
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
    "raw",
    [
        b"{",
        b"",
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
        ({"limit": "many"}, "Expected `int`, got `str`"),
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


def test_unknown_addresses_and_methods_are_problems_too(studio: Running) -> None:
    missing = studio.http.get("/nowhere")
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json")
    wrong = studio.http.put("/jobs")
    assert (wrong.status_code, wrong.headers["Content-Type"]) == (405, "application/problem+json")


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
