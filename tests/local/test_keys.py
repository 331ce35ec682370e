"""Keys: who gets in, what an owner sees, and how fast a key ends."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import httpx
import pytest

from api.app import create_app
from api.http.access import OPEN, demand
from api.http.entrance import ABORT, CALLER, Entrance
from api.http.hosts import AllowedHosts
from api.http.limits import Policy
from api.http.ownership import OWNERS, SHARED
from api.http.quota import Quota
from commands import keys as commands
from domain.events.keys import Scope
from domain.keys import KEYS, KeyRequest, parts, text
from domain.ports import Position
from infra.storage.sqlite_store import SqliteStore
from projections.project import VIEWS
from tests.conditions import eventually
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts

SCOPES: Final[dict[str, tuple[Scope, ...]]] = {
    "ops": ("admin",),
    "ann": ("read", "write", "listen"),
    "bob": ("read", "write"),
    "cem": ("read",),
}

PAGE = {"GET /studio", "GET /studio/{name}"}


class House:
    """A studio with keys of four owners. `ask` sends one of them."""

    def __init__(self, parts: Parts, keys: dict[str, str]) -> None:
        self.parts = parts
        self.keys = keys

    async def ask(self, owner: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"X-API-Key": self.keys[owner], **headers}
        return await self.parts.http.request(method, path, json=body, headers=headers)

    async def make(self, owner: str, *scopes: str, **fields: Any) -> str:
        made = await self.ask("ops", "POST", "/keys", {"owner": owner, "scopes": scopes, **fields})
        assert made.status_code == 201, made.text
        return str(made.json()["key"])


@pytest.fixture
async def house(parts: Parts) -> House:
    keys = {}
    for owner, scopes in SCOPES.items():
        request = KeyRequest(owner=owner, scopes=scopes)
        key, keys[owner] = await commands.create_on(parts.journal, request)
        await parts.services.views.show([Position(KEYS.name, key.partition, key.position)])
    return House(parts, keys)


async def test_the_text_of_a_key_is_answered_even_where_the_key_cannot_be_read_back_yet(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(*_: object) -> bool:
        return False

    monkeypatch.setattr(parts.services.tail, "wait", late)
    answer = await parts.http.post("/keys", json={"owner": "ops", "scopes": ["admin"]})
    assert (answer.status_code, answer.json()["owner"], answer.json()["is_valid"]) == (201, "ops", True)
    monkeypatch.undo()

    async def opens() -> bool:
        listed = await parts.http.get("/keys", headers={"X-API-Key": answer.json()["key"]})
        return listed.status_code == 200 and [key["id"] for key in listed.json()["items"]] == [answer.json()["id"]]

    await eventually(opens)


async def test_a_studio_is_open_until_the_first_key_and_never_again(parts: Parts) -> None:
    assert (await parts.http.get("/jobs")).status_code == 200
    made = (await parts.http.post("/keys", json={"owner": "ann", "scopes": ["admin"]})).json()
    refused = await parts.http.get("/jobs")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert "text2song keys create" in refused.json()["detail"]
    sent = {"Authorization": f"bearer {made['key']}"}
    listed = (await parts.http.get("/keys", headers=sent)).json()["items"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert "secret" not in json.dumps(listed)
    revoked = await parts.http.delete(f"/keys/{made['id']}", headers=sent)
    assert (revoked.status_code, revoked.json()["is_valid"]) == (200, False)
    assert (await parts.http.get("/jobs")).status_code == 401
    assert "was revoked at" in (await parts.http.get("/jobs", headers=sent)).json()["detail"]


async def test_only_a_hash_of_a_key_is_kept(parts: Parts) -> None:
    key = (await parts.http.post("/keys", json={"owner": "ann", "scopes": ["read"]})).json()["key"]
    _, secret = parts_of(key)
    for file in parts.folder.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def parts_of(key: str) -> tuple[str, str]:
    found = parts(key)
    assert found
    return found


async def test_what_is_no_key_gets_the_same_answer(house: House) -> None:
    """An input, and the headers that it sends."""
    key_id, secret = parts_of(house.keys["ann"])
    other = parts_of(house.keys["bob"])[1]
    table: dict[str, list[tuple[str, str]]] = {
        "an unknown id": [("X-API-Key", text("nobody", secret))],
        "a wrong secret": [("X-API-Key", text(key_id, secret[:-1] + ("A" if secret[-1] != "A" else "B")))],
        "another key's secret": [("X-API-Key", text(key_id, other))],
        "no secret": [("X-API-Key", f"t2s_{key_id}_")],
        "an empty header": [("X-API-Key", "")],
        "no form of a key": [("X-API-Key", "admin")],
        "a very long one": [("X-API-Key", "t2s_" + "a" * 30_000)],
        "bytes that are no ASCII": [("X-API-Key", "t2s_\u00fc_\u00fc")],
        "a key with an injected header": [("X-API-Key", f"{house.keys['ann']}%0d%0aX-Admin: 1")],
        "SQL": [("X-API-Key", "t2s_x' OR '1'='1_y")],
    }
    details = set()
    for name, headers in table.items():
        raw = [(header.encode(), content.encode("latin-1")) for header, content in headers]
        answer = await house.parts.http.get("/jobs", headers=raw)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="text2song"'), name
        details.add(answer.json()["detail"])
    assert len(details) == 1
    basic = await house.parts.http.get("/jobs", headers={"Authorization": "Basic YTpi"})
    assert (basic.status_code, "no bearer key" in basic.json()["detail"]) == (401, True)
    twice = {"X-API-Key": house.keys["ann"], "Authorization": f"Bearer {house.keys['bob']}"}
    assert "2 keys" in (await house.parts.http.get("/jobs", headers=twice)).json()["detail"]


async def test_every_route_says_which_scope_it_needs(house: House) -> None:
    whole: Any = create_app(house.parts.services, AllowedHosts())
    app = whole._app._app
    demands = {}
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            for method in handler.http_methods - {"OPTIONS", "HEAD"}:
                if not route.path.startswith("/schema"):
                    demands[f"{method} {route.path_format}"] = demand(handler, method)
            if (limit := handler.opt.get("limit")) is not None:
                assert Policy.parse("own", limit)
    opened = {name for name, needed in demands.items() if needed == OPEN["scope"]}
    assert opened == {"GET /", "GET /asyncapi.json", "GET /health", "GET /health/live", "GET /health/ready", *PAGE}
    listening = {name.rpartition("/")[2] for name, needed in demands.items() if needed == "listen"}
    assert listening == {"next", "votes", "{side}"}
    assert {name for name, needed in demands.items() if needed == "admin"} == {
        "GET /keys",
        "GET /metrics",
        "POST /keys",
        "DELETE /keys/{key_id}",
        "PATCH /models/active",
    }
    assert set(demands.values()) == {"open", "read", "write", "listen", "admin"}


def test_every_view_belongs_to_owners_or_to_everybody() -> None:
    assert {view.name for view in VIEWS} == {*OWNERS, *SHARED}
    assert not OWNERS.keys() & SHARED


async def test_a_missing_scope_is_named(house: House) -> None:
    refused = await house.ask("cem", "POST", "/prompts", {"text": "rain"})
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    assert "needs write" in refused.json()["detail"]
    for method, path in (("POST", "/keys"), ("GET", "/keys"), ("DELETE", "/keys/x"), ("PATCH", "/models/active")):
        assert "needs admin" in (await house.ask("ann", method, path, {})).json()["detail"], path
    write_only = await house.make("dan", "write")
    refused = await house.parts.http.get("/jobs", headers={"X-API-Key": write_only})
    assert (refused.status_code, "needs read" in refused.json()["detail"]) == (403, True)


async def test_owners_see_their_own_alone(house: House) -> None:
    made = await house.ask("ann", "POST", "/generate", {"prompt": "rain"}, **{"Idempotency-Key": "one"})
    job_id = made.json()["job_id"]
    job = (await house.ask("ann", "GET", f"/jobs/{job_id}")).json()
    assert job["user_id"] == "ann"
    for path in (
        f"/jobs/{job_id}",
        f"/jobs/{job_id}/events",
        f"/jobs/{job_id}/feedback",
        f"/prompts/{job['prompt_id']}",
    ):
        assert (await house.ask("bob", "GET", path)).status_code == 404, path
        assert (await house.ask("ops", "GET", path.removesuffix("/events"))).status_code == 200, path
    for method, path in (("DELETE", f"/jobs/{job_id}"), ("DELETE", f"/generate/{job_id}")):
        assert (await house.ask("bob", method, path)).status_code == 404, path
    assert (await house.ask("bob", "POST", f"/jobs/{job_id}/rerun", {})).status_code == 404
    assert (await house.ask("bob", "POST", "/generate", {"prompt_id": job["prompt_id"]})).status_code == 404
    mine = await house.ask("bob", "POST", "/generate", {"prompt": "rain"}, **{"Idempotency-Key": "one"})
    assert mine.json()["job_id"] != job_id
    for owner, total in (("ann", 1), ("bob", 1), ("cem", 0), ("ops", 2)):
        for path in ("/jobs", "/jobs?status=queued", "/prompts"):
            page = (await house.ask(owner, "GET", path)).json()
            assert (page["total"], len(page["items"])) == (total, total), (owner, path)
        assert (await house.ask(owner, "GET", "/jobs/stats")).json()["counts"].get("queued", 0) == total
    assert (await house.ask("ops", "GET", "/jobs?user_id=ann")).json()["total"] == 1
    assert (await house.ask("bob", "GET", "/jobs?user_id=ann")).json()["total"] == 0


async def test_samples_and_what_is_said_of_them_are_their_owners(house: House) -> None:
    async with house.parts.working(ScriptedEngine()):
        await house.parts.submit("j1", user_id="ann", seeds=[1])
        job = await house.parts.when("j1", "completed")
    sample = job.samples[0].event.sample_id
    for path in (f"/audio/{sample}", f"/audio/{sample}/stream", f"/audio/{sample}/waveform", "/jobs/j1/audio.zip"):
        answers = [(await house.ask(owner, "GET", path)).status_code for owner in ("ann", "ops", "bob")]
        assert answers == [200, 200, 404], path
    said = {"audio_id": sample, "rating": 4, "tags": ["calm"]}
    assert (await house.ask("bob", "POST", "/feedback", said)).status_code == 404
    continued = {"prompt": "x", "continue_from": sample}
    assert (await house.ask("bob", "POST", "/generate", continued)).status_code == 404
    given = await house.ask("ann", "POST", "/feedback", said)
    assert (given.status_code, given.json()["user_id"]) == (201, "ann")
    for owner, count in (("ann", 1), ("ops", 1), ("bob", 0)):
        assert (await house.ask(owner, "GET", "/feedback")).json()["total"] == count
        for query in ("", "?group_by=tag", "?group_by=user", "?tag=calm", f"?audio_id={sample}", "?user_id=ann"):
            stats = (await house.ask(owner, "GET", f"/feedback/stats{query}")).json()
            assert (stats["count"], bool(stats["groups"])) == (count, count > 0 and "group_by" in query), (owner, query)
    place = f"/feedback/{given.json()['id']}"
    assert (await house.ask("bob", "PUT", place, {"rating": 1})).status_code == 404
    assert (await house.ask("bob", "DELETE", place)).status_code == 404
    assert (await house.ask("ops", "PUT", place, {"rating": 1})).json()["user_id"] == "ann"
    assert (await house.ask("ann", "DELETE", place)).status_code == 204


async def test_what_nobody_owns_is_for_admins_alone(house: House) -> None:
    await house.parts.submit("j1")
    await house.parts.job("j1")
    key = {"X-API-Key": await house.make("None", "read")}
    for path in ("/jobs", "/jobs?status=queued"):
        assert (await house.parts.http.get(path, headers=key)).json()["total"] == 0
        assert (await house.ask("ops", "GET", path)).json()["total"] == 1
    assert (await house.parts.http.get("/jobs/j1", headers=key)).status_code == 404


async def test_nobody_acts_in_the_name_of_another(house: House) -> None:
    tests = {"name": "x", "prompts": ["rain"]}
    for path, body in (
        ("/generate", {"prompt": "x"}),
        ("/prompts", {"text": "x"}),
        ("/ab-tests", tests),
        ("/datasets", {"name": "d", "type": "supervised"}),
    ):
        refused = await house.ask("bob", "POST", path, {**body, "user_id": "ann"})
        assert (refused.status_code, refused.json()["code"]) == (403, "other_owner"), path
    named = await house.ask("ops", "POST", "/generate", {"prompt": "x", "user_id": "ann"})
    assert (await house.ask("ann", "GET", f"/jobs/{named.json()['job_id']}")).status_code == 200
    filters = {"name": "d", "type": "supervised", "filter_query": {"user_ids": ["ann"]}}
    assert (await house.ask("bob", "POST", "/datasets", filters)).status_code == 403
    built = await house.ask("bob", "POST", "/datasets", {"name": "d", "type": "supervised"})
    assert built.json()["filter_query"]["user_ids"] == ["bob"]


async def test_a_voter_has_one_test_and_one_name(house: House) -> None:
    first, second = [
        (await house.ask("ann", "POST", "/ab-tests", {"name": "t", "prompts": ["rain"]})).json()["id"] for _ in range(2)
    ]
    key = {"X-API-Key": await house.make("vera", "listen", ab_test_id=first)}
    http = house.parts.http
    pending = await http.get(f"/ab-tests/{first}/next?voter=vera", headers=key)
    assert (pending.status_code, "generating" in pending.json()["detail"]) == (409, True)
    other = await http.get(f"/ab-tests/{first}/next?voter=ann", headers=key)
    assert (other.status_code, other.json()["code"]) == (403, "other_voter")
    elsewhere = await http.get(f"/ab-tests/{second}/next?voter=vera", headers=key)
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (403, "other_test")
    for path in ("/jobs", f"/ab-tests/{first}", f"/ab-tests/{first}/results", "/keys"):
        assert (await http.get(path, headers=key)).json()["code"] == "missing_scope", path
    refused = await house.ask("ops", "POST", "/keys", {"owner": "v", "scopes": ["read"], "ab_test_id": first})
    assert (refused.status_code, "listen alone" in refused.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"owner": "a:b"}, "/owner"),
        ({"owner": "local"}, "/owner"),
        ({"owner": "x" * 201}, "/owner"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["root"]}, "/scopes/0"),
        ({"label": "\x00"}, "/label"),
        ({"expires_at": "tomorrow"}, "/expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
    ],
)
async def test_requests_for_keys_are_held_to_bounds(house: House, fields: dict[str, Any], pointer: str) -> None:
    refused = await house.ask("ops", "POST", "/keys", {"owner": "x", "scopes": ["read"], **fields})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, pointer), refused.text


async def test_another_process_knows_of_keys_at_once_after_a_start(house: House) -> None:
    async with open_parts(house.parts.folder, SqliteStore, is_folded=False) as other:
        await other.services.tail.begun()
        assert (await other.http.get("/jobs/x")).status_code == 401
        key_id, _ = parts_of(house.keys["ann"])
        sent = {"X-API-Key": house.keys["ann"]}
        assert (await other.http.get("/jobs/x", headers=sent)).status_code == 404
        await house.ask("ops", "DELETE", f"/keys/{key_id}")

        async def refused() -> bool:
            return (await other.http.get("/jobs/x", headers=sent)).status_code == 401

        await eventually(refused)


async def test_streams_end_with_their_key(house: House) -> None:
    await house.parts.submit("j1", user_id="ann")
    await house.parts.job("j1")

    async def follow(key: str) -> list[str]:
        scope, sent = _scope("/jobs/j1/events", key), list[dict[str, Any]]()
        asked = asyncio.Event()

        async def receive() -> Any:
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body"):
                begun.set()

        begun = asyncio.Event()
        app: Any = create_app(house.parts.services, AllowedHosts(frozenset({"studio"})))
        running = asyncio.create_task(app(scope, receive, send))
        async with asyncio.timeout(30):
            await begun.wait()
            await house.ask("ops", "DELETE", f"/keys/{parts_of(key)[0]}")
            await running
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        return [message["type"] for message in sent]

    assert (await follow(house.keys["ann"]))[0] == "http.response.start"
    assert not house.parts.services.feed._listeners


async def test_a_file_that_is_being_sent_ends_with_its_connection(house: House) -> None:
    """A key is revoked while the client still reads; of an expired one the same is true."""
    keys, heard, cut = house.parts.services.feed.keys, list[str](), asyncio.Event()
    begun = asyncio.Event()

    async def file(scope: Any, receive: Any, send: Any) -> None:
        scope["state"][CALLER] = keys.caller(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await receive()
        begun.set()
        heard.append((await receive())["type"])

    async def send(message: Any) -> None:
        heard.append(message["type"])

    for end in ("revoked", "expired"):
        soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
        key = await house.make("dan", "read", **({"expires_at": soon} if end == "expired" else {}))
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive(messages: Any = messages) -> Any:
            if (message := next(messages, None)) is None:
                await asyncio.Event().wait()
            return message

        heard.clear()
        cut.clear()
        begun.clear()
        scope = {**_scope("/audio/x/stream", key), "extensions": {ABORT: cut.set}}
        entrance: Any = Entrance(cast("Any", file), house.parts.services, AllowedHosts(frozenset({"studio"})))
        running = asyncio.create_task(entrance(scope, receive, send))
        async with asyncio.timeout(30):
            await begun.wait()
            if end == "revoked":
                await house.ask("ops", "DELETE", f"/keys/{parts_of(key)[0]}")
            await cut.wait()
            await running
        assert heard == ["http.response.start", "http.disconnect"], end
    gone = await house.parts.http.get("/jobs", headers={"X-API-Key": key})
    assert (gone.status_code, "expired at" in gone.json()["detail"]) == (401, True)


def _scope(path: str, key: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "server": ("studio", 80),
        "headers": [(b"host", b"studio"), (b"x-api-key", key.encode())],
        "state": {},
    }


async def test_an_owner_has_a_quota_of_open_jobs(house: House) -> None:
    services = house.parts.services
    house.parts.services.quota.__init__(house.parts.store, services.folded, 3)  # type: ignore[misc]
    asked = [house.ask("ann", "POST", "/generate", {"prompt": "x"}, **{"Idempotency-Key": f"k{n}"}) for n in range(6)]
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 3
    full = next(answer for answer in answers if answer.status_code == 429)
    assert (full.json()["code"], "the limit is 3" in full.json()["detail"]) == ("queue_full", True)
    assert int(full.headers["Retry-After"]) > 0
    number = next(n for n, answer in enumerate(answers) if answer.status_code == 202)
    again = await house.ask("ann", "POST", "/generate", {"prompt": "x"}, **{"Idempotency-Key": f"k{number}"})
    assert again.json()["job_id"] == answers[number].json()["job_id"]
    assert (await house.ask("bob", "POST", "/generate", {"prompt": "x"})).status_code == 202
    pairs = {"name": "t", "prompts": ["rain"], "pairs_per_prompt": 2}
    assert (await house.ask("bob", "POST", "/ab-tests", pairs)).json()["code"] == "queue_full"
    assert isinstance(services.quota, Quota)
