"""Backups of a studio on one machine: taken while it runs, whole or none, and checked on the way back."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api.http.sealing import Seals
from domain.errors import ConflictError, NotFoundError
from domain.trials import SECRET, Trial
from infra import backup
from infra.backup import Report
from infra.storage.file_objects import FileObjects
from tests import adapter as made_adapter
from tests.conditions import eventually_sync
from tests.digest import digests
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts
from tests.local.test_cli import text2song
from tests.local.test_jobs import job, submit, when

NOW = "2026-01-31T12:00:00.000000Z"


def back_up(data: Path, target: Path) -> Report:
    return backup.back_up(data, target, NOW, lambda *_: None)


def restore(source: Path, data: Path) -> Report:
    return backup.restore(source, data, lambda *_: None)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
async def made(parts: Parts) -> Parts:
    """A studio with a completed job, a cancelled one and one that waits."""
    async with parts.working(ScriptedEngine()):
        await parts.submit("done")
        await parts.when("done", "completed")
        await parts.submit("gone")
        await parts.when("gone", "completed")
    await parts.http.delete("/jobs/gone")
    await parts.submit("waiting")
    assert await parts.host.caught_up(10)
    return parts


async def test_a_studio_comes_back_as_it_was(made: Parts, tmp_path: Path) -> None:
    before = await digests(made.store)
    melody = (await made.objects.put("melodies/melody-1/melody.flac", b"a tune")).key
    saved = await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    assert saved == Report(made_at=NOW, samples=2, faults=[])
    audio = {f"objects/{name}" for name in files(tmp_path / "objects") if "/done/" in name}
    assert len(audio) == 4
    assert files(tmp_path / "backup").keys() == {"events.db", "backup.json", f"objects/{melody}", *audio}
    assert await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored") == saved
    assert (tmp_path / "restored" / "objects" / melody).read_bytes() == b"a tune"
    async with open_parts(tmp_path / "restored") as restored:
        assert await digests(restored.store) == before
        for sample_id in (await restored.http.get("/jobs/done")).json()["sample_ids"]:
            path = f"/audio/{sample_id}/stream"
            assert (await restored.http.get(path)).content == (await made.http.get(path)).content
        async with restored.working(ScriptedEngine()):
            await restored.when("waiting", "completed")


def test_a_running_studio_is_backed_up_from_the_command_line_and_goes_on(studio: Running, tmp_path: Path) -> None:
    done = when(studio, submit(studio, num_samples=2), "completed")
    busy = submit(studio, num_samples=16, duration=5)
    eventually_sync(lambda: job(studio, busy)["sample_ids"])
    saved = text2song("backup", "copy", "--data", str(studio.data), cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    assert "copy has all events up to 20" in saved.stdout
    studio.http.delete(f"/generate/{busy}")
    put_back = text2song("restore", "copy", "--data", "data", cwd=tmp_path)
    assert put_back.returncode == 0, put_back.stderr
    assert "data has all events up to 20" in put_back.stdout
    for path in (tmp_path / "data" / "objects" / "samples" / done["id"]).rglob("*.*"):
        assert path.read_bytes() == (studio.data / path.relative_to(tmp_path / "data")).read_bytes()

    async def compare() -> None:
        async with open_parts(tmp_path / "data") as restored:
            assert (await restored.http.get(f"/jobs/{done['id']}")).json() == done
            assert len((await restored.http.get(f"/jobs/{busy}")).json()["sample_ids"]) >= 1

    asyncio.run(compare())


KILLED = """
import os, signal
from pathlib import Path
from infra import backup

link, links = os.link, []

def killed(*paths):
    links.append(paths)
    if len(links) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    link(*paths)

