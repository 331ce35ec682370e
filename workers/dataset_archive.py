"""An export as one ZIP file: audio, rows that the `datasets` library reads, a manifest and a card."""

import asyncio
import shutil
import sqlite3
import tempfile
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from hashlib import sha256
from os import SEEK_END
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgspec

from domain.curation import AnyItem, BadItem, Item, Listed, PairItem, SampleItem
from domain.dataset_card import FORMAT, card
from domain.datasets import Dataset, Export
from domain.errors import NotFoundError
from domain.events.datasets import MAX_NAMED, LeftOut, Reason
from domain.ports import ObjectStore
from workers.dataset_items import items
from workers.scratch import scratch

SPLITS: Final = ("train", "test")
CHUNK: Final = 1024 * 1024
GOOD, BAD = 3.5, 2.5  # mean ratings from which and to which a sample is good or bad
MADE_WITH: Final = ("job_id", "model_id", "adapter_id", "seed", "duration", "sample_rate", "sha256", "pcm_sha256")
TABLES: Final = (
    "CREATE TABLE files (path TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID",
    "CREATE TABLE audio (sample TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID",
    "CREATE TABLE labels (sample TEXT PRIMARY KEY, body BLOB, item BLOB, score INTEGER) WITHOUT ROWID",
)


