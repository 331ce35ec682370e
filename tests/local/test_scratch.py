"""A folder for temporary files that cannot be used is the machine's fault: what needs it waits until it is mended."""

import asyncio
import shutil
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from domain.contract.datasets import BUILT, CREATED
from domain.datasets import DATASETS, Dataset
from domain.errors import UnavailableError
from domain.events import Erased
from domain.events.datasets import DatasetStarted
from domain.models import NANO
from domain.ports import View
from domain.trainings import TRAININGS, Training
from tests.conditions import eventually
from tests.hub import COMMIT
from tests.local import test_trainings
from tests.local.parts import Parts, stop
from tests.local.test_datasets import builder, built, create, exported, reactions, said, settled, song
from tests.local.test_training import SMALL, write_pairs
from workers.dataset_archive import Archive
from workers.engines.checkpoints import resolve
from workers.scratch import LEAST_FREE, check, scratch

D = TypeVar("D", Dataset, Training)


@pytest.fixture
def broken(parts: Parts) -> Path:
    """A file where the folder is to be."""
    file = parts.folder / "scratch"
    file.write_text("in the way")
    return file


async def given_back(parts: Parts, view: View[D], ident: str) -> D:
    async def found() -> D | None:
        thing: Any = (await parts.store.get(view, [ident])).get(ident)
        return thing if thing and thing.error and thing.status == "queued" else None

    thing = await eventually(found, 900)
    assert thing is not None
    return thing


async def test_a_dataset_is_given_back_by_a_builder_that_has_no_scratch_and_built_when_it_has(
    parts: Parts, broken: Path
) -> None:
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await create(parts)).json()["id"]
    running = builder(parts)

    waiting = await given_back(parts, DATASETS, ident)
    assert (waiting.status, waiting.failures) == ("queued", 0)
    assert f"The worker is broken: {broken} cannot be written to" in (waiting.error or "")
    broken.unlink()  # noqa: ASYNC240
    body = await settled(parts, ident)
    assert (body["status"], body["sample_count"]) == ("built", 1)
    await stop(running)


async def test_a_builder_that_never_has_scratch_gives_up_and_the_dataset_stays(parts: Parts, broken: Path) -> None:
    ident = (await create(parts)).json()["id"]
    with pytest.raises(ExceptionGroup) as caught:
        await builder(parts)
    assert f"gave up after 6 tries to work again: {broken} cannot be written to" in str(caught.value.exceptions[0])
    await parts.host.caught_up(10)
    assert (await parts.store.get(DATASETS, [ident]))[ident].status == "queued"


async def test_a_builder_whose_scratch_is_full_only_while_it_builds_gives_up_as_well(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is gone when it looks for room."""
    monkeypatch.setattr(
        "workers.dataset_replay.TABLES", ("PRAGMA max_page_count = 2", *(f"CREATE TABLE t{n} (x)" for n in range(9)))
    )
    ident = (await create(parts)).json()["id"]
    with pytest.raises(ExceptionGroup) as caught:
        await builder(parts)
    assert "database or disk is full" in str(caught.value.exceptions[0])
    await parts.host.caught_up(10)
    waiting = (await parts.store.get(DATASETS, [ident]))[ident]
    assert (waiting.status, waiting.failures) == ("queued", 0)


async def test_exports_and_erasures_wait_for_scratch(parts: Parts, broken: Path) -> None:
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0), said("f2", "job-1", rating=4.0))
    broken.unlink()  # noqa: ASYNC240
    building = builder(parts)
    ident = (await built(parts))["id"]
    await stop(building)
    broken.rmdir()  # noqa: ASYNC240
    broken.write_text("in the way")  # noqa: ASYNC240
    reacting = asyncio.create_task(reactions(parts).run())
    await parts.journal.append(Erased(key="f2", topic="feedback"))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await exported(parts, ident, "supervised")
    body = (await parts.http.get(f"/datasets/{ident}")).json()
    assert body["exports"]["supervised"]["status"] == "requested"
    broken.unlink()  # noqa: ASYNC240

    async def is_named() -> bool:
        found = (await parts.http.get(f"/datasets/{ident}")).json()
        return bool(found["erased_since"]["count"] == 1)

    await eventually(is_named)
    export = await exported(parts, ident, "supervised")
    assert (export["status"], export["rows"]) == ("exported", 1)
    await stop(reacting)


async def dataset_of_one(parts: Parts) -> str:
    """The id of one that is built."""
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0))
    building = builder(parts)
    dataset = str((await built(parts))["id"])
    await stop(building)
    return dataset


async def test_a_training_is_given_back_by_a_trainer_that_has_no_scratch(parts: Parts) -> None:
    dataset = await dataset_of_one(parts)
    (parts.folder / "trainer0").write_text("in the way")
    asked = {"dataset_id": dataset, "method": "sft", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    ident = (await parts.http.post("/trainings", json=asked)).json()["training_id"]
    async with test_trainings.trainers(parts):
        waiting = await given_back(parts, TRAININGS, ident)
    assert (waiting.status, waiting.failures) == ("queued", 0)
    assert "trainer0 cannot be written to" in (waiting.error or "")


async def test_a_training_is_given_back_by_a_trainer_whose_disk_holds_no_copy_of_its_dataset(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = await dataset_of_one(parts)
    monkeypatch.setattr(
        "workers.dataset_archive.TABLES", ("PRAGMA max_page_count = 2", *(f"CREATE TABLE t{n} (x)" for n in range(9)))
    )
    asked = {"dataset_id": dataset, "method": "sft", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    ident = (await parts.http.post("/trainings", json=asked)).json()["training_id"]
    async with test_trainings.trainers(parts):
        waiting = await given_back(parts, TRAININGS, ident)
    assert (waiting.status, waiting.failures) == ("queued", 0)
    assert "The worker is broken: " in (waiting.error or "")
    assert "database or disk is full" in (waiting.error or "")


async def test_a_disk_that_fills_while_a_training_runs_costs_it_no_attempt(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that trains may write files of 200 kB at most, and a checkpoint has more."""
    data = write_pairs(tmp_path / "data")
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -f 400\ntrap "" XFSZ\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(limited))
    asked = {"dataset_id": "d1", "method": "sft", "adapter_name": "jazz", "adapter_version": "1.0.0"}
    await parts.journal.append(
        replace(CREATED, dataset_id="d1", kind="preference", request_digest=None),
        DatasetStarted(dataset_id="d1", attempt=1, worker_id="gone"),
        replace(BUILT, dataset_id="d1", items="datasets/d1/list.jsonl"),
    )
    assert await parts.host.caught_up(10)
    answer = await parts.http.post("/trainings", json=asked | {"config": {**SMALL, "rank": 64}})
    assert answer.status_code == 202, answer.text
    async with test_trainings.trainers(parts, data, checkpoint_seconds=0.0):
        waiting = await given_back(parts, TRAININGS, answer.json()["training_id"])
    assert (waiting.status, waiting.failures) == ("queued", 0)
    assert "File too large" in (waiting.error or "")