os.link = killed
backup.{call}, lambda *_: None)
"""


def die(call: str, at: int, folder: Path) -> None:
    """Makes the call in a process that is killed before it makes its link of that number."""
    script = folder / "killed.py"
    script.write_text(KILLED.format(at=at, call=call))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, script], cwd=folder, env=environment, check=False).returncode == -9


@pytest.mark.parametrize("at", [1, 4])
async def test_a_backup_that_was_killed_is_never_taken_for_a_whole_one(made: Parts, tmp_path: Path, at: int) -> None:
    await asyncio.to_thread(die, f"back_up(Path(), Path('backup'), '{NOW}'", at, made.folder)
    assert len([name for name in files(tmp_path / "backup") if name.startswith("objects")]) == at - 1
    with pytest.raises(NotFoundError, match="There is no finished backup in the folder"):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    with pytest.raises(ConflictError, match=r"backup is not empty\. Back up into an empty folder; delete what an"):
        back_up(tmp_path, tmp_path / "backup")


async def test_a_restore_that_was_killed_leaves_no_events_without_their_audio(made: Parts, tmp_path: Path) -> None:
    await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    await asyncio.to_thread(die, "restore(Path('backup'), Path('restored')", 3, made.folder)
    assert "events.db" not in files(tmp_path / "restored")
    with pytest.raises(ConflictError, match=r"restored is not empty\. Restore into an empty folder"):
        restore(tmp_path / "backup", tmp_path / "restored")


@pytest.mark.parametrize("is_linked", [True, False])
async def test_a_job_that_is_deleted_meanwhile_is_deleted_in_the_backup_too(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linked: bool
) -> None:
    loop, link, links = asyncio.get_running_loop(), os.link, list[Any]()

    async def delete() -> None:
        await made.http.delete("/jobs/done")
        await made.objects.delete("samples/done")

    def slow(*paths: Path) -> None:
        links.append(paths)
        if len(links) == 2:
            asyncio.run_coroutine_threadsafe(delete(), loop).result()
        if not is_linked:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(*paths)

    monkeypatch.setattr(os, "link", slow)
    saved = await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    assert saved == Report(made_at=NOW, samples=0, faults=[])
    assert files(tmp_path / "backup").keys() == {"events.db", "backup.json"}


async def test_audio_that_is_missing_or_damaged_is_named_and_the_rest_is_saved(made: Parts, tmp_path: Path) -> None:
    first, second = (await made.http.get("/jobs/done")).json()["sample_ids"]
    one, other = sorted((tmp_path / "objects/samples/done").rglob("*.flac"))
    lost_key, key = (path.relative_to(tmp_path / "objects").as_posix() for path in (one, other))
    one.unlink()
    saved = await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    lost = f"A file of sample {first} is missing: {lost_key}."
    assert saved.faults == [lost]
    damaged = tmp_path / "backup/objects" / key
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored")
    assert found.faults == [lost, f"A file of sample {second} is damaged and was left out: {key}."]
    assert all(name.endswith(".json") for name in files(tmp_path / "restored" / "objects"))


@pytest.mark.usefixtures("made")
async def test_audio_on_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    for name, content in files(tmp_path / "backup" / "objects").items():
        source = tmp_path / "objects" / name
        assert content == source.read_bytes()
        assert source.stat().st_nlink == 1


@pytest.mark.usefixtures("made")
async def test_damaged_events_are_not_restored(tmp_path: Path) -> None:
    await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    with (tmp_path / "backup" / "events.db").open("ab") as events:
        events.write(b"x")
    with pytest.raises(ConflictError, match=r"events.db is damaged: its SHA-256 is not that of backup.json"):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert files(tmp_path / "restored") == {}


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("backup", "copy"), {}, "There is no studio in the folder 'text2song-data'."),
        (("restore", "copy"), {}, "There is no finished backup in the folder 'copy'."),
        (
            ("backup", "copy"),
            {"TEXT2SONG_LOG": "kafka://host:1"},
            "TEXT2SONG_LOG is 'kafka://host:1': only a data folder",
        ),
        (("restore", "copy"), {"TEXT2SONG_OBJECTS": "s3://bucket"}, "TEXT2SONG_OBJECTS is 's3://bucket': only a data"),
    ],
)
def test_what_cannot_be_backed_up_or_restored_is_said_in_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    done = text2song(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"text2song: {words}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_linked", [True, False])
async def test_trial_ids_open_in_the_restored_studio(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linked: bool
) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    trial = Trial(ab_test_id="test", pair=1, voter="v", left="A")
    sealed = (await Seals(made.objects).get()).seal(trial)
    if not is_linked:
        monkeypatch.setattr(os, "link", refuse)
    await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored")
    restored = await FileObjects.open(tmp_path / "restored" / "objects")
    assert (await Seals(restored).get()).open(sealed) == trial
    assert (tmp_path / "restored/objects" / SECRET).stat().st_mode & 0o777 == 0o600


async def test_adapters_come_back_with_their_files(parts: Parts, tmp_path: Path) -> None:
    answer = await parts.http.post("/adapters", **made_adapter.form())
    adapter = answer.json()
    saved = await asyncio.to_thread(back_up, tmp_path, tmp_path / "backup")
    assert saved == Report(made_at=NOW, samples=0, faults=[])
    assert await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored") == saved
    async with open_parts(tmp_path / "restored") as restored:
        for file in adapter["files"]:
            path = f"/adapters/{adapter['id']}/files/{file['name']}"
            assert (await restored.http.get(path)).content == (await parts.http.get(path)).content
    key = f"{adapter['storage_path']}/{adapter['files'][0]['name']}"
    (tmp_path / "backup" / "objects" / key).unlink()
    (tmp_path / "backup" / "objects" / key).write_bytes(b"{}")
    damaged = await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "again")
    assert damaged.faults == [f"A file of adapter jazz 1.0.0 is damaged and was left out: {key}."]
