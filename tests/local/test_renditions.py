"""Formats that are made from masters: kept while there is room, in nobody's way, and never from a damaged master."""

import asyncio
import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
from msgspec.structs import replace

import api.http.renditions
from api.http.renditions import AudioFile, Renditions
from domain.errors import DamagedError, NotFoundError
from domain.events.jobs import Format, JobStarted
from domain.ports import ObjectInfo
from infra.storage.file_objects import FileObjects
from projections.audio import AudioSample, samples
from tests.conditions import eventually
from tests.contract.conftest import full_disk
from tests.history import job_after, sample
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, stop
from workers.mastering import master, transcode
from workers.matching import matched
from workers.purging import remove
from workers.reactions import Reactions
from workers.tracks import TracksInFolder

FORMATS = get_args(Format)
PLENTY = 1_000_000_000


@pytest.fixture
async def objects(tmp_path: Path) -> FileObjects:
    return await FileObjects.open(tmp_path / "objects")


async def stored(objects: FileObjects, number: int = 0) -> AudioSample:
    """A sample of a second whose master is among the objects."""
    noise = np.random.default_rng(number).standard_normal((1, 8_000)).astype(np.float32) * 0.1
    made = master(noise, 8_000, {"title": f"sample {number}"})
    path = f"samples/job-{number}/1/0.flac"
    await objects.put(path, made.flac)
    started = JobStarted(job_id="job", attempt=1, worker_id="w1")
    [found] = samples(job_after(started, sample(0, size=made.size, sha256=made.sha256)))
    return replace(found, job_id=f"job-{number}", storage_path=path)


async def content(file: AudioFile) -> bytes:
    return b"".join([chunk async for chunk in file.read(0, file.size)])


async def kept(objects: FileObjects) -> Sequence[str]:
    return [info.key.split("/")[1] for info in await objects.list("renditions")]


async def masters(objects: FileObjects) -> int:
    return len(await objects.list("samples"))


class MeetingObjects(FileObjects):
    """Puts an OGG only once two are to be put."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.both = asyncio.Barrier(2)

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        if key.endswith(".ogg"):
            await self.both.wait()
        return await super().put(key, data, replace=replace)


async def test_a_format_that_two_processes_make_at_once_has_one_etag(tmp_path: Path) -> None:
    objects = await MeetingObjects.open(tmp_path)
    one = await stored(objects)
    async with asyncio.timeout(20):
        first, second = await asyncio.gather(*(Renditions(objects, PLENTY).get(one, "ogg") for _ in range(2)))
    assert (first.etag, first.size) == (second.etag, second.size)
    assert await content(first) == await content(second)


async def test_making_formats_keeps_no_other_file_operation_waiting(
    objects: FileObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = threading.Event()

    def slowly(flac: bytes, output_format: str) -> bytes:
        making.wait()
        return transcode(flac, output_format)

    monkeypatch.setattr(api.http.renditions, "transcode", slowly)
    renditions = Renditions(objects, PLENTY)
    wanted = [await stored(objects, number) for number in range(40)]
    getting = [asyncio.create_task(renditions.get(each, "wav")) for each in wanted]
    try:
        async with asyncio.timeout(20):
            for each in wanted:
                assert len(await content(await renditions.get(each, "flac"))) == each.size
            assert len(await objects.list("samples")) == 40
        assert not any(task.done() for task in getting)
    finally:
        making.set()
    assert {file.size for file in await asyncio.gather(*getting)} == {(await renditions.get(wanted[0], "wav")).size}


@pytest.mark.parametrize(("module", "name"), [("workers.generation", "master"), ("workers.tracks", "transcode")])
async def test_mastering_and_tracks_keep_no_file_operation_waiting(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    begun, going_on = threading.Event(), threading.Event()
    make: Any = {"master": master, "transcode": transcode}[name]

    def slowly(*arguments: Any) -> Any:
        begun.set()
        going_on.wait()
        return make(*arguments)

    async def has_begun() -> bool:
        return begun.is_set()

    monkeypatch.setattr(f"{module}.{name}", slowly)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    tracks = TracksInFolder(parts.store, parts.objects, parts.folder / "music")
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [tracks]).run())
    try:
        async with parts.working(ScriptedEngine()):
            await parts.submit("j1", seeds=[1])
            await eventually(has_begun)
            async with asyncio.timeout(20):
                await parts.objects.put("songs/other", b"1")
            going_on.set()
            await parts.when("j1", "completed")
    finally:
        going_on.set()
        await stop(running)


async def test_the_least_recently_used_formats_make_room_and_masters_never_do(objects: FileObjects) -> None:
    zero, one, two = [await stored(objects, number) for number in range(3)]
    size = (await Renditions(objects, 0).get(zero, "wav")).size
    renditions = Renditions(objects, int(2.5 * size))
    for each in (zero, one, zero, two):
        await renditions.get(each, "wav")
    assert await kept(objects) == ["job-0", "job-2"]
    assert len(await content(await renditions.get(one, "wav"))) == size
    assert await kept(objects) == ["job-1", "job-2"]
    assert await masters(objects) == 3


async def test_a_file_in_hand_stays_until_it_is_read_however_short_the_room(objects: FileObjects) -> None:
    """An archive has all of a job's files in hand at once."""
    every = [await stored(objects, number) for number in range(4)]
    renditions = Renditions(objects, 0)
    files = [await renditions.get(each, "ogg") for each in every]
    again = await renditions.get(every[0], "ogg")
    contents = [await content(file) for file in files]
    assert [len(each) for each in contents] == [file.size for file in files]
    assert await content(again) == contents[0]
    del again, files
    await renditions.get(every[0], "wav")
    assert len(await kept(objects)) == 1


