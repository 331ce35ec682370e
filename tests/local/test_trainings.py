"""Trainings through a whole studio: asked for over HTTP, carried out by a trainer, ended by an adapter."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import soundfile
from msgspec.structs import replace

from commands.adapters import register
from commands.waiting import StoredViews
from domain.adapters import ADAPTERS, adapter_id
from domain.contract.datasets import BUILT, CREATED
from domain.datasets import DATASETS
from domain.envelope import decode
from domain.errors import DamagedError, NotFoundError
from domain.events.datasets import DatasetStarted
from domain.events.progress import TOPIC as PROGRESS
from domain.events.progress import TrainingProgressed
from domain.events.trainings import TrainingRequested
from domain.models import NOISE
from domain.trainings import TRAININGS, Training, folder
from infra.backup import back_up
from tests import audit
from tests.conditions import eventually
from tests.local.parts import Parts, stop
from tests.local.test_datasets import builder, built, flac_of, said, song
from tests.local.test_training import SMALL, sound, write_contradictions, write_pairs
from workers import trainings
from workers.dataset_folder import BuiltDatasets
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import resolve
from workers.engines.loading import load
from workers.scratch import sweep
from workers.training import process

LEASE = 1.0
# Without an evaluation nothing ends it early.
ENDLESS = {**SMALL, "steps": 100_000, "evaluate_every": 100_000}
# Of clips that several of these trainings read.
CODES = TemporaryDirectory()


class Folders:
    """Datasets that are folders already; an error in the place of one is raised."""

    def __init__(self, found: Path | Exception) -> None:
        self._found = found

    async def open(self, dataset_id: str, place: Path) -> Path:  # noqa: ARG002
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture
async def parts(parts: Parts) -> Parts:
    """With a dataset of pairs, d1, and one of single samples, d2."""
    for id_, kind in (("d1", "preference"), ("d2", "supervised")):
        await parts.journal.append(
            replace(CREATED, dataset_id=id_, kind=kind, request_digest=None),
            DatasetStarted(dataset_id=id_, attempt=1, worker_id="gone"),
            replace(BUILT, dataset_id=id_, items=f"datasets/{id_}/list.jsonl"),
        )
    await parts.host.caught_up(10)
    return parts


def relative(folder: Path) -> Path:
    """As a data folder is by default; the process that trains has another working directory."""
    return Path(os.path.relpath(folder))


@contextlib.asynccontextmanager
async def trainers(
    parts: Parts, data: trainings.Datasets | Path | Exception | None = None, count: int = 1, **options: Any
) -> AsyncIterator[list["asyncio.Task[None]"]]:
    for number in range(count):
        # Encoding the clips is half of a short training.
        with contextlib.suppress(FileExistsError):
            place = parts.folder / f"trainer{number}"
            place.mkdir(exist_ok=True)
            (place / "codes").symlink_to(CODES.name)
    found = {"lease": LEASE, "backoff": 0.05, "device": "cpu", **options}
    datasets = Folders(data) if isinstance(data, Path | Exception) else data
    datasets = datasets or BuiltDatasets(parts.store, parts.objects)
    tasks = [
        asyncio.create_task(
            trainings.worker(
                parts.journal,
                parts.store,
                parts.objects,
                datasets,
                partial(register, parts.journal, StoredViews(parts.store, parts.host)),
                folded=parts.host,
                place=relative(parts.folder / f"trainer{number}"),
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

    found = await eventually(reached, 900)
    assert found is not None
    return found


async def check_samples(parts: Parts, body: dict[str, Any]) -> None:
    """Both clips of two held-out prompts are there, in a backup too, and nothing else of the training is."""
    id_, kept = body["id"], []
    urls = [sample[f"{side}_url"] for sample in body["samples"] for side in ("before", "after")]
    assert urls == [f"/trainings/{id_}/samples/{n}-{side}.flac" for n in (1, 2) for side in ("before", "after")]
    for number, url in enumerate(urls):
        sample = body["samples"][number // 2]
        assert sample["is_held_out"]
        answer = await parts.http.get(url)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/flac")
        assert soundfile.info(BytesIO(answer.content)).duration == pytest.approx(sample["duration_seconds"], abs=0.1)
        kept.append(f"{folder(id_)}/samples/1/{sha256(answer.content).hexdigest()}.flac")
    assert sorted(stored.key for stored in await parts.objects.list(folder(id_))) == sorted(set(kept))
    assert len(set(kept)) == 4
    unknown = await parts.http.get(f"/trainings/{id_}/samples/3-before.flac")
    assert unknown.status_code == 404
    copy = parts.folder / "copy"
    await asyncio.to_thread(back_up, parts.folder, copy, parts.journal.now(), lambda *_: None)
    assert all((copy / "objects" / key).is_file() for key in kept)
    await parts.objects.delete(kept[0])
    assert (await parts.http.get(urls[0])).status_code == 410
    assert (await parts.http.get(urls[1])).status_code == 200


async def test_a_training_ends_with_an_adapter_that_tells_where_it_came_from(parts: Parts, data: Path) -> None:
    id_ = await ask(parts, config={**SMALL, "samples": 2})
    waiting = (await parts.http.get(f"/trainings/{id_}")).json()
    assert (waiting["status"], waiting["progress"], waiting["adapter_id"]) == ("queued", 0.0, None)
    assert waiting["samples"] == []
    async with trainers(parts, data):
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
    assert adapter["training_config"]["dataset_rows"] == 26
    assert json.loads(adapter["training_config"]["dataset_positions"]) == {"feedback/0": 7}
    files = [each["name"] for each in adapter["files"]]
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (await parts.http.get(f"/adapters/{adapter['id']}/files/{name}")).status_code == 200
    await check_samples(parts, body)
    listed = (await parts.http.get("/trainings", params={"dataset_id": "d1", "status": "completed"})).json()
    assert [each["id"] for each in listed["items"]] == [id_]
    assert await parts.history(id_, "trainings") == [
        "training.requested.v1",
        "training.started.v1",
        "training.completed.v1",
    ]


async def test_two_trainings_of_one_name_and_version_make_one_adapter(parts: Parts, data: Path) -> None:
    first, second = await ask(parts), await ask(parts, config={**SMALL, "seed": 1})
    async with trainers(parts, data, 2):
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


async def test_a_process_that_does_not_stop_in_time_is_killed_and_the_cancellation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.2)
    order = process.Order(
        method="sft", config=SMALL, data="", output="", cache="", device="cpu", checkpoint_seconds=60.0
    )
    sayings = process.train(order, tmp_path / "order.json")
    listening = asyncio.create_task(anext(sayings))

    async def child() -> list[int]:
        return children()

    [pid] = await eventually(child)
    os.kill(pid, signal.SIGSTOP)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert children() == []


async def test_a_killed_process_is_taken_up_from_its_checkpoint_with_the_same_curve(parts: Parts, data: Path) -> None:
    config = {**SMALL, "steps": 12}
    whole, killed = await ask(parts, config=config), await ask(parts, config=config, adapter_version="2.0.0")
    async with trainers(parts, data, checkpoint_seconds=0.0):
        await when(parts, whole, "completed")

        async def has_checkpoint() -> bool:
            return "training.checkpointed.v1" in await parts.history(killed, "trainings")

        await eventually(has_checkpoint, 900)
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


async def test_a_trainer_that_stops_gives_back_and_another_goes_on(parts: Parts, data: Path) -> None:
    """From where the first was when it was told to stop, long before a checkpoint was due."""
    id_ = await ask(parts, config=ENDLESS)

    async def steps_of(attempt: int) -> list[int]:
        told = [decode(record).event for record in await audit.records(parts.log, PROGRESS.name)]
        return [
            event.step
            for event in told
            if isinstance(event, TrainingProgressed) and event.attempt == attempt and event.stage == "training"
        ]

    async with trainers(parts, data, lease=30.0):
        assert await eventually(partial(steps_of, 1), 900)
    given = await when(parts, id_, "queued")
    assert given.failures == 0
    assert children() == []
    assert given.checkpoint is not None
    assert given.checkpoint.step >= max(await steps_of(1))
    assert [stored.key for stored in await parts.objects.list(folder(id_))] == [given.checkpoint.storage_path]
    async with trainers(parts, data):
        assert min(await eventually(partial(steps_of, 2), 900)) > given.checkpoint.step


async def test_a_running_training_is_cancelled_and_leaves_nothing(parts: Parts, data: Path) -> None:
    id_ = await ask(parts, config=ENDLESS)
    async with trainers(parts, data, checkpoint_seconds=0.0):

        async def has_checkpoint() -> bool:
            return "training.checkpointed.v1" in await parts.history(id_, "trainings")

        await eventually(has_checkpoint, 900)
        answer = await parts.http.delete(f"/trainings/{id_}")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        await when(parts, id_, "cancelled")
    assert await parts.objects.list(folder(id_)) == []
    assert children() == []
    again = await parts.http.delete(f"/trainings/{id_}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert await parts.store.get(ADAPTERS, [adapter_id("jazz", "1.0.0")]) == {}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (NotFoundError("dataset", "d1"), "There is no dataset 'd1'. Build a dataset"),
        (DamagedError("The list is gone."), "The list is gone. Build a dataset"),
        (None, "needs at least 8"),
    ],
)
async def test_data_that_cannot_be_used_fail_the_training_at_once(
    fault: Exception | None, message: str, parts: Parts, tmp_path: Path
) -> None:
    found = write_pairs(tmp_path / "few", 3) if fault is None else fault
    id_ = await ask(parts)
    async with trainers(parts, found):
        ended = await when(parts, id_, "completed", "failed")
    assert ended.status == "failed"
    assert message in (ended.error or "")
    assert ended.attempt == 1


HOLDER = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from workers.scratch import taken

with taken(Path(sys.argv[1])) as own, TemporaryDirectory(dir=own) as name:
    Path(name, "dataset").write_text("unpacked")
    print(name, flush=True)
    sys.stdin.read()
"""


