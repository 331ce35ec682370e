"""What is true of the object store because it is an S3 server."""

import asyncio
import os
import ssl
import traceback
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from msgspec.structs import replace

from domain import adapters, datasets, jobs, melodies, trainings
from domain.errors import DeniedError, UnavailableError
from domain.ports import ObjectInfo
from infra import cluster
from infra.settings import load
from infra.storage import s3_objects
from infra.storage.s3_objects import PART, S3Objects
from tests.cluster.test_secured import Authority
from tests.conditions import eventually
from tests.contract.s3 import S3ObjectsHarness
from tests.contract.test_object_store import content, keys
from tests.proxy import Proxy
from tests.servers import servers

LARGE = os.urandom(2 * PART + 12_345)


@pytest.fixture(autouse=True)
def _two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between more of them prove nothing."""
    monkeypatch.setattr(s3_objects, "ATTEMPTS", 2)


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3ObjectsHarness]:
    harness = S3ObjectsHarness(tmp_path)
    yield harness
    await harness.close()


@pytest.fixture
async def objects(s3: S3ObjectsHarness) -> AsyncIterator[S3Objects]:
    opened = await s3.open()
    yield opened
    await opened.close()


async def uploads(objects: S3Objects) -> list[str]:
    answer = await objects._client.list_multipart_uploads(Bucket=objects._bucket.name)
    return [upload["Key"] for upload in answer.get("Uploads", ())]


async def test_a_large_object_goes_up_in_parts_and_comes_back_whole(objects: S3Objects) -> None:
    info = await objects.put("songs/large", LARGE)
    assert await objects.stat("songs/large") == info
    assert await content(objects, "songs/large") == LARGE
    assert await content(objects, "songs/large", PART - 5, 10) == LARGE[PART - 5 : PART + 5]
    assert await uploads(objects) == []


@pytest.mark.parametrize("data", [b"2", LARGE], ids=["whole", "in parts"])
async def test_a_put_without_replace_that_is_refused_leaves_no_upload(objects: S3Objects, data: bytes) -> None:
    first = await objects.put("songs/old", b"old")
    assert await objects.put("songs/old", data, replace=False) == first
    assert await uploads(objects) == []


async def test_a_put_without_replace_is_made_when_what_was_there_is_deleted_meanwhile(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = objects.stat

    async def late(key: str) -> ObjectInfo | None:
        await objects._client.delete_object(Bucket=objects._bucket.name, Key=key)
        return await stat(key)

    await objects.put("songs/new", b"old")
    monkeypatch.setattr(objects, "stat", late)
    info = await objects.put("songs/new", b"1", replace=False)
    assert (info.size, await content(objects, "songs/new")) == (1, b"1")


async def test_a_put_without_replace_that_met_another_is_tried_again(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amazon's S3 answers so; the gateway does not."""
    put_object = objects._client.put_object
    conflicts = iter([ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")])

    async def busy(**arguments: Any) -> Any:
        for conflict in conflicts:
            raise conflict
        return await put_object(**arguments)

    monkeypatch.setattr(objects._client, "put_object", busy)
    info = await objects.put("songs/new", b"1", replace=False)
    assert await objects.stat("songs/new") == info


async def test_an_upload_cut_in_the_middle_keeps_the_old_object_and_leaves_nothing(
    s3: S3ObjectsHarness, objects: S3Objects
) -> None:
    await objects.put("songs/old", b"old")
    through = await s3.open_through_proxy()
    assert s3.proxy is not None
    for data in (LARGE, LARGE[: PART - 1]):
        for key in ("songs/old", "songs/new"):
            s3.proxy.limit = len(data) - PART // 2
            with pytest.raises(UnavailableError, match="does not answer"):
                await through.put(key, data)
            s3.proxy.down, s3.proxy.limit = False, None
    await through.close()
    assert await keys(objects) == ["songs/old"]
    assert await content(objects, "songs/old") == b"old"


async def test_a_cancelled_upload_is_aborted(objects: S3Objects) -> None:
    async def begun() -> list[str]:
        return await uploads(objects)

    putting = asyncio.create_task(objects.put("songs/new", LARGE * 4))
    assert await eventually(begun) == ["songs/new"]
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await uploads(objects) == []
    assert await keys(objects) == []


async def test_an_upload_that_never_ended_is_swept_once_it_is_old_unless_it_is_a_strangers(
    s3: S3ObjectsHarness, objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [
        f"{adapters.folder('0' * 64, 'jazz')}/adapter_model.safetensors",
        f"{datasets.folder('liked')}/exports/dead.zip",
        melodies.audio("melody"),
        f"{jobs.renditions('job')}/dead.wav",
        f"{jobs.folder('job')}/1/dead.flac",
        f"{trainings.folder('training')}/1/9.safetensors",
    ]
    begun = [*ours, "theirs/dead"]
    for key in begun:
        await objects._client.create_multipart_upload(Bucket=s3.bucket.name, Key=key)
    await (await s3.open()).close()
    assert await uploads(objects) == sorted(begun)
    monkeypatch.setattr(s3_objects, "STALE", timedelta(seconds=-60))
    await (await s3.open()).close()
    assert await uploads(objects) == ["theirs/dead"]


async def test_wrong_keys_are_named_and_the_secret_is_never_shown(s3: S3ObjectsHarness) -> None:
    for wrong in (replace(s3.bucket, secret_key="hunter2"), replace(s3.bucket, access_key="nobody")):  # noqa: S106
        with pytest.raises(UnavailableError, match=f"{wrong.access_key}.*{wrong.name}") as raised:
            await S3Objects.open(wrong)
        assert str(wrong.secret_key) not in "".join(traceback.format_exception(raised.value))


async def test_an_outage_is_said_in_a_sentence_and_then_forgotten(s3: S3ObjectsHarness) -> None:
    objects = await s3.open_through_proxy()
    assert s3.proxy is not None
    await objects.put("songs/kept", b"1")
    s3.proxy.down = True
    s3.proxy.cut()
    refusals = await asyncio.gather(
        objects.put("songs/new", b"2"),
        objects.stat("songs/kept"),
        content(objects, "songs/kept"),
        objects.list(""),
        objects.delete("songs"),
        S3Objects.open(replace(s3.bucket, endpoint=f"http://{s3.proxy.address}")),
        return_exceptions=True,
    )
    for refusal in refusals:
        assert isinstance(refusal, UnavailableError)
        assert f"{s3.proxy.address} does not answer" in str(refusal)
    s3.proxy.down = False
    assert await keys(objects) == ["songs/kept"]
    await objects.close()


async def test_a_stream_that_is_cut_ends_in_an_error_and_not_early(s3: S3ObjectsHarness) -> None:
    objects = await s3.open_through_proxy()
    assert s3.proxy is not None
    await objects.put("songs/large", LARGE)
    chunks = objects.read("songs/large")
    assert LARGE.startswith(await anext(chunks))
    s3.proxy.cut()
    with pytest.raises(UnavailableError, match="does not answer"):
        [_ async for _ in chunks]
    await objects.close()


async def test_a_server_that_is_killed_in_the_middle_of_puts_shows_whole_objects_alone(objects: S3Objects) -> None:
    acknowledged: list[str] = []
    data = LARGE[: PART // 2]

    async def put(writer: int) -> None:
        for number in range(1_000):
            await objects.put(f"songs/{writer}/{number}", data)
            acknowledged.append(f"songs/{writer}/{number}")

    writing = [asyncio.create_task(put(writer)) for writer in range(4)]

    async def many() -> bool:
        return len(acknowledged) >= 12

    await eventually(many, 60)
    await asyncio.to_thread(servers().kill, "s3")
    results = await asyncio.gather(*writing, return_exceptions=True)
    assert all(isinstance(result, UnavailableError) for result in results), results
    await asyncio.to_thread(servers().start, "s3")
    listed = await objects.list("")
    assert {info.key for info in listed} >= set(acknowledged)
    assert {info.size for info in listed} == {len(data)}


async def test_a_list_and_a_delete_go_beyond_a_thousand(objects: S3Objects) -> None:
    for first in range(0, 1_100, 100):
        await asyncio.gather(*(objects.put(f"songs/{number:04}", b"1") for number in range(first, first + 100)))
    assert await keys(objects, "songs") == [f"songs/{number:04}" for number in range(1_100)]
    assert await objects.delete("songs") == 1_100
    assert await keys(objects) == []


async def test_a_stream_needs_memory_for_chunks_and_not_for_the_object(objects: S3Objects) -> None:
    await objects.put("songs/large", LARGE * 3)
    tracemalloc.start()
    size = 0
    async for chunk in objects.read("songs/large"):
        size += len(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 3 * len(LARGE)
    assert peak < 4_000_000


@pytest.mark.parametrize("replace", [True, False])
async def test_one_name_is_not_both_an_object_and_a_folder(objects: S3Objects, replace: bool) -> None:
    await objects.put("a/b", b"1")
    for key in ("a", "a/b/c"):
        with pytest.raises(ValueError, match="both an object and a folder"):
            await objects.put(key, b"2", replace=replace)
    assert await keys(objects) == ["a/b"]


async def test_a_server_behind_a_proxy_with_tls_is_used_by_its_own_authority_and_by_no_other(
    s3: S3ObjectsHarness, tmp_path: Path
) -> None:
    own, stranger = Authority(tmp_path, "own"), Authority(tmp_path, "stranger")
    certificate, key, _ = own.certify("server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    s3.proxy = await Proxy.to(urlsplit(s3.addresses.s3_endpoint).netloc, context)
    environment = {
        "TEXT2SONG_OBJECTS": f"s3://{s3.bucket.name}",
        "TEXT2SONG_S3_ENDPOINT": f"https://{s3.proxy.address}",
        "TEXT2SONG_S3_REGION": s3.bucket.region,
        "TEXT2SONG_S3_ACCESS_KEY": str(s3.bucket.access_key),
        "TEXT2SONG_S3_SECRET_KEY": str(s3.bucket.secret_key),
    }
    objects = await cluster.s3_objects(load({**environment, "TEXT2SONG_S3_CA": str(own.file)}))
    await objects.put("songs/large", LARGE)
    assert await content(objects, "songs/large") == LARGE
    assert await content(objects, "songs/large", PART - 5, 10) == LARGE[PART - 5 : PART + 5]
    await objects.close()
    for changes in ({"TEXT2SONG_S3_CA": str(stranger.file)}, {}):
        with pytest.raises(DeniedError, match=r"S3 at https://.* is not signed by an authority of TEXT2SONG_S3_CA\."):
            await cluster.s3_objects(load({**environment, **changes}))
