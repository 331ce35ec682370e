"""Seed 003, from a prompt to a track in one request: a test for each of its scenarios and acceptance criteria."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.http.hosts import AllowedHosts, origins
from infra.roles import allowed_hosts
from infra.settings import Settings, load
from tests.conditions import eventually
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts, stop
from workers.engine import EngineError
from workers.reactions import Reactions
from workers.tracks import TracksInFolder


@pytest.fixture(scope="module")
def track(studio: Running) -> dict[str, Any]:
    """One that was generated."""
    answer = studio.http.post("/api/generate", json={"prompt": "rain on a tin roof", "duration": 5})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def generated(parts: Parts, **body: Any) -> httpx.Response:
    return await parts.http.post("/api/generate", json={"prompt": "rain on a tin roof", **body}, timeout=60)


def test_post_api_generate_returns_the_metadata_with_201(track: dict[str, Any]) -> None:
    assert track.keys() == {"track_id", "audio_url", "duration", "device", "created_at"}
    assert track["audio_url"].startswith("/output/")
    assert (round(track["duration"]), track["device"]) == (5, "cpu")


async def test_a_track_that_cannot_be_read_back_is_answered_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(*_: object) -> bool:
        return False

    async with open_parts(tmp_path, track_seconds=0.1) as parts:
        monkeypatch.setattr(parts.services.tail, "wait", late)
        answer = await generated(parts, duration=5)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        monkeypatch.undo()
        found = await parts.http.get(answer.headers["Location"])
        assert (found.status_code, found.json()["track_id"]) == (200, answer.json()["track_id"])


async def test_generation_with_the_default_duration(parts: Parts) -> None:
    engine = ScriptedEngine()
    async with parts.working(engine):
        assert (await generated(parts)).status_code == 201
    assert engine.requests[0].duration == 30


@pytest.mark.parametrize("duration", [5, 30, 60, 300])
async def test_generation_with_a_custom_duration(parts: Parts, duration: float) -> None:
    engine = ScriptedEngine()
    async with parts.working(engine):
        assert (await generated(parts, duration=duration)).status_code == 201
    assert engine.requests[0].duration == duration


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"prompt": ""}, "/prompt", "The prompt is empty"),
        ({"prompt": "rain", "duration": 4.99}, "/duration", "duration is 4.99 s; a track has from 5 to 300 s"),
        ({"prompt": "rain", "duration": 300.01}, "/duration", "a track has from 5 to 300 s"),
        ({"duration": 30}, "/prompt", "prompt is missing"),
        ({}, "/prompt", "prompt is missing"),
        ({"prompt": "rain", "tempo": 90}, "/tempo", "There is no field 'tempo'"),
    ],
    ids=["empty prompt", "below minimum", "above maximum", "missing prompt", "missing fields", "unknown field"],
)
def test_validation_errors(studio: Running, body: dict[str, Any], pointer: str, words: str) -> None:
    answer = studio.http.post("/api/generate", json=body)
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]


def test_get_api_track_returns_the_record_created_from_generation(studio: Running, track: dict[str, Any]) -> None:
    found = studio.http.get(f"/api/track/{track['track_id']}").json()
    assert found["prompt"] == "rain on a tin roof"
    assert (found["status"], found["audio_url"]) == ("completed", track["audio_url"])
    assert (found["duration"], found["created_at"]) == (track["duration"], track["created_at"])


def test_get_track_with_audio_url_and_file_size(studio: Running, track: dict[str, Any]) -> None:
    found = studio.http.get(f"/api/track/{track['track_id']}").json()
    assert found["file_size"] == len(studio.http.get(found["audio_url"]).content)


async def test_get_track_without_file(parts: Parts) -> None:
    async with parts.working(ScriptedEngine()):
        made = (await generated(parts)).json()
    await parts.objects.delete("samples")
    found = await parts.http.get(f"/api/track/{made['track_id']}")
    assert found.status_code == 200
    assert (found.json()["file_size"], found.json()["audio_url"], found.json()["status"]) == (None, None, "completed")


def test_404_for_missing_tracks(studio: Running) -> None:
    answer = studio.http.get("/api/track/nobody")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no track 'nobody'.")
    assert studio.http.get("/output/nobody.wav").status_code == 404
    assert studio.http.get("/output/nobody.aiff").status_code == 404


def test_files_are_served_at_output_as_wav_and_mp3_with_ranges(studio: Running, track: dict[str, Any]) -> None:
    wav = studio.http.get(track["audio_url"])
    assert (wav.headers["Content-Type"], wav.content[:4]) == ("audio/wav", b"RIFF")
    mp3 = studio.http.get(track["audio_url"].replace(".wav", ".mp3"))
    assert mp3.headers["Content-Type"] == "audio/mpeg"
    part = studio.http.get(track["audio_url"], headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, wav.content[4:12])
    assert studio.http.get(track["audio_url"], headers={"Range": f"bytes={len(wav.content)}-"}).status_code == 416
    assert studio.http.get(track["audio_url"], headers={"If-None-Match": wav.headers["ETag"]}).status_code == 304


async def test_generation_failures_return_500(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults = [EngineError("The prompt cannot be sung.")]
    async with parts.working(engine):
        answer = await generated(parts)
    assert (answer.status_code, answer.json()["code"]) == (500, "generation_failed")
    assert "The prompt cannot be sung." in answer.json()["detail"]


async def test_a_track_that_is_deleted_while_it_is_made_is_said_to_be(parts: Parts) -> None:
    asking = asyncio.create_task(generated(parts))
    try:
        job = await eventually(lambda: first_job(parts))
        assert (await parts.http.delete(f"/jobs/{job['id']}")).status_code == 200
        assert (await asking).status_code == 409
        assert (await parts.http.get(f"/api/track/{job['id']}")).status_code == 404
    finally:
        asking.cancel()


async def first_job(parts: Parts) -> dict[str, Any]:
    found = (await parts.http.get("/jobs")).json()["items"]
    return dict(found[0]) if found else {}


async def test_a_wait_over_the_limit_is_answered_202_and_loses_nothing(tmp_path: Path) -> None:
    async with open_parts(tmp_path, track_seconds=0.05) as parts:
        answer = await generated(parts)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        place = answer.headers["Location"]
        assert place == f"/api/track/{answer.json()['track_id']}"
        assert (await parts.http.get(place)).json()["audio_url"] is None
        async with parts.working(ScriptedEngine()):
            await parts.when(answer.json()["track_id"], "completed")
        found = (await parts.http.get(place)).json()
        assert (await parts.http.get(found["audio_url"])).status_code == 200


def test_a_client_that_leaves_loses_nothing(studio: Running) -> None:
    key = {"Idempotency-Key": "left-in-between"}
    body = {"prompt": "rain that goes on", "duration": 30}
    with pytest.raises(httpx.ReadTimeout):
        studio.http.post("/api/generate", json=body, headers=key, timeout=httpx.Timeout(30, read=0.2))
    answer = studio.http.post("/api/generate", json=body, headers=key, timeout=180)
    assert answer.status_code == 201
    same = studio.http.post("/api/generate", json=body, headers=key)
    assert same.json()["track_id"] == answer.json()["track_id"]


async def test_a_client_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    body = b'{"prompt": "rain on a tin roof"}'
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    headers = [(b"host", b"studio"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/generate",
        "raw_path": b"/api/generate",
        "headers": headers,
    }
    scope |= {"query_string": b"", "scheme": "http", "server": ("studio", 80), "client": ("127.0.0.1", 1)}

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    async with open_parts(tmp_path, track_seconds=3600) as parts:
        app: Any = parts.http._transport
        async with asyncio.timeout(60):
            await app.app(scope, receive, send)
        assert (await first_job(parts))["status"] == "queued"


async def test_successive_calls_reuse_the_service_instance(parts: Parts) -> None:
    """One engine makes them all: the model is loaded once."""
    engine = ScriptedEngine()
    async with parts.working(engine):
        first, second = await generated(parts), await generated(parts)
    assert first.json()["track_id"] != second.json()["track_id"]
    assert len(engine.requests) == 2


def test_health_check_endpoint(studio: Running) -> None:
    answer = studio.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_root_endpoint(studio: Running) -> None:
    assert studio.http.get("/").json()["name"] == "Text2Song Studio"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://localhost:5173"])
def test_cors_headers_present(studio: Running, origin: str) -> None:
    answer = studio.http.get("/health", headers={"Origin": origin})
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert "X-Event-Position" in answer.headers["Access-Control-Expose-Headers"]
    refused = studio.http.post("/api/generate", json={}, headers={"Origin": origin})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (400, origin)
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key",
    }
    assert studio.http.options("/api/generate", headers=asking).status_code == 204


def test_a_page_of_another_origin_may_read_and_write_nothing(studio: Running) -> None:
    stranger = {"Origin": "http://localhost:3001"}
    assert "Access-Control-Allow-Origin" not in studio.http.get("/health", headers=stranger).headers
    asking = {**stranger, "Access-Control-Request-Method": "POST"}
    assert studio.http.options("/api/generate", headers=asking).status_code == 400
    foreign = {"Origin": "https://evil.example"}
    assert studio.http.post("/api/generate", json={"prompt": "x"}, headers=foreign).status_code == 403


def test_the_environment_sets_origins_folder_and_port() -> None:
    environment = {"CORS_ALLOW_ORIGINS": "https://a.example", "OUTPUT_DIR": "music", "PORT": "8123"}
    settings = load(environment)
    assert (settings.cors_allow_origins, settings.output_dir, settings.port) == ("https://a.example", "music", 8123)
    assert load({**environment, "TEXT2SONG_PORT": "9000"}).port == 9000
    assert load(environment, port=9001).port == 9001
    hosts = allowed_hosts(settings)
    assert hosts.origins == ("https://a.example",)
    # Who may read answers may write as well.
    hosts.check("POST", [(b"host", b"localhost"), (b"origin", b"https://a.example")])


@pytest.mark.parametrize("text", ["a.example", "https://*.example", "ftp://a.example", "null"])
def test_what_is_no_origin_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(Exception, match="is no origin of a page"):
        allowed_hosts(Settings(cors_allow_origins=text))


def test_every_origin_can_be_allowed_without_credentials() -> None:
    assert origins(["*"]) == ("*",)
    AllowedHosts(origins=("*",)).check("POST", [(b"host", b"localhost"), (b"origin", b"https://any.example")])


async def test_finished_tracks_are_written_to_the_output_folder_and_removed_with_their_job(
    parts: Parts, tmp_path: Path
) -> None:
    folder = tmp_path / "music"
    reaction = TracksInFolder(parts.store, parts.objects, folder)
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [reaction]).run())
    try:
        async with parts.working(ScriptedEngine()):
            made = (await generated(parts)).json()
        stem = made["audio_url"].removeprefix("/output/").removesuffix(".wav")

        async def names() -> set[str]:
            return {path.name for path in folder.glob("*")}

        async def is_written() -> bool:
            return await names() == {f"{stem}.wav", f"{stem}.mp3"}

        await eventually(is_written)
        assert (folder / f"{stem}.wav").read_bytes()[:4] == b"RIFF"
        await parts.http.delete(f"/jobs/{made['track_id']}")

        async def is_gone() -> bool:
            return not await names()

        await eventually(is_gone)
    finally:
        await stop(running)


async def test_an_output_folder_that_cannot_be_written_waits_and_holds_no_track_up(
    parts: Parts, tmp_path: Path
) -> None:
    place = tmp_path / "music"
    place.write_text("in the way")
    reaction = TracksInFolder(parts.store, parts.objects, place)
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [reaction]).run())
    try:
        async with parts.working(ScriptedEngine()):
            assert (await generated(parts)).status_code == 201
        place.unlink()

        async def is_written() -> bool:
            return len([*place.glob("*")]) == 2

        await eventually(is_written)
    finally:
        await stop(running)