async def test_what_an_earlier_process_kept_counts_as_well(objects: FileObjects) -> None:
    every = [await stored(objects, number) for number in range(5)]
    earlier = Renditions(objects, PLENTY)
    for each in every[:4]:
        size = (await earlier.get(each, "wav")).size
    await Renditions(objects, 2 * size).get(every[4], "wav")
    assert len(await kept(objects)) == 2
    assert "job-4" in await kept(objects)


async def test_a_format_for_which_the_disk_has_no_room_is_sent_all_the_same(objects: FileObjects) -> None:
    one = await stored(objects)
    renditions = Renditions(objects, PLENTY)
    with full_disk(100):
        found = {name: await content(await renditions.get(one, name)) for name in FORMATS}
    assert await kept(objects) == []
    for name, audio in found.items():
        assert soundfile.info(io.BytesIO(audio)).duration == pytest.approx(1, abs=0.2), name
    assert len(found["flac"]) == one.size
    await renditions.get(one, "mp3")
    assert await kept(objects) == ["job-0"]


async def made(parts: Parts) -> tuple[dict[str, Any], Path]:
    """A sample as the API shows it, and its master's file."""
    async with parts.working(ScriptedEngine()):
        await parts.submit("j1", seeds=[1])
        job = await parts.when("j1", "completed")
    shown = (await parts.http.get(f"/audio/{job.samples[0].event.sample_id}")).json()
    return shown, parts.folder / "objects" / shown["storage_path"]


@pytest.mark.parametrize("damage", ["shortened", "longer", "altered", "empty"])
async def test_a_damaged_master_is_named_and_not_streamed_in_any_format(parts: Parts, damage: str) -> None:
    shown, path = await made(parts)
    sound = path.read_bytes()
    assert (await parts.http.get(shown["stream_url"], params={"format": "flac"})).content == sound
    middle = len(sound) // 2
    altered = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    damaged = {"shortened": sound[:middle], "longer": sound + b"\0", "altered": altered, "empty": b""}
    path.write_bytes(damaged[damage])
    for name in FORMATS:
        answer = await parts.http.get(shown["stream_url"], params={"format": name}, headers={"Range": "bytes=0-9"})
        assert (answer.status_code, answer.json()["code"]) == (410, "damaged")
        assert shown["storage_path"] in answer.json()["detail"]
        assert f"{len(damaged[damage]):,} bytes" in answer.json()["detail"]
    path.write_bytes(sound)
    for name in FORMATS:
        assert (await parts.http.get(shown["stream_url"], params={"format": name})).status_code == 200