async def test_a_base_model_that_cannot_be_loaded_costs_a_training_no_attempt(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the hub whose weights are damaged on this machine."""
    name = "facebook/musicgen-small"
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(resolve(NANO.id).folder or "", folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    data = write_pairs(tmp_path / "data", model=name)
    asked = {"dataset_id": "d1", "method": "sft", "adapter_name": "jazz", "adapter_version": "1.0.0", "config": SMALL}
    await parts.journal.append(
        replace(CREATED, dataset_id="d1", kind="preference", request_digest=None),
        DatasetStarted(dataset_id="d1", attempt=1, worker_id="gone"),
        replace(BUILT, dataset_id="d1", items="datasets/d1/list.jsonl"),
    )
    assert await parts.host.caught_up(10)
    ident = (await parts.http.post("/trainings", json=asked)).json()["training_id"]
    async with test_trainings.trainers(parts, data):
        waiting = await given_back(parts, TRAININGS, ident)
    assert (waiting.status, waiting.failures) == ("queued", 0)
    assert f"The worker is broken: Model {name} cannot be loaded" in (waiting.error or "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_unavailable_and_a_mistake_is_not(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No space left on device"), scratch(tmp_path):
        Path("/dev/full").write_bytes(b"x")
    database = sqlite3.connect(tmp_path / "file")
    database.execute("PRAGMA max_page_count = 1")
    with (
        pytest.raises(UnavailableError, match=f"{tmp_path} cannot be written to: .*full.* Make room"),
        scratch(tmp_path),
    ):
        database.execute("CREATE TABLE one (x)")
    with pytest.raises(sqlite3.OperationalError, match="no such table"), scratch(tmp_path):
        database.execute("SELECT * FROM absent")
    database.close()
    with pytest.raises(TimeoutError), scratch(tmp_path):
        raise TimeoutError


def test_a_disk_with_little_room_is_refused_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path / "made")
    check(None)
    monkeypatch.setattr("workers.scratch.LEAST_FREE", 2**62)
    with pytest.raises(UnavailableError, match=f"bytes left and needs {2**62:,}. Make room there"):
        check(tmp_path)
    assert LEAST_FREE < 2**62


async def test_an_archive_that_cannot_be_opened_leaves_no_file_open(parts: Parts, broken: Path) -> None:
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await create(parts)).json()["id"]
    await parts.host.caught_up(10)
    dataset = (await parts.store.get(DATASETS, [ident]))[ident]
    export: object = None
    with (
        pytest.raises(UnavailableError, match="cannot be written to"),
        Archive(parts.objects, dataset, export, broken),  # type: ignore[arg-type]  # it is not looked at
    ):
        pass
