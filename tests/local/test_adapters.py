"""Adapters over HTTP: registered, listed, changed, downloaded."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from domain.adapters import adapter_id
from domain.errors import UnavailableError
from domain.events.adapters import AdapterRegistered
from domain.lora import CONFIG, WEIGHTS
from domain.models import NOISE
from tests import adapter as made
from tests.local.parts import Parts, open_parts

JAZZ = adapter_id("jazz", "1.0.0")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are put."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


async def post(parts: Parts, **fields: Any) -> httpx.Response:
    return await parts.http.post("/adapters", **made.form(**fields))


async def register(parts: Parts, **fields: Any) -> dict[str, Any]:
    answer = await post(parts, **fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def get(parts: Parts, path: str, **params: Any) -> Any:
    answer = await parts.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def records(parts: Parts) -> int:
    return sum((await parts.log.ends("adapters")).values())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_adapter_has_the_documented_fields(parts: Parts) -> None:
    said = {
        "description": "trained on brushes",
        "base_revision": "4c8334b0",
        "training_dataset_id": "d1",
        "training_id": "t1",
        "user_id": "ann",
    }
    entries = {"training_config": {"learning_rate": 0.001, "method": "dpo"}, "metrics": {"held_out_loss": 1.5}}
    answer = await post(parts, **said, **{name: json.dumps(value) for name, value in entries.items()})
    body = answer.json()
    assert answer.status_code == 201, answer.text
    assert {name: body[name] for name in (*said, *entries)} == {**said, **entries}
    assert (body["id"], body["name"], body["version"], body["rank"]) == (JAZZ, "jazz", "1.0.0", 2)
    assert (body["base_model"], body["is_active"]) == (NOISE.id, True)
    listing = "".join(f"{file['sha256']}  {file['name']}\n" for file in body["files"])
    assert body["sha256"] == sha256(listing.encode()).hexdigest()
    assert body["storage_path"] == f"adapters/{body['sha256']}/{JAZZ}"
    assert body["size"] == sum(file["size"] for file in body["files"])
    assert answer.headers["Location"] == f"/adapters/{JAZZ}"
    assert answer.headers["X-Event-Position"] == "adapters/0/0"
    lineage: dict[str, Any] = {"dataset": "d1", "positions": None, "feedback_count": 0, "ab_tests": []}
    assert await get(parts, f"/adapters/{JAZZ}") == {**body, "lineage": lineage}
    assert (await get(parts, "/adapters"))["items"] == [body]


async def test_the_files_come_back_whole_and_in_part(parts: Parts) -> None:
    body = await register(parts)
    path = f"/adapters/{JAZZ}/files"
    stored = made.packed(made.weights())
    answer = await parts.http.get(f"{path}/{WEIGHTS}")
    assert (answer.status_code, answer.content) == (200, stored)
    assert answer.headers["Content-Disposition"] == f'inline; filename="{WEIGHTS}"'
    part = await parts.http.get(f"{path}/{WEIGHTS}", headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, stored[8:16])
    etag = {"If-None-Match": answer.headers["ETag"]}
    assert (await parts.http.get(f"{path}/{WEIGHTS}", headers=etag)).status_code == 304
    config = (await parts.http.get(f"{path}/{CONFIG}")).json()
    assert config == {name: value for name, value in made.config().items() if value is not None}
    assert (await parts.http.get(f"{path}/model.bin")).status_code == 404
    assert (await parts.http.get("/adapters/nobody/files/x")).status_code == 404
    assert (await parts.http.get(f"/adapters/{JAZZ}/files/%2e%2e")).status_code == 404
    await parts.objects.delete(f"{body['storage_path']}/{WEIGHTS}")
    gone = await parts.http.get(f"{path}/{WEIGHTS}")
    assert (gone.status_code, gone.json()["code"]) == (410, "damaged")


async def test_registering_twice_changes_nothing_and_a_version_is_registered_once(parts: Parts) -> None:
    first = await register(parts)
    assert (await register(parts), await records(parts)) == (first, 1)
    other = await post(parts, seed=1)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert "with other files" in other.json()["detail"]
    assert "such as 1.1.0." in other.json()["detail"]
    again = await post(parts, description="warmer")
    assert "with the same files and another description" in again.json()["detail"]
    assert (await register(parts, seed=1, version="1.1.0"))["id"] != first["id"]
    assert await records(parts) == 2
    assert len(files(parts.folder / "objects")) == 4, "none of what was refused"


async def test_of_two_registrations_at_once_one_holds(parts: Parts) -> None:
    answers = await asyncio.gather(*(post(parts, seed=seed) for seed in (1, 2, 1)))
    assert sorted({answer.status_code for answer in answers}) == [201, 409]
    held = await get(parts, f"/adapters/{JAZZ}")
    assert {answer.json()["sha256"] for answer in answers if answer.is_success} == {held["sha256"]}
    assert len(files(parts.folder / "objects")) == 2


async def test_a_registration_that_lost_the_race_removes_its_files(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(parts, name="blues", seed=1)
    template = (await parts.log.read("adapters", 0, 0))[0]
    append = parts.journal.append

    async def raced(*events: Any, event_id: str | None = None) -> Any:
        """Another API process is faster."""
        monkeypatch.undo()
        [event] = events
        winner = AdapterRegistered(**{name: getattr(event, name) for name in AdapterRegistered.__struct_fields__})
        changed = {"rank": 9, "sha256": "0" * 64, "storage_path": f"adapters/{'0' * 64}/{winner.adapter_id}"}
        fields = {name: getattr(winner, name) for name in AdapterRegistered.__struct_fields__}
        await append(AdapterRegistered(**{**fields, **changed}))
        return await append(event, event_id=event_id)

    monkeypatch.setattr(parts.journal, "append", raced)
    answer = await post(parts)
    assert (answer.status_code, template.key != JAZZ) == (409, True)
    assert (await get(parts, f"/adapters/{JAZZ}"))["rank"] == 9
    assert len(files(parts.folder / "objects")) == 2, "those of blues"


async def test_a_registration_that_lost_the_race_leaves_the_files_that_the_winner_has_too(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = parts.journal.append

    async def raced(*events: Any, event_id: str | None = None) -> Any:
        """Another API process registers the same files with another description."""
        monkeypatch.undo()
        [event] = events
        await append(replace(event, description="the winner's"))
        return await append(event, event_id=event_id)

    monkeypatch.setattr(parts.journal, "append", raced)
    assert (await post(parts)).status_code == 409
    body = await get(parts, f"/adapters/{JAZZ}")
    assert body["description"] == "the winner's"
    assert (await parts.http.get(f"/adapters/{JAZZ}/files/{WEIGHTS}")).status_code == 200


async def test_registering_again_puts_back_files_that_were_lost(parts: Parts) -> None:
    body = await register(parts)
    await parts.objects.delete(body["storage_path"])
    path = f"/adapters/{JAZZ}/files/{WEIGHTS}"
    assert (await parts.http.get(path)).status_code == 410
    assert await register(parts) == body
    assert ((await parts.http.get(path)).status_code, await records(parts)) == (200, 1)


async def test_adapters_are_listed_by_every_filter(parts: Parts) -> None:
    one = await register(parts, training_id="t1")
    two = await register(parts, version="1.1.0", training_dataset_id="d1")
    three = await register(parts, name="blues", base_model="local/m@1", config=without_base())
    await parts.http.patch(f"/adapters/{one['id']}", json={"is_active": False})

    async def ids(**filters: Any) -> list[str]:
        page = await get(parts, "/adapters", **filters)
        assert page["total"] == len(page["items"])
        return [item["id"] for item in page["items"]]

    assert await ids() == [three["id"], two["id"], one["id"]]
    assert await ids(name="jazz") == [two["id"], one["id"]]
    assert await ids(name="jazz", is_active=True) == [two["id"]]
    assert await ids(is_active=False) == [one["id"]]
    assert await ids(base_model="local/m@1") == [three["id"]]
    assert await ids(training_id="t1") == [one["id"]]
    assert await ids(training_dataset_id="d1") == [two["id"]]
    page = await get(parts, "/adapters", limit=2)
    after = await get(parts, "/adapters", limit=2, cursor=page["next_cursor"])
    assert [item["id"] for item in (*page["items"], *after["items"])] == await ids()
    assert (await parts.http.get("/adapters?rank=2")).status_code == 400


async def test_an_adapter_is_described_deactivated_and_activated(parts: Parts) -> None:
    await register(parts, description="first")
    path = f"/adapters/{JAZZ}"
    changed = await parts.http.patch(path, json={"description": "warmer", "is_active": False})
    assert (changed.json()["description"], changed.json()["is_active"]) == ("warmer", False)
    assert (await get(parts, path))["description"] == "warmer"
    count = await records(parts)
    for same in ({"description": "warmer", "is_active": False}, {}):
        assert (await parts.http.patch(path, json=same)).json() == changed.json()
    assert await records(parts) == count == 3
    assert (await parts.http.patch(path, json={"is_active": True})).json()["is_active"] is True
    for bad in ({"rank": 3}, {"is_active": "yes"}, {"description": "x" * 4_001}, {"description": "a\x1bb"}):
        assert (await parts.http.patch(path, json=bad)).status_code == 400, bad
    missing = await parts.http.patch("/adapters/nobody", json={"is_active": True})
    assert (missing.status_code, missing.json()["detail"]) == (404, "There is no adapter 'nobody'.")


async def test_a_stored_folder_is_registered_by_its_name(parts: Parts) -> None:
    await parts.objects.put(f"uploads/jazz/{WEIGHTS}", made.packed(made.weights()))
    asked = {"name": "jazz", "version": "1.0.0", "storage_path": "uploads/jazz", "metrics": {"loss": 1}}
    half = await parts.http.post("/adapters", json=asked)
    assert (half.status_code, half.json()["errors"][0]["pointer"]) == (400, "/storage_path")
    await parts.objects.put(f"uploads/jazz/{CONFIG}", json.dumps(made.config()).encode())
    stored = await parts.http.post("/adapters", json=asked)
    assert stored.status_code == 201, stored.text
    assert stored.json()["sha256"] == (await register(parts, name="uploaded"))["sha256"]
    again = {**asked, "version": "1.0.1", "storage_path": stored.json()["storage_path"]}
    assert (await parts.http.post("/adapters", json=again)).status_code == 201


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"storage_path": "secrets"}, "/storage_path"),
        ({"storage_path": "uploads/../secrets"}, "/storage_path"),
        ({"storage_path": "samples/j1"}, "/storage_path"),
        ({"storage_path": 5}, "/storage_path"),
        ({"name": "a b"}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"version": "1.0"}, "/version"),
        ({"version": "01.0.0"}, "/version"),
        ({"version": None}, "/version"),
        ({"colour": "red"}, ""),
        ({"metrics": {"loss": 1e16}}, "/metrics"),
        ({"metrics": {str(number): 1 for number in range(101)}}, "/metrics"),
        ({"training_config": {"x": [1]}}, "/training_config"),
        ({"training_id": "no id"}, "/training_id"),
        ({"base_model": ""}, "/base_model"),
    ],
)
async def test_what_is_said_of_an_adapter_is_held_to_its_bounds(
    parts: Parts, changed: dict[str, Any], pointer: str
) -> None:
    answer = await parts.http.post(
        "/adapters", json={"name": "jazz", "version": "1.0.0", "storage_path": "uploads/jazz", **changed}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert await records(parts) == 0


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"weights": b"PK\3\4" + b"\0" * 100}, 400, "a ZIP archive, as torch.save writes"),
        ({"weights": b"\x80\2ctorch\n"}, 400, "a pickle, which can run programs"),
        ({"weights": b""}, 400, "has 0 bytes"),
        ({"weights": made.packed(made.weights())[:-4]}, 400, "it is cut. Send it again."),
        ({"weights": made.packed(made.weights(rank=3))}, 400, "has the shape [3, 64]; by the rank in adapter_config"),
        ({"config": b"{"}, 400, "adapter_config.json cannot be read"),
        ({"config": b"[" * 3_000}, 400, "adapter_config.json cannot be read"),
        ({"config": b" " * 100_001}, 413, "The field config is over its limit of 100,000 bytes."),
        ({"config": json.dumps(made.config(use_dora=True)).encode()}, 400, "'use_dora' of True, which the studio"),
        (
            {"base_model": "facebook/musicgen-small"},
            400,
            f"but adapter_config.json names {NOISE.id}. Leave it out, or send that name.",
        ),
        ({"metrics": "{"}, 400, "metrics is no JSON"),
        ({"colour": "red"}, 400, "contains unknown field `colour`"),
        ({"description": "x" * 100_001}, 413, "The field description is over its limit"),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(
    parts: Parts, temporary: Path, fields: dict[str, Any], status: int, words: str
) -> None:
    answer = await post(parts, **fields)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert not files(temporary)
    assert not files(parts.folder / "objects")
    assert await records(parts) == 0


async def test_a_form_that_is_none_is_refused(parts: Parts) -> None:
    kinds = {"multipart/form-data": 400, "multipart/form-data; boundary=x": 400, "text/plain": 415, "": 415}
    for kind, status in kinds.items():
        answer = await parts.http.post("/adapters", content=b"--y\r\n", headers={"Content-Type": kind})
        assert answer.status_code == status, kind
    announced = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "600000000"}
    answer = await parts.http.post("/adapters", content=b"--x\r\n", headers=announced)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    lacking = await parts.http.post("/adapters", data={"name": "jazz"}, files={"config": b"{}"})
    assert lacking.json()["detail"] == f"weights is missing; send {WEIGHTS} as the form's field weights."
    twice = await parts.http.post("/adapters", files=[("config", b"{}"), ("config", b"{}")])
    assert "twice; send each field once" in twice.json()["detail"]


@pytest.mark.parametrize(
    "raw", [b"", b"\x13\xe0", b"{", b'{"name": 1e999}', b'{"name": "\xff"}', b"[" * 3_000, b"null"]
)
async def test_json_that_is_none_is_refused(parts: Parts, raw: bytes) -> None:
    answer = await parts.http.post("/adapters", content=raw, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json"), answer.text
    assert answer.json()["detail"]


async def test_a_store_that_is_away_answers_503_and_registers_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise UnavailableError("The object store does not answer.")

    monkeypatch.setattr(parts.objects, "put", away)
    answer = await post(parts)
    assert (answer.status_code, await records(parts)) == (503, 0)
    monkeypatch.undo()
    await register(parts)


def without_base() -> bytes:
    return json.dumps(made.config(base_model_name_or_path="/home/ann/model")).encode()


async def test_a_restart_knows_what_was_registered(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        await register(parts)
        before = await get(parts, f"/adapters/{JAZZ}")
    async with open_parts(tmp_path) as parts:
        assert await get(parts, f"/adapters/{JAZZ}") == before