class Swept:
    """No dataset is found, after another trainer has looked for what is left."""

    def __init__(self) -> None:
        self.is_there = False

    async def open(self, dataset_id: str, place: Path) -> Path:
        await asyncio.to_thread(sweep, place.parents[1])
        self.is_there = await asyncio.to_thread(place.is_dir)
        raise NotFoundError("dataset", dataset_id)


async def test_what_a_killed_trainer_left_goes_and_what_belongs_to_another_stays(parts: Parts) -> None:
    place = parts.folder / "trainer0"
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    holders, datasets = [], []
    for _ in range(2):
        holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(place), **pipes)
        assert holder.stdout is not None
        holders.append(holder)
        datasets.append(Path((await holder.stdout.readline()).decode().strip()) / "dataset")
    holders[0].kill()
    await holders[0].wait()
    assert [dataset.exists() for dataset in datasets] == [True, True]
    swept = Swept()
    id_ = await ask(parts)
    async with trainers(parts, swept):
        await when(parts, id_, "failed")
    assert swept.is_there
    assert [dataset.exists() for dataset in datasets] == [False, True]
    await holders[1].communicate(b"")
    assert not list(place.glob("[0-9]/*/*"))


async def test_nothing_learnt_completes_without_an_adapter(parts: Parts, tmp_path: Path) -> None:
    written = write_contradictions(tmp_path / "data")
    id_ = await ask(parts, method="taste")
    async with trainers(parts, written):
        await when(parts, id_, "completed", "failed")
    body = (await parts.http.get(f"/trainings/{id_}")).json()
    assert (body["status"], body["adapter_id"], body["progress"]) == ("completed", None, 100.0)
    assert body["message"].startswith("Nothing learnt")
    assert body["metrics"]["pair_accuracy_chance"] > 0.05


