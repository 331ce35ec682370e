"""What holds for every route: HEAD, hosts, and the parameters of the query."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts

PLACES = {
    "prompt_id": "p1",
    "job_id": "j1",
    "sample_id": "s1",
    "feedback_id": "f1",
    "ab_test_id": "t1",
    "adapter_id": "a1",
    "dataset_id": "d1",
    "training_id": "r1",
    "melody_id": "melody-1",
    "export_format": "preference",
    "key_id": "k1",
    "name": "adapter_config.json",
    "trial_id": "x1",
    "side": "left",
    "track_id": "k1",
    "file_name": "f1.wav",
    "audio_id": "o1",
    "delivery_id": "w1",
}
WRITES = {"POST", "PUT", "PATCH", "DELETE"}
ENDLESS = "/events"  # a client that does not hear all of it has no answer of it
UNDOCUMENTED = ("/schema", "/schema/openapi.json", "/schema/openapi.yaml", "/nowhere")


async def routes(parts: Parts) -> AsyncIterator[tuple[str, str]]:
    """Each method and address that there is."""
    document = (await parts.http.get("/schema/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method in methods:
            yield method.upper(), path.format(**PLACES)


def body(method: str, path: str) -> dict[str, str] | None:
    if method not in {"POST", "PUT"}:
        return None
    return {"prompt": "x"} if path == "/generate" else {"text": "x"}


async def test_head_is_answered_as_get_without_the_body(parts: Parts) -> None:
    paths = [path async for method, path in routes(parts) if method == "GET" and path != ENDLESS]
    assert len(paths) > 10
    for path in (*paths, *UNDOCUMENTED):
        got, head = await parts.http.get(path), await parts.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        got.headers.pop("X-Request-ID", None), head.headers.pop("X-Request-ID", None)
        assert head.headers == got.headers, path


async def test_head_of_a_stream_ends(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.close_after(0)
    async with parts.working(engine), asyncio.timeout(10):
        await parts.submit("j1")
        await parts.when("j1", "processing")
        head = await parts.http.head("/jobs/j1/events")
        engine.release()
        assert (await parts.http.head(ENDLESS)).status_code == 200
    assert not parts.services.feed._everywhere
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"].startswith("text/event-stream")
    assert not parts.services.feed._listeners


async def test_options_names_every_method_of_an_address(parts: Parts) -> None:
    documented: dict[str, set[str]] = {}
    async for method, path in routes(parts):
        documented.setdefault(path, {"OPTIONS"}).update({method, "HEAD"} if method == "GET" else {method})
    for path, methods in documented.items():
        answer = await parts.http.options(path)
        assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (204, methods), path


async def test_foreign_hosts_are_refused_everywhere(parts: Parts) -> None:
    paths = [*[route async for route in routes(parts)], *(("GET", path) for path in UNDOCUMENTED), ("HEAD", "/jobs")]
    for method, path in paths:
        answer = await parts.http.request(method, path, headers={"Host": "evil.example:8000"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (403, "application/problem+json"), path
        assert method == "HEAD" or answer.json()["code"] == "forbidden_host"
    assert (await parts.http.get("/jobs")).json()["total"] == 0


async def test_pages_of_foreign_hosts_read_alone(parts: Parts) -> None:
    foreign = {"Origin": "http://evil.example"}
    for method, path in [route async for route in routes(parts) if route[1] != ENDLESS]:
        body = {"prompt": "x"} if path == "/generate" else {"text": "x"}
        answer = await parts.http.request(
            method, path, headers=foreign, json=body if method in {"POST", "PUT"} else None
        )
        assert (answer.status_code == 403) == (method in WRITES), path
        assert answer.status_code != 403 or answer.json()["code"] == "forbidden_origin"
    own = {"Origin": "http://studio:3000"}
    assert (await parts.http.post("/generate", json={"prompt": "x"}, headers=own)).status_code == 202


async def test_unknown_parameters_of_the_query_are_refused_naming_the_known(parts: Parts) -> None:
    for method, path in [route async for route in routes(parts)]:
        body = {"prompt": "x"} if path == "/generate" else {"text": "x"}
        answer = await parts.http.request(
            method, f"{path}?statsu=queued", json=body if method in {"POST", "PUT"} else None
        )
        if path.startswith("/health"):
            assert answer.status_code != 400
            continue
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/statsu"), path
    listed = (await parts.http.get("/jobs?statsu=queued")).json()["detail"]
    assert listed.startswith(
        "There is no query parameter 'statsu' at this address; it takes status, adapter_id, ab_test_id, "
    )
    assert "it takes format." in (await parts.http.get("/audio/s1/stream?fromat=mp3")).json()["detail"]
    assert "it takes none." in (await parts.http.get("/models?limit=1")).json()["detail"]
    assert (await parts.http.get("/jobs")).json()["total"] == 0


@pytest.mark.parametrize("path", ["/schema?dark", "/schema/openapi.json?v=2", "/health/live?from=monitor"])
async def test_pages_and_probes_take_any_query(parts: Parts, path: str) -> None:
    assert (await parts.http.get(path)).status_code == 200