async def test_an_archive_names_a_damaged_master(parts: Parts) -> None:
    _, path = await made(parts)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    answer = await parts.http.get("/jobs/j1/audio.zip")
    assert (answer.status_code, answer.json()["code"]) == (410, "damaged")


async def test_a_missing_master_and_a_damaged_waveform_are_named(parts: Parts) -> None:
    shown, path = await made(parts)
    waveform = path.with_suffix(".json")
    waveform.write_bytes(waveform.read_bytes()[:20])
    answer = await parts.http.get(shown["waveform_url"])
    assert (answer.status_code, answer.json()["code"]) == (410, "damaged")
    path.unlink()
    for name in FORMATS:
        answer = await parts.http.get(shown["stream_url"], params={"format": name})
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            f"There is no audio file {shown['storage_path']!r}.",
        )


async def test_the_sides_of_a_trial_are_made_once_however_many_listen(
    objects: FileObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(one: bytes, other: bytes) -> tuple[bytes, bytes]:
        made.append(len(one))
        return matched(one, other)

    monkeypatch.setattr(api.http.renditions, "matched", counted)
    one, other = await stored(objects), await stored(objects, 1)
    renditions = Renditions(objects, PLENTY)
    every = await asyncio.gather(*(renditions.get_matched(one, other, "name") for _ in range(20)))
    assert len(made) == 1
    assert len({file.etag for file, _ in every}) == len({file.etag for _, file in every}) == 1
    assert every[0][0].size == every[0][1].size == len(await content(every[0][0]))
    assert await content(every[0][0]) != await content(every[0][1])
    assert await kept(objects) == ["job-0", "job-1"]


async def test_two_processes_that_make_the_sides_of_a_trial_keep_one_of_each(objects: FileObjects) -> None:
    one, other = await stored(objects), await stored(objects, 1)
    both = await asyncio.gather(*(Renditions(objects, PLENTY).get_matched(one, other, "name") for _ in range(2)))
    assert [file.etag for file in both[0]] == [file.etag for file in both[1]]


@pytest.mark.parametrize("gone", ["job-0", "job-1"])
async def test_of_a_job_that_is_purged_meanwhile_no_side_is_left(objects: FileObjects, gone: str) -> None:
    one, other = await stored(objects), await stored(objects, 1)
    put = objects.put

    async def purged(key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        await remove(objects, gone)
        return await put(key, data, replace=replace)

    objects.put = purged  # type: ignore[method-assign]
    with pytest.raises(NotFoundError):
        await Renditions(objects, PLENTY).get_matched(one, other, "name")
    assert gone not in await kept(objects)


async def test_sides_of_trials_make_room_as_other_formats_do(objects: FileObjects) -> None:
    every = [await stored(objects, number) for number in range(6)]
    renditions = Renditions(objects, 0)
    for one, other in (every[:2], every[2:4], every[4:]):
        files = await renditions.get_matched(one, other, "name")
        assert [len(await content(file)) for file in files] == [44 + 16_000] * 2
        del files
    assert len(await kept(objects)) <= 2


async def test_a_master_that_is_no_audio_is_damaged(objects: FileObjects) -> None:
    one, other = await stored(objects), await stored(objects, 1)
    await objects.put(other.storage_path, b"no audio")
    lie = replace(other, size=8, sha256=sha256(b"no audio").hexdigest())
    with pytest.raises(DamagedError):
        await Renditions(objects, PLENTY).get_matched(one, lie, "name")