async def test_progress_is_heard_as_it_happens(parts: Parts, data: Path) -> None:
    id_ = await ask(parts)
    heard: list[str] = []

    async def listen() -> None:
        async with parts.http.stream("GET", f"/trainings/{id_}/events") as answer:
            lines = [line async for line in answer.aiter_lines()]
        heard.extend(line.removeprefix("event:").strip() for line in lines if line.startswith("event:"))

    async with trainers(parts, data):
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
        ({"config": {"beta": 5}}, "/config", "beta is a setting of dpo; taste has no use for it."),
        ({"method": "sft", "config": {"kl_target": 0.5}}, "/config", "kl_target is a setting of taste; sft has no use"),
        ({"method": "dpo", "config": {"text_dropout": 0.5}}, "/config", "text_dropout is a setting of taste and sft;"),
        ({"config": {"method": "dpo"}}, "/config", "method is taste, and 'dpo' in the configuration; give it once."),
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


async def test_a_training_that_a_stranger_asked_for_fails_and_hurts_nobody(parts: Parts, data: Path) -> None:
    """The schema admits any number in a configuration; no route would have."""
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
    async with trainers(parts, data):
        assert (await when(parts, "t1", "completed", "failed")).status == "failed"
        assert (await when(parts, id_, "completed", "failed")).status == "completed"
    assert (await parts.http.get("/trainings/t1")).status_code == 200


