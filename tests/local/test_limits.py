"""How many requests may come, and how slowly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvicorn
from litestar import get

from api.http.entrance import ABORT
from api.http.limits import Limiter, Policy
from api.http.problems import MAX_BODY
from commands import keys as commands
from domain.errors import UnavailableError
from domain.keys import KEYS, KeyRequest
from domain.ports import Position
from infra.serving import MAX_HEAD, Patience, protocol
from infra.storage.sqlite_counters import SqliteCounters
from tests.local.parts import Parts

HASTY: Final = Patience(head=0.3, body=0.3, reader=0.3, body_rate=1_000)
BODY: Final = b'{"text": "rain"}'


async def test_an_open_studio_has_no_limit_and_one_with_keys_says_what_is_left(parts: Parts) -> None:
    assert "RateLimit" not in (await parts.http.get("/jobs")).headers
    key, text = await commands.create_on(parts.journal, KeyRequest(owner="ann", scopes=("read",)))
    await parts.services.views.show([Position(KEYS.name, key.partition, key.position)])
    good = await parts.http.get("/jobs", headers={"X-API-Key": text})
    assert good.headers["RateLimit-Policy"] == '"read";q=6000;w=60'
    assert good.headers["RateLimit"].startswith('"read";r=5999;t=')
    missing = await parts.http.get("/jobs/x", headers={"X-API-Key": text})
    assert missing.headers["RateLimit"].startswith('"read";r=5998;t=')
    assert "RateLimit" not in (await parts.http.get("/health/live")).headers


async def test_too_many_are_told_when_to_go_on(parts: Parts, tmp_path: Path) -> None:
    counters = await SqliteCounters.open(tmp_path / "c.db")
    parts.services.limiter.__init__(counters, {"read": "3/day", "write": "off"})  # type: ignore[misc]
    answers = [await parts.http.get("/jobs") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    refused = answers[-1]
    assert refused.json()["code"] == "too_many_requests"
    assert "3 requests in 86,400 s (read)" in refused.json()["detail"]
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    assert refused.headers["RateLimit"].startswith('"read";r=0;t=')
    assert (await parts.http.post("/prompts", json={"text": "x"})).status_code == 201
    await counters.close()


async def test_a_route_may_name_a_limit_of_its_own() -> None:
    @get("/slow", opt={"limit": "10/minute"}, operation_id="slowly")
    async def slow() -> None: ...

    from api.http.access import ANYBODY  # noqa: PLC0415

    assert Limiter().policy(slow, "GET", ANYBODY) == Policy("slowly", 10, 60)


async def test_processes_together_never_pass_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor much less: each may hold a share of it back."""
    monkeypatch.setattr("api.http.limits.PATIENCE_SECONDS", 60)
    policy = Policy("x", 500, 86_400)
    counters = [await SqliteCounters.open(tmp_path / "c.db") for _ in range(3)]
    limiters = [Limiter(each) for each in counters]
    taken = await asyncio.gather(*(limiter.take(policy, "ann") for limiter in limiters for _ in range(300)))
    served = sum(standing.remaining >= 0 for standing in taken)
    assert 500 - 2 * 5 <= served <= 500
    others = [await limiter.take(policy, "bob") for limiter in limiters]
    assert all(standing.remaining >= 0 for standing in others)
    for each in counters:
        await each.close()


async def test_a_count_that_is_away_stops_nobody() -> None:
    class Away:
        asked = 0

        async def add(self, _name: str, _amount: int, _expires_at: float) -> int:
            Away.asked += 1
            raise UnavailableError("away")

        async def close(self) -> None: ...

    limiter, policy = Limiter(Away()), Policy("x", 5, 86_400)
    taken = [(await limiter.take(policy, "ann")).remaining for _ in range(7)]
    assert (taken, Away.asked) == ([4, 3, 2, 1, 0, -1, -1], 1)


