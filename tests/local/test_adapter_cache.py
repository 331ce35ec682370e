"""A worker's copies of adapters: fetched once, checked, bounded."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from domain.adapters import folder
from domain.errors import DamagedError, NotFoundError, UnavailableError
from domain.events.jobs import AdapterSnapshot
from domain.lora import CONFIG, PREFERENCE, WEIGHTS
from domain.models import NOISE
from infra.storage.file_objects import FileObjects
from tests import adapter as made
from tests.conditions import eventually
from tests.contract.conftest import full_disk, too_many_files
from workers import adapters
from workers.adapter_files import check
from workers.adapters import UNFINISHED, AdapterFiles


class Counting(FileObjects):
    """Counts what is read of it, and fails at first where it is told to."""

    reads = 0
    failing = 0

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        self.reads += 1
        if self.failing:
            self.failing -= 1
            raise UnavailableError("The object store does not answer.")
        async for chunk in super().read(key, start, length):
            yield chunk


@pytest.fixture
async def objects(tmp_path: Path) -> Counting:
    return await Counting.open(tmp_path / "objects")


async def stored(objects: Counting, tmp_path: Path, seed: int = 0) -> AdapterSnapshot:
    source = made.write(tmp_path / f"source-{seed}", made.packed(made.weights(seed=seed)))
    checked = check(source, NOISE)
    path = folder(checked.sha256, f"a{seed}")
    for name in (CONFIG, WEIGHTS):
        await objects.put(f"{path}/{name}", (source / name).read_bytes())
    return AdapterSnapshot(
        id=f"a{seed}", name="jazz", version="1.0.0", base_model=NOISE.id, storage_path=path, sha256=checked.sha256
    )


async def used(cache: AdapterFiles, adapter: AdapterSnapshot) -> Path:
    async with cache.use(adapter) as path:
        assert {file.name for file in path.iterdir()} == {CONFIG, WEIGHTS}
        return path


async def test_a_preference_model_that_the_digest_speaks_of_comes_along(objects: Counting, tmp_path: Path) -> None:
    source = made.write(tmp_path / "source", made.packed(made.weights()))
    for name in PREFERENCE:
        (source / name).write_bytes(name.encode())
    checked = check(source, NOISE)
    path = folder(checked.sha256, "a1")
    for file in checked.files:
        await objects.put(f"{path}/{file.name}", (source / file.name).read_bytes())
    adapter = AdapterSnapshot(
        id="a1", name="jazz", version="1.0.0", base_model=NOISE.id, storage_path=path, sha256=checked.sha256
    )
    cache = AdapterFiles(objects, tmp_path / "cache")
    async with cache.use(adapter) as kept:
        assert {file.name for file in kept.iterdir()} == {CONFIG, WEIGHTS, *PREFERENCE}
    cache.close()
    later = AdapterFiles(objects, tmp_path / "cache")
    reads = objects.reads
    async with later.use(adapter) as again:
        assert (again, objects.reads) == (kept, reads)
    later.close()


async def test_it_is_fetched_once_however_many_ask_and_found_again_after_a_start(
    objects: Counting, tmp_path: Path
) -> None:
    adapter = await stored(objects, tmp_path)
    cache = AdapterFiles(objects, tmp_path / "cache")
    paths = await asyncio.gather(*(used(cache, adapter) for _ in range(5)))
    assert (len(set(paths)), paths[0].name, objects.reads) == (1, adapter.sha256, 2)
    cache.close()
    later = AdapterFiles(objects, tmp_path / "cache")
    assert (await used(later, adapter), objects.reads) == (paths[0], 2)
    beside = AdapterFiles(objects, tmp_path / "cache")
    assert (await used(beside, adapter)).parent != paths[0].parent, "no two processes share a folder"
    later.close()
    beside.close()


async def test_the_least_recently_used_makes_room_and_what_is_used_stays(objects: Counting, tmp_path: Path) -> None:
    chosen = [await stored(objects, tmp_path, seed) for seed in range(4)]
    size = sum((tmp_path / "source-0" / name).stat().st_size for name in (CONFIG, WEIGHTS))
    cache = AdapterFiles(objects, tmp_path / "cache", limit=2 * size + size // 2)
    first, second = [await used(cache, adapter) for adapter in chosen[:2]]
    await used(cache, chosen[0])
    third = await used(cache, chosen[2])
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(cache.use(adapter)) for adapter in chosen]
        assert all(path.exists() for path in held), "more than the limit, while all are used"
    await used(cache, chosen[3])
    assert sum(path.exists() for path in held) == 2
    cache.close()


async def test_one_that_is_taken_into_use_while_others_make_room_stays(
    objects: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [await stored(objects, tmp_path, seed) for seed in range(4)]
    cache = AdapterFiles(objects, tmp_path / "cache")
    for adapter in chosen[:3]:
        await used(cache, adapter)
    cache._limit = 1
    removing, may_remove, remove = threading.Event(), threading.Event(), adapters._remove

    def removed(path: Path) -> None:
        if path.exists():
            removing.set()
            assert may_remove.wait(60)
        remove(path)

    monkeypatch.setattr(adapters, "_remove", removed)
    async with AsyncExitStack() as stack:
        using = [asyncio.create_task(stack.enter_async_context(cache.use(chosen[3])))]
        assert await asyncio.to_thread(removing.wait, 60)
        using += [asyncio.create_task(stack.enter_async_context(cache.use(adapter))) for adapter in chosen[:2]]

        async def are_in_use() -> bool:
            return all(adapter.sha256 in cache._users for adapter in chosen[:2])

        await eventually(are_in_use)
        may_remove.set()
        folders = await asyncio.gather(*using)
        assert [{file.name for file in folder.iterdir()} for folder in folders] == [{CONFIG, WEIGHTS}] * 3
        left = {path.name for path in folders[0].parent.iterdir() if path.is_dir()}
        assert left == {folder.name for folder in folders}
    cache.close()


async def test_files_that_are_not_those_registered_are_refused(objects: Counting, tmp_path: Path) -> None:
    adapter = await stored(objects, tmp_path)
    cache = AdapterFiles(objects, tmp_path / "cache")
    wrong: Sequence[tuple[AdapterSnapshot, Any]] = [
        (replace(adapter, sha256="0" * 64), DamagedError),
        (replace(adapter, sha256=None), DamagedError),
        (replace(adapter, storage_path="adapters/nothing"), NotFoundError),
    ]
    for other, kind in wrong:
        with pytest.raises(kind):
            await used(cache, other)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.name in {CONFIG, WEIGHTS}]
    assert left == []
    path = await used(cache, adapter)
    cache.close()
    (path / WEIGHTS).write_bytes(b"damaged on this disk")
    (path.parent / f"{adapter.sha256}{UNFINISHED}").mkdir()
    later = AdapterFiles(objects, tmp_path / "cache")
    assert (await used(later, adapter) / WEIGHTS).read_bytes() == made.packed(made.weights())
    later.close()


async def test_a_store_that_is_away_is_waited_for(objects: Counting, tmp_path: Path) -> None:
    adapter = await stored(objects, tmp_path)
    objects.failing = 2
    cache = AdapterFiles(objects, tmp_path / "cache")
    assert (await used(cache, adapter) / CONFIG).exists()
    cache.close()


async def test_a_disk_that_refuses_is_unavailable_and_nothing_is_held_against_the_adapter(
    objects: Counting, tmp_path: Path
) -> None:
    adapter = await stored(objects, tmp_path)
    cache = AdapterFiles(objects, tmp_path / "cache")
    cache.check()
    with pytest.raises(UnavailableError, match=r"cannot be written to: .* Make room there"), full_disk(100):
        await used(cache, adapter)
    path = await used(cache, adapter)
    cache.close()
    later = AdapterFiles(objects, tmp_path / "cache")
    with pytest.raises(UnavailableError, match="Too many open files"), too_many_files():
        await used(later, adapter)
    assert await used(later, adapter) == path
    later.close()


async def test_an_error_of_whoever_uses_it_is_left_alone(objects: Counting, tmp_path: Path) -> None:
    adapter = await stored(objects, tmp_path)
    cache = AdapterFiles(objects, tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        async with cache.use(adapter) as path:
            (path / "nothing").read_bytes()
    cache.close()


async def test_a_folder_that_cannot_be_written_is_replaced(objects: Counting, tmp_path: Path) -> None:
    adapter = await stored(objects, tmp_path)
    (tmp_path / "file").write_bytes(b"")
    cache = AdapterFiles(objects, tmp_path / "file" / "cache")
    assert (await used(cache, adapter) / CONFIG).exists()
    cache.close()