async def test_a_dataset_is_trained_on_as_soon_as_it_is_built_though_the_views_are_behind(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    save = parts.store.save

    async def slow(*arguments: Any) -> None:
        await asyncio.sleep(0.3)
        await save(*arguments)

    class Looked:
        async def open(self, dataset_id: str, place: Path) -> Path:  # noqa: ARG002
            found = (await parts.store.get(DATASETS, [dataset_id])).get(dataset_id)
            seen.append(found.status if found else None)
            raise NotFoundError("dataset", dataset_id)

    await song(parts, "job", clips=[flac_of(sound(bright=True, seed=1))], samples=1)
    await parts.journal.append(replace(said("f", "job-0"), rating=5.0))
    monkeypatch.setattr(parts.store, "save", slow)
    building = builder(parts)
    async with trainers(parts, Looked()):
        made = await built(parts, name="liked", type="supervised")
        assert (await when(parts, await ask(parts, dataset_id=made["id"]), "completed", "failed")).status == "failed"
    await stop(building)
    assert seen == ["built"]


async def test_a_taste_is_learnt_from_what_listeners_said_and_picks_the_best_of_three(parts: Parts) -> None:
    """From feedback to an adapter, without an export, and to a job that is sung with it by the model itself."""
    for number in range(40):
        sounds = [flac_of(sound(bright=bright, seed=2 * number + bright)) for bright in (True, False)]
        await song(parts, f"job{number}", clips=sounds, prompt_id=f"p{number}", model_id=NOISE.id)
        await parts.journal.append(
            said(f"f{number}", f"job{number}-0", f"job{number}-1", prompt_id=f"p{number}", user_id="ann")
        )
    building = builder(parts)
    made = await built(parts, name="liked", type="preference", held_out=0.3)
    await stop(building)
    assert made["sample_count"] == 40
    id_ = await ask(parts, dataset_id=made["id"], method="taste")
    async with trainers(parts):
        ended = await when(parts, id_, "completed", "failed")
    assert (ended.status, ended.error) == ("completed", None)
    assert ended.metrics["pair_accuracy"] > 0.8
    adapter = (await parts.http.get(f"/adapters/{ended.adapter_id}")).json()
    assert adapter["training_config"]["dataset_digest"] == made["digest"]
    assert adapter["training_config"]["dataset_rows"] == 40
    assert adapter["lineage"]["dataset"] == made["id"]
    assert adapter["lineage"]["positions"] == made["positions"]
    asked = {"prompt": "song 99", "duration": 0.5, "seed": 5, "best_of": 3, "adapter_id": adapter["id"]}
    job_id = (await parts.http.post("/generate", json=asked)).json()["job_id"]
    engine = EngineProcess(load, resolve(NOISE.id), "cpu")
    await engine.start()
    async with parts.working(engine, lease=10.0):
        job = await parts.when(job_id, "completed", "failed", seconds=600)
    await engine.stop()
    assert job.status == "completed", job.error
    [sample_id] = (await parts.http.get(f"/jobs/{job_id}")).json()["sample_ids"]
    best = (await parts.http.get(f"/audio/{sample_id}")).json()
    scores = {score["seed"]: score["preference"] for score in best["scores"]}
    assert (best["picked_by"], [*scores]) == ("preference", [5, 6, 7])
    assert best["generation_params"]["seed"] == max(scores, key=lambda seed: scores[seed])
    assert best["adapter"] == {"name": "jazz", "version": "1.0.0"}


async def test_a_dataset_that_cannot_be_learnt_from_is_refused(parts: Parts) -> None:
    asked = {"adapter_name": "jazz", "adapter_version": "1.0.0"}
    unknown = await parts.http.post("/trainings", json={**asked, "dataset_id": "d9"})
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "There is no dataset 'd9'.")
    single = await parts.http.post("/trainings", json={**asked, "dataset_id": "d2", "method": "dpo"})
    assert (single.status_code, single.json()["errors"][0]["pointer"]) == (400, "/method")
    await parts.journal.append(replace(CREATED, dataset_id="d3", request_digest=None))
    await parts.host.caught_up(10)
    queued = await parts.http.post("/trainings", json={**asked, "dataset_id": "d3"})
    assert queued.status_code == 409
    assert "is queued" in queued.json()["detail"]
    await parts.journal.append(
        DatasetStarted(dataset_id="d3", attempt=1, worker_id="gone"),
        replace(BUILT, dataset_id="d3", items="datasets/d3/list.jsonl", sample_count=0),
    )
    await parts.host.caught_up(10)
    empty = await parts.http.post("/trainings", json={**asked, "dataset_id": "d3"})
    assert empty.status_code == 409
    assert "no items" in empty.json()["detail"]