async def test_a_count_that_hangs_stops_nobody_and_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging:
        async def add(self, _name: str, _amount: int, _expires_at: float) -> int:
            return await asyncio.Future[int]()

        async def close(self) -> None: ...

    monkeypatch.setattr("api.http.limits.PATIENCE_SECONDS", 0.05)
    limiter, policy = Limiter(Hanging()), Policy("x", 2, 86_400)
    assert [(await limiter.take(policy, "ann")).remaining for _ in range(3)] == [1, 0, -1]
    assert [record.getMessage() for record in caplog.records] == [
        "Requests are counted by this process alone for 5 s: the common count did not answer within 0.05 s."
    ]


@contextlib.asynccontextmanager
async def serving(app: Any, patience: Patience = HASTY) -> AsyncIterator[int]:
    """The port of a server as the studio has it, with less patience."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical", http=protocol(patience, ABORT))
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(30):
        while not server.started:  # noqa: ASYNC110 -- uvicorn has nothing to wait for
            await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def exchange(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
        return b""
    finally:
        writer.close()


HEAD: Final = b"POST /prompts HTTP/1.1\r\nHost: studio\r\nContent-Type: application/json\r\n"
GET: Final = b"GET /jobs HTTP/1.1\r\nHost: studio\r\n"


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([], b""),
        ([b"GET /jobs"], b"408"),
        ([GET + b"X-A: b\r\n"], b"408"),
        ([GET + b"X-A: " + b"b" * 2 * MAX_HEAD], b"431"),
        ([GET, *[b"X-A: " + b"b" * 1_000 + b"\r\n"] * 100], b"431"),
        ([GET + b"X-A: " + b"b" * 2 * MAX_HEAD + b"\r\n\r\n"], b"431"),
        ([b"GET /" + b"a" * 2 * MAX_HEAD + b" HTTP/1.1\r\n\r\n"], b"431"),
        ([HEAD + b"Content-Length: 100\r\n\r\n"], b"408"),
        ([HEAD + b"Content-Length: 100\r\n\r\n", BODY], b"408"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhallo\r\n"], b"408"),
        ([HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)], b"413"),
        ([HEAD + b"Connection: close\r\nContent-Length: 16\r\n\r\n", BODY], b"201"),
        ([GET + b"Connection: close\r\n\r\n"], b"200"),
        ([GET + b"Content-Length: x\r\n\r\n"], b"400"),
        ([b"GET /jobs HTTP/1.1\r\nHost: studio\r\nX-API-Key: a\rX-Admin: 1\r\n\r\n"], b"400"),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], b"400"),
    ],
)
async def test_what_a_connection_sends_and_hears(parts: Parts, pieces: list[bytes], status: bytes) -> None:
    async with serving(parts.http._transport.app) as port:  # type: ignore[attr-defined]
        answer = await exchange(port, *pieces)
    assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else []), answer[:500]
    assert status not in {b"408", b"431"} or b"application/problem+json" in answer


async def test_half_open_connections_keep_nobody_out(parts: Parts) -> None:
    async with serving(parts.http._transport.app) as port:  # type: ignore[attr-defined]
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for _, writer in held[::2]:
            writer.write(b"GET /jo")
        good = await exchange(port, GET + b"Connection: close\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(reader.read() for reader, _ in held), return_exceptions=True)
        assert all(isinstance(answer, ConnectionError | bytes) for answer in answers)
        for _, writer in held:
            writer.close()


async def test_a_reader_that_takes_nothing_is_cut() -> None:
    ended = asyncio.Event()

    async def endless(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                if (await _now(receive)) == "http.disconnect":
                    return
        finally:
            ended.set()

    async with serving(endless) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(GET + b"\r\n")
        async with asyncio.timeout(30):
            await ended.wait()
        writer.close()


async def _now(receive: Any) -> str | None:
    """What there is to receive, None where there is nothing yet."""
    asked = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    if not asked.done():
        asked.cancel()
        return None
    return str(asked.result()["type"])
