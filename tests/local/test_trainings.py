"""Trainings through a whole studio: asked for over HTTP, carried out by a trainer, ended by an adapter."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from domain.adapters import ADAPTERS, adapter_id
from domain.errors import DamagedError, NotFoundError
from domain.events.trainings import TrainingRequested
from domain.trainings import TRAININGS, Training, folder
from tests.conditions import eventually
from tests.local.parts import Parts, stop
from tests.local.test_training import SMALL, write_contradictions, write_pairs
from workers import trainings
from workers.training.folders import StoredDatasets, unpack

LEASE = 1.0


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("packed")
    written = write_pairs(place / "data")
    with zipfile.ZipFile(place / "data.zip", "w") as archive:
        for path in sorted(written.rglob("*")):
            archive.write(path, path.relative_to(written))
    return (place / "data.zip").read_bytes()


@contextlib.asynccontextmanager
async def trainers(parts: Parts, count: int = 1, **options: Any) -> AsyncIterator[list["asyncio.Task[None]"]]:
    found = {"lease": LEASE, "backoff": 0.05, "device": "cpu", **options}
    tasks = [
        asyncio.create_task(
            trainings.worker(
                parts.journal,
                parts.store,
                parts.objects,
                parts.host,
                StoredDatasets(parts.objects),
                place=parts.folder / f"trainer{number}",
                **found,
            ).run()
        )
        for number in range(count)
    ]
    try:
        yield tasks
    finally:
        await stop(*tasks)


async def ask(parts: Parts, **changes: Any) -> str:
    asked = {"dataset_id": "d1", "method": "sft", "adapter_name": "jazz", "adapter_version": "1.0.0", "config": SMALL}
    answer = await parts.http.post("/trainings", json=asked | changes)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/trainings/{answer.json()['training_id']}"
    found: str = answer.json()["training_id"]
    return found


async def when(parts: Parts, id_: str, *statuses: str) -> Training:
    async def reached() -> Training | None:
        await parts.host.caught_up(10)
        training = (await parts.store.get(TRAININGS, [id_])).get(id_)
        return training if training and training.status in statuses else None

    found = await eventually(reached, 120)
    assert found is not None
    return found


async def test_a_training_ends_with_an_adapter_that_tells_where_it_came_from(parts: Parts, packed: bytes) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    id_ = await ask(parts)
    waiting = (await parts.http.get(f"/trainings/{id_}")).json()
    assert (waiting["status"], waiting["progress"], waiting["adapter_id"]) == ("queued", 0.0, None)
    async with trainers(parts):
        await when(parts, id_, "completed", "failed")
    body = (await parts.http.get(f"/trainings/{id_}")).json()
    assert (body["status"], body["error"], body["progress"]) == ("completed", None, 100.0)
    assert body["adapter_id"] == adapter_id("jazz", "1.0.0")
    assert [point["step"] for point in body["curve"]] == [1, 2, 3, 4]
    assert body["metrics"]["held_out_loss"] > 0
    adapter = (await parts.http.get(f"/adapters/{body['adapter_id']}")).json()
    assert adapter["is_active"]
    assert (adapter["training_id"], adapter["training_dataset_id"]) == (id_, "d1")
    assert adapter["training_config"]["method"] == "sft"
    assert adapter["training_config"]["feedback_count"] == 26
    assert json.loads(adapter["training_config"]["dataset_positions"]) == {"feedback/0": 7}
    files = [each["name"] for each in adapter["files"]]
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (await parts.http.get(f"/adapters/{adapter['id']}/files/{name}")).status_code == 200
    assert await parts.objects.list(folder(id_)) == []
    listed = (await parts.http.get("/trainings", params={"dataset_id": "d1", "status": "completed"})).json()
    assert [each["id"] for each in listed["items"]] == [id_]
    assert await parts.history(id_, "trainings") == [
        "training.requested.v1",
        "training.started.v1",
        "training.completed.v1",
    ]


async def test_two_trainings_of_one_name_and_version_make_one_adapter(parts: Parts, packed: bytes) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    first, second = await ask(parts), await ask(parts, config={**SMALL, "seed": 1})
    async with trainers(parts, 2):
        ended = [await when(parts, id_, "completed", "failed") for id_ in (first, second)]
    assert sorted(training.status for training in ended) == ["completed", "failed"]
    [lost] = [training for training in ended if training.status == "failed"]
    assert "another adapter_version" in (lost.error or "")
    adapters = await parts.store.get(ADAPTERS, [adapter_id("jazz", "1.0.0")])
    [kept] = [training for training in ended if training.status == "completed"]
    assert adapters[adapter_id("jazz", "1.0.0")].request.training_id == kept.id
    answer = await parts.http.post(
        "/trainings", json={"dataset_id": "d1", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    )
    assert answer.status_code == 409
    assert "ask for another version" in answer.json()["detail"]


def children() -> list[int]:
    """The processes in which this one has trainings carried out."""
    command = ["/usr/bin/pgrep", "-P", str(os.getpid()), "-f", "workers.training.process"]
    found = subprocess.run(command, capture_output=True, check=False)
    return [int(line) for line in found.stdout.split()]


async def test_a_killed_process_is_taken_up_from_its_checkpoint_with_the_same_curve(
    parts: Parts, packed: bytes
) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    config = {**SMALL, "steps": 12}
    whole, killed = await ask(parts, config=config), await ask(parts, config=config, adapter_version="2.0.0")
    async with trainers(parts, checkpoint_seconds=0.0):
        await when(parts, whole, "completed")

        async def has_checkpoint() -> bool:
            return "training.checkpointed.v1" in await parts.history(killed, "trainings")

        await eventually(has_checkpoint, 60)
        for child in children():
            os.kill(child, signal.SIGKILL)
        ended = await when(parts, killed, "completed", "failed")
    first = await when(parts, whole, "completed")
    assert (ended.status, ended.error) == ("completed", None)
    assert ended.attempt > 1
    assert ended.curve == first.curve
    shas = [
        (await parts.store.get(ADAPTERS, [adapter_id("jazz", version)]))[adapter_id("jazz", version)]
        for version in ("1.0.0", "2.0.0")
    ]
    assert len({adapter.request.training_config["weights_sha256"] for adapter in shas}) == 1


async def test_a_trainer_that_stops_gives_back_and_another_goes_on(parts: Parts, packed: bytes) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    id_ = await ask(parts, config={**SMALL, "steps": 40})
    async with trainers(parts, checkpoint_seconds=0.0) as tasks:

        async def has_checkpoint() -> bool:
            return "training.checkpointed.v1" in await parts.history(id_, "trainings")

        await eventually(has_checkpoint, 60)
        await stop(*tasks)
    given = await when(parts, id_, "queued")
    assert (given.failures, given.checkpoint is not None) == (0, True)
    assert children() == []
    assert given.checkpoint is not None
    assert given.checkpoint.storage_path in [stored.key for stored in await parts.objects.list(folder(id_))]
    async with trainers(parts):
        ended = await when(parts, id_, "completed", "failed")
    assert (ended.status, ended.attempt, len(ended.curve)) == ("completed", 2, 40)


async def test_a_running_training_is_cancelled_and_leaves_nothing(parts: Parts, packed: bytes) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    id_ = await ask(parts, config={**SMALL, "steps": 100_000})
    async with trainers(parts, checkpoint_seconds=0.0):

        async def has_checkpoint() -> bool:
            return "training.checkpointed.v1" in await parts.history(id_, "trainings")

        await eventually(has_checkpoint, 60)
        answer = await parts.http.delete(f"/trainings/{id_}")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        await when(parts, id_, "cancelled")
    assert await parts.objects.list(folder(id_)) == []
    assert children() == []
    again = await parts.http.delete(f"/trainings/{id_}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert await parts.store.get(ADAPTERS, [adapter_id("jazz", "1.0.0")]) == {}


FAULTS: Mapping[str, tuple[str | None, str]] = {
    "no dataset": (None, "There is no export of the dataset 'd1'."),
    "no zip": ("damaged", "cannot be unpacked"),
    "too few pairs": ("few", "needs at least 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_data_that_cannot_be_used_fail_the_training_at_once(fault: str, parts: Parts, tmp_path: Path) -> None:
    content, message = FAULTS[fault]
    if content == "damaged":
        await parts.objects.put("datasets/d1/preference.zip", b"PK\x03\x04 cut")
    elif content == "few":
        written = write_pairs(tmp_path / "few", 3)
        with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
            for path in written.rglob("*"):
                archive.write(path, path.relative_to(written))
        await parts.objects.put("datasets/d1/preference.zip", (tmp_path / "few.zip").read_bytes())
    id_ = await ask(parts)
    async with trainers(parts):
        ended = await when(parts, id_, "completed", "failed")
    assert ended.status == "failed"
    assert message in (ended.error or "")
    assert ended.attempt == 1


async def test_nothing_learnt_completes_without_an_adapter(parts: Parts, tmp_path: Path) -> None:
    written = write_contradictions(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in written.rglob("*"):
            archive.write(path, path.relative_to(written))
    await parts.objects.put("datasets/d1/preference.zip", (tmp_path / "data.zip").read_bytes())
    id_ = await ask(parts, method="taste")
    async with trainers(parts):
        await when(parts, id_, "completed", "failed")
    body = (await parts.http.get(f"/trainings/{id_}")).json()
    assert (body["status"], body["adapter_id"], body["progress"]) == ("completed", None, 100.0)
    assert body["message"].startswith("Nothing learnt")
    assert body["metrics"]["pair_accuracy_chance"] > 0.05


async def test_progress_is_heard_as_it_happens(parts: Parts, packed: bytes) -> None:
    await parts.objects.put("datasets/d1/preference.zip", packed)
    id_ = await ask(parts)
    heard: list[str] = []

    async def listen() -> None:
        async with parts.http.stream("GET", f"/trainings/{id_}/events") as answer:
            lines = [line async for line in answer.aiter_lines()]
        heard.extend(line.removeprefix("event:").strip() for line in lines if line.startswith("event:"))

    async with trainers(parts):
        await listen()
    assert heard[:2] == ["snapshot", "started"]
    assert "progress" in heard
    assert heard[-1] == "completed"


@pytest.mark.parametrize(
    ("changes", "pointer", "said"),
    [
        ({"method": "guess"}, "/method", "guess"),
        ({"adapter_version": "one"}, "/adapter_version", "semantic version"),
        ({"config": {"steps": 0}}, "/config", "steps is 0; it must be 1 to 100000"),
        ({"config": {"colour": 1}}, "/config", "colour"),
        ({"dataset_id": "../d"}, "/dataset_id", "no id"),
    ],
)
async def test_a_bad_request_is_refused_by_name(changes: dict[str, Any], pointer: str, said: str, parts: Parts) -> None:
    asked = {"dataset_id": "d1", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    answer = await parts.http.post("/trainings", json=asked | changes)
    assert answer.status_code in {400, 422}
    problem = answer.json()
    assert said in answer.text
    assert problem["errors"][0]["pointer"] == pointer


async def test_a_retry_under_one_key_is_one_training(parts: Parts) -> None:
    asked = {"dataset_id": "d1", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    ids = {
        (await parts.http.post("/trainings", json=asked, headers={"Idempotency-Key": "k"})).json()["training_id"]
        for _ in range(2)
    }
    assert len(ids) == 1
    other = await parts.http.post("/trainings", json={**asked, "method": "dpo"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    missing = await parts.http.get("/trainings/nothing")
    assert (missing.status_code, missing.json()["detail"]) == (404, "There is no training 'nothing'.")


async def test_a_queued_training_is_cancelled_at_once(parts: Parts) -> None:
    id_ = await ask(parts)
    answer = await parts.http.delete(f"/trainings/{id_}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


async def test_a_training_that_a_stranger_asked_for_fails_and_hurts_nobody(parts: Parts, packed: bytes) -> None:
    """The schema admits any number in a configuration; no route would have."""
    await parts.objects.put("datasets/d1/preference.zip", packed)
    strange = TrainingRequested(
        training_id="t1",
        dataset_id="d1",
        method="sft",
        adapter_name="jazz",
        adapter_version="1.0.0",
        config={"steps": -1e15, "\ud7ff": None},
    )
    await parts.journal.append(strange)
    id_ = await ask(parts, adapter_version="2.0.0")
    async with trainers(parts):
        assert (await when(parts, "t1", "completed", "failed")).status == "failed"
        assert (await when(parts, id_, "completed", "failed")).status == "completed"
    assert (await parts.http.get("/trainings/t1")).status_code == 200


def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with pytest.raises(DamagedError, match="leads out of its folder"):
        unpack(tmp_path / "evil.zip", tmp_path / "folder")
    assert not (tmp_path / "evil.txt").exists()


async def test_a_dataset_that_was_never_exported_is_named(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no export of the dataset 'd9'"):
        await StoredDatasets(parts.objects).open("d9", tmp_path)