class Archive:
    """In a temporary file, until it is left. `rows` counts its rows, `left_out` what it lacks; `missing` names some.

    Raises UnavailableError, when it is entered and inside, where the disk is full or missing.
    """

    def __init__(self, objects: ObjectStore, dataset: Dataset, export: Export, scratch: Path | None) -> None:
        self.rows = 0
        self.left_out: Counter[Reason] = Counter()
        self.missing: list[LeftOut] = []
        self.size = 0
        self.sha256 = ""
        self._objects = objects
        self._dataset = dataset
        self._export = export
        self._scratch = scratch
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._stack)
            self._stack.enter_context(scratch(self._scratch))
            self._open()
            opened.pop_all()
        return self

    def _open(self) -> None:
        self.file = self._temporary()
        self._zip = self._stack.enter_context(zipfile.ZipFile(self.file, "w"))
        self._splits: Mapping[str, BinaryIO] = {split: self._temporary() for split in SPLITS}
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._stack.callback(self._database.close)
        for table in ("PRAGMA journal_mode = OFF", *TABLES):
            self._database.execute(table)

    def _temporary(self) -> BinaryIO:
        return self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was written counts no more, so a directory that a full disk does not take is no loss.
        self._zip.fp = None
        self._stack.__exit__(kind, error, trace)

    async def write(self) -> None:
        """Raises DamagedError where the dataset's list is not as it was stored."""
        async for item, row, files in self._rows():
            paths = {field: await self._audio(item, sample) for field, sample in files.items()}
            if None in paths.values():
                continue
            line = msgspec.json.encode({**paths, **row}) + b"\n"
            await asyncio.to_thread(self._splits[item.split].write, line)
            self.rows += 1
        await asyncio.to_thread(self._finish)

    async def _rows(self) -> AsyncIterator[tuple[Item, dict[str, Any], dict[str, Listed]]]:
        """Each row with its item, without the fields that name audio, and these with their samples."""
        async for page in items(self._objects, self._dataset):
            for item in page:
                if isinstance(item, str):
                    self.left_out[item] += 1
                elif self._export.format == "unpaired":
                    self._label(item)
                elif isinstance(item, SampleItem):
                    yield item, _supervised(item), {"file_name": item.sample}
                elif isinstance(item, PairItem):
                    sides = {"chosen_file_name": item.first, "rejected_file_name": item.second}
                    yield item, _preference(item), sides
        for base, sample, label in self._labelled():
            yield base, _unpaired(base, sample, label), {"file_name": sample}

    def _label(self, item: AnyItem) -> None:
        """A sample is good or bad by all that was said of it together."""
        match item:
            case SampleItem(rating_mean=mean):
                scores = [(item.sample, (mean >= GOOD) - (mean <= BAD))]
            case PairItem():
                scores = [(item.first, item.weight), (item.second, -item.weight)]
            case BadItem():
                scores = [(item.first, -item.n_votes), (item.second, -item.n_votes)]
        base = Item(split=item.split, prompt_id=item.prompt_id, prompt=item.prompt, model_prompt=item.model_prompt)
        for sample, score in scores:
            self._database.execute(
                "INSERT INTO labels VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET score = score + excluded.score",
                (sample.sample_id, msgspec.msgpack.encode(sample), msgspec.msgpack.encode(base), score),
            )

    def _labelled(self) -> Iterator[tuple[Item, Listed, bool]]:
        for body, base, score in self._database.execute("SELECT body, item, score FROM labels ORDER BY sample"):
            sample, item = msgspec.msgpack.decode(body, type=Listed), msgspec.msgpack.decode(base, type=Item)
            if score:
                yield item, sample, score > 0
            else:
                self._leave_out(sample, "undecided")

    async def _audio(self, item: Item, sample: Listed) -> str | None:
        """The path from the row to the sample's audio, which is put into the archive once; None where there is none."""
        path = f"audio/{sample.sample_id}.flac"
        known = self._database.execute("SELECT reason FROM audio WHERE sample = ?", (sample.sample_id,)).fetchall()
        if known:
            if known[0][0] is not None:
                self.left_out[known[0][0]] += 1
            return path if known[0][0] is None else None
        audio = await self._read(sample)
        reason: Reason | None = None
        if audio is None:
            reason = "audio_gone"
        elif (len(audio), sha256(audio).hexdigest()) != (sample.size, sample.sha256):
            reason = "audio_damaged"
        else:
            await asyncio.to_thread(self._add, f"data/{item.split}/{path}", audio)
        self._database.execute("INSERT INTO audio VALUES (?, ?)", (sample.sample_id, reason))
        if reason is not None:
            self._leave_out(sample, reason)
        return path if reason is None else None

    async def _read(self, sample: Listed) -> bytes | None:
        stored = await self._objects.stat(sample.storage_path)
        if stored is None:
            return None
        # Not more than one knows of: somebody may have put a huge file in its place.
        if stored.size != sample.size:
            return b""
        try:
            return b"".join([chunk async for chunk in self._objects.read(sample.storage_path)])
        except NotFoundError:
            return None

    def _leave_out(self, sample: Listed, reason: Reason) -> None:
        self.left_out[reason] += 1
        if len(self.missing) < MAX_NAMED:
            self.missing.append(LeftOut(sample_id=sample.sample_id, reason=reason))

    def _finish(self) -> None:
        for split, file in self._splits.items():
            if file.tell():
                self._copy(f"data/{split}/metadata.jsonl", file)
        self._add("README.md", card(self._dataset, self._export.format).encode())
        with self._zip.open(self._named("manifest.json"), "w", force_zip64=True) as out:
            out.write(msgspec.json.encode(self._manifest())[:-1] + b',"files":{')
            between = b""
            for path, digest in self._database.execute("SELECT path, sha256 FROM files ORDER BY path"):
                out.write(between + msgspec.json.encode(path) + b":" + msgspec.json.encode(digest))
                between = b","
            out.write(b"}}\n")
        self._zip.close()
        self.size = self.file.seek(0, SEEK_END)
        self.file.seek(0)
        self.sha256 = _digest(self.file)

    def _manifest(self) -> Mapping[str, Any]:
        dataset, built = self._dataset, self._dataset.built
        assert built is not None  # noqa: S101 -- one without items was refused
        return {
            "format": FORMAT,
            "dataset_id": dataset.id,
            "name": dataset.request.dataset_name,
            "description": dataset.request.description,
            "type": dataset.request.kind,
            "export": self._export.format,
            "digest": built.digest,
            "filter_query": dataset.request.filters,
            "positions": built.positions,
            "agreement": built.agreement,
            "exported_at": self._export.requested_at,
            "rows": self.rows,
            "left_out": dict(sorted(self.left_out.items())),
            "missing": self.missing,
            "erased": {"feedback_ids": dataset.erased_feedback, "job_ids": dataset.erased_jobs},
        }

    def _add(self, path: str, content: bytes) -> None:
        self._zip.writestr(self._named(path), content)
        self._database.execute("INSERT INTO files VALUES (?, ?)", (path, sha256(content).hexdigest()))

    def _copy(self, path: str, file: BinaryIO) -> None:
        file.seek(0)
        self._database.execute("INSERT INTO files VALUES (?, ?)", (path, _digest(file)))
        file.seek(0)
        with self._zip.open(self._named(path), "w", force_zip64=True) as out:
            shutil.copyfileobj(file, out, CHUNK)

    def _named(self, path: str) -> zipfile.ZipInfo:
        """Dated by the request, so that whoever makes the archive makes the same one."""
        at = datetime.fromisoformat(self._export.requested_at)
        info = zipfile.ZipInfo(path, (max(1980, min(at.year, 2107)), at.month, at.day, at.hour, at.minute, at.second))
        info.external_attr = 0o644 << 16
        return info


def _supervised(item: SampleItem) -> dict[str, Any]:
    return {
        **_prompt(item),
        "sample_id": item.sample.sample_id,
        **_made_with(item.sample),
        "rating_mean": item.rating_mean,
        "n_ratings": item.n_ratings,
        "tags": item.tags,
    }


def _preference(item: PairItem) -> dict[str, Any]:
    return {
        **_prompt(item),
        "chosen_id": item.first.sample_id,
        "rejected_id": item.second.sample_id,
        "model_id": item.first.model_id,
        "seed": item.first.seed,
        "weight": item.weight,
        "n_votes": item.n_votes,
    }


def _unpaired(item: Item, sample: Listed, label: bool) -> dict[str, Any]:
    return {**_prompt(item), "label": label, "sample_id": sample.sample_id, **_made_with(sample)}


def _prompt(item: Item) -> dict[str, Any]:
    return {"prompt": item.prompt, "model_prompt": item.model_prompt, "prompt_id": item.prompt_id}


def _made_with(sample: Listed) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in MADE_WITH}


def _digest(file: BinaryIO) -> str:
    digest = sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
