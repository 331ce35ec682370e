"""Exports as others load them: with the `datasets` library, and unpacked on another machine."""

import asyncio
import io
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile

from domain.errors import ConflictError, DamagedError
from tests.local.parts import Parts
from tests.local.test_datasets import archive, built, said, song, studio
from workers.dataset_folder import unpack

__all__ = ["studio"]
load_dataset: Any = pytest.importorskip("datasets").load_dataset


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The library asks for its coder of audio even where it only notes paths, and that needs FFmpeg's libraries.
    encoders = ModuleType("torchcodec.encoders")
    monkeypatch.setattr(encoders, "AudioEncoder", None, raising=False)
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


async def unpacked(parts: Parts, folders: Path, dataset_id: str, wanted: str) -> Path:
    zipped = await archive(parts, dataset_id, wanted)
    file = folders / f"{wanted}.zip"
    assert zipped.fp is not None
    zipped.fp.seek(0)
    await asyncio.to_thread(file.write_bytes, zipped.fp.read())
    await asyncio.to_thread(unpack, file, folders / wanted)
    return folders / wanted


def loaded(folder: Path, *audio: str) -> Any:
    """Rows as the library gives them, their audio decoded by soundfile."""
    from datasets import Audio  # noqa: PLC0415

    found = load_dataset("audiofolder", data_dir=str(folder / "data"), split="train", cache_dir=str(folder / "cache"))
    for column in audio:
        found = found.cast_column(column, Audio(decode=False))
    rows = list(found)
    for row in rows:
        for column in audio:
            content = row[column]["bytes"] or Path(row[column]["path"]).read_bytes()
            pcm, rate = soundfile.read(io.BytesIO(content))
            assert (rate, len(pcm)) == (8_000, 4_000)
    return rows


async def test_each_format_loads_back_with_the_datasets_library(studio: Parts, folders: Path) -> None:
    for number in range(3):
        await song(studio, f"job{number}")
        await studio.journal.append(
            said(f"r{number}", f"job{number}-0", rating=4.5, tags=("warm",)),
            said(f"p{number}", f"job{number}-0", f"job{number}-1"),
        )
    rated = await built(studio, name="rated", held_out=0)
    compared = await built(studio, name="compared", type="preference", held_out=0)
    supervised = loaded(await unpacked(studio, folders, rated["id"], "supervised"), "audio")
    assert [(row["sample_id"], row["rating_mean"], row["tags"]) for row in supervised] == [
        (f"job{number}-0", 4.5, ["warm"]) for number in range(3)
    ]
    pairs = loaded(await unpacked(studio, folders, compared["id"], "preference"), "chosen", "rejected")
    assert [(row["chosen_id"], row["rejected_id"]) for row in pairs] == [
        (f"job{number}-0", f"job{number}-1") for number in range(3)
    ]
    unpaired = loaded(await unpacked(studio, folders, compared["id"], "unpaired"), "audio")
    assert [(row["sample_id"], row["label"]) for row in unpaired] == [
        (f"job{number}-{index}", not index) for number in range(3) for index in (0, 1)
    ]


def packed(file: Path, **entries: str) -> Path:
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in entries.items():
            zipped.writestr(name, content)
    return file


MANIFEST = {"format": "text2song-dataset/1", "files": {}}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "no manifest"),
        ({"manifest.json": "{"}, "no manifest"),
        ({"manifest.json": json.dumps({**MANIFEST, "format": "text2song-dataset/2"})}, "Upgrade"),
        ({"manifest.json": json.dumps(MANIFEST), "x": "1"}, "x of the archive is not what its manifest says"),
        ({"manifest.json": json.dumps({**MANIFEST, "files": {"x": "0"}})}, "lacks x"),
        ({"manifest.json": json.dumps(MANIFEST), "../x": "1"}, "is no file of a dataset"),
        ({"manifest.json": json.dumps(MANIFEST), "/x": "1"}, "is no file of a dataset"),
    ],
)
def test_an_archive_that_is_not_what_it_says_leaves_nothing(tmp_path: Path, entries: dict[str, str], says: str) -> None:
    with pytest.raises(DamagedError, match=says):
        unpack(packed(tmp_path / "a.zip", **entries), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(ConflictError, match="is not empty"):
        unpack(packed(tmp_path.parent / "b.zip", **{"manifest.json": json.dumps(MANIFEST)}), tmp_path)
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DamagedError, match="cannot be read"):
        unpack(tmp_path / "torn.zip", tmp_path / "new")
