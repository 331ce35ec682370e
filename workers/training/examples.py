"""Reads an exported dataset: who preferred what, and where its sound lies. The files came from elsewhere: each is
checked before it is used, and the rows that cannot be used are left out by name.
"""

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np
import soundfile
from msgspec import Meta, Struct
from numpy.typing import NDArray

from workers.training.errors import TrainingError

FORMAT: Final = "text2song-dataset/1"
MANIFEST: Final = "manifest.json"
SPLITS: Final = ("train", "test")
METADATA: Final = "metadata.jsonl"
LARGEST_AUDIO: Final = 200_000_000  # bytes
LARGEST_METADATA: Final = 1_000_000_000
WELL_RATED: Final = 4.0
NAMED: Final = 5
# Of a name that leads to no file, whatever the disk does.
NO_FILE: Final = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
SAFE: Final = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[^/\\\0][^\\\0]{0,500}")

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=10_000)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=500)]
Digest: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Manifest(Struct, frozen=True, kw_only=True):
    """What training needs to know of an export. `positions` says up to where the log was read."""

    format: str
    type: str
    dataset_id: str = ""
    name: str = ""
    digest: str = ""
    positions: Any = None
    files: dict[str, Digest] = {}


class Row(Struct, frozen=True, kw_only=True):
    """A line of metadata.jsonl, of any type of dataset."""

    prompt: Text
    model_prompt: Text | None = None
    prompt_id: Name | None = None
    model_id: Name | None = None
    file_name: Name | None = None
    sample_id: Name | None = None
    sha256: Digest | None = None
    rating_mean: Annotated[float, Meta(ge=0, le=5)] | None = None
    label: bool | None = None
    chosen_file_name: Name | None = None
    rejected_file_name: Name | None = None
    chosen_id: Name | None = None
    rejected_id: Name | None = None
    weight: Annotated[float, Meta(ge=0, le=1e6)] = 1.0


class Clip(Struct, frozen=True, kw_only=True):
    """`prompt` is what the model was given, `group` stands for it in splits; `file` is relative to the folder."""

    prompt: str
    group: str
    file: str
    sha256: str | None = None


class Pair(Struct, frozen=True, kw_only=True):
    """Two clips of one prompt. `weight` is how many votes more the chosen had."""

    chosen: Clip
    rejected: Clip
    weight: float = 1.0

    @property
    def group(self) -> str:
        return self.chosen.group


class Examples(Struct, frozen=True, kw_only=True):
    """`pairs` and `clips` (rated well) are to be learnt from, the held-out ones only to be judged by. `left_out` says
    why rows are not among them.
    """

    folder: Path
    manifest: Manifest
    pairs: Sequence[Pair]
    held_pairs: Sequence[Pair]
    clips: Sequence[Clip]
    held_clips: Sequence[Clip]
    rows: int
    models: Sequence[str]
    left_out: list[str]


def read(folder: Path) -> Examples:
    """Reads all but the sound. Raises TrainingError for a folder that is no export, or has no rows."""
    manifest = read_manifest(folder)
    left_out: list[str] = []
    rows = {split: list(_rows(folder, split, left_out)) for split in SPLITS}
    if not rows["train"]:
        raise TrainingError(
            f"{folder / 'data' / 'train' / METADATA} has no rows that can be used{_because(left_out)}. "
            "Build the dataset with a wider filter, and export it again."
        )
    tested = {_group(row) for row in rows["test"]}
    for row in [row for row in rows["train"] if _group(row) in tested]:
        rows["train"].remove(row)
        left_out.append(f"prompt {row.prompt_id or row.prompt[:40]!r} is in both splits")
    found: dict[str, tuple[list[Pair], list[Clip]]] = {
        split: (_pairs(split, rows[split], manifest, left_out), list(_clips(split, rows[split], manifest)))
        for split in SPLITS
    }
    return Examples(
        folder=folder,
        manifest=manifest,
        pairs=found["train"][0],
        held_pairs=found["test"][0],
        clips=found["train"][1],
        held_clips=found["test"][1],
        rows=len(rows["train"]) + len(rows["test"]),
        models=sorted({row.model_id for split in SPLITS for row in rows[split] if row.model_id is not None}),
        left_out=left_out,
    )


def base_model(examples: Examples) -> str:
    """The model that made the clips. Raises TrainingError where they are of none, or of several."""
    if len(examples.models) == 1:
        return examples.models[0]
    found = ", ".join(examples.models[:NAMED]) or "none"
    raise TrainingError(f"The clips name these models: {found}. Say which one to train as the base model.")


def sound(folder: Path, clip: Clip, sample_rate: int, channels: int) -> NDArray[np.float32]:
    """`[channels, samples]`. Raises ValueError saying what is wrong with the file, and TrainingError where the disk
    does not give it.
    """
    path = folder / clip.file
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("leads out of the dataset's folder")
        if path.stat().st_size > LARGEST_AUDIO:
            raise ValueError(f"has over {LARGEST_AUDIO:,} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except OSError as error:
        if error.errno in NO_FILE:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        raise _unread(path, error) from None
    if clip.sha256 is not None and sha256(data).hexdigest() != clip.sha256:
        raise ValueError("is damaged: its SHA-256 is not the one of the manifest")
    try:
        pcm, rate = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError):
        raise ValueError("is no audio that can be read") from None
    if rate != sample_rate:
        raise ValueError(f"has {rate} Hz; the base model needs {sample_rate} Hz")
    if not len(pcm) or not np.isfinite(pcm).all():
        raise ValueError("is empty" if not len(pcm) else "has samples that are not finite")
    if pcm.shape[1] != channels:
        pcm = np.repeat(pcm.mean(1, keepdims=True), channels, axis=1)
    return np.ascontiguousarray(pcm.T)


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    way_out = "Name a folder that `text2song dataset export` or an unpacked export has made."
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise TrainingError(f"There is no {MANIFEST} in {folder}. {way_out}") from None
    except OSError as error:
        if error.errno in NO_FILE:
            raise TrainingError(f"{path} cannot be read: {error.strerror}. {way_out}") from None
        raise _unread(path, error) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is no manifest: {str(error).rstrip('.')}. {way_out}") from None
    if manifest.format != FORMAT:
        raise TrainingError(f"{path} is of format {manifest.format[:80]!r}; this version reads {FORMAT!r}. {way_out}")
    return manifest


def _rows(folder: Path, split: str, left_out: list[str]) -> Iterator[Row]:
    path = folder / "data" / split / METADATA
    try:
        if path.stat().st_size > LARGEST_METADATA:
            raise TrainingError(f"{path} has over {LARGEST_METADATA:,} bytes; export a smaller dataset.")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield msgspec.json.decode(line, type=Row)
                    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                        left_out.append(f"{split} line {number}: {str(error).rstrip('.')}")
    except FileNotFoundError:
        if split == "train":
            raise TrainingError(f"There is no {path}. Export the dataset again.") from None
    except OSError as error:
        if error.errno in NO_FILE:
            raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{path} cannot be read: {error.strerror}. Mend the disk and try again.", transient=True)


def _group(row: Row) -> str:
    return row.prompt_id or row.model_prompt or row.prompt


def _clip(split: str, row: Row, name: str, manifest: Manifest) -> Clip:
    file = f"data/{split}/{name}"
    return Clip(
        prompt=row.model_prompt or row.prompt,
        group=_group(row),
        file=file,
        sha256=manifest.files.get(file) or (row.sha256 if name == row.file_name else None),
    )


def _pairs(split: str, rows: Sequence[Row], manifest: Manifest, left_out: list[str]) -> list[Pair]:
    """Votes of opposite kinds on the same two clips are set off against each other."""
    found: dict[tuple[str, str], Pair] = {}
    for row in rows:
        names = row.chosen_file_name, row.rejected_file_name
        if names[0] is None or names[1] is None:
            continue
        if unsafe := [name for name in names if name is not None and not SAFE.fullmatch(name)]:
            left_out.append(f"{unsafe[0][:80]!r} leads out of the dataset's folder")
            continue
        chosen, rejected = (_clip(split, row, str(name), manifest) for name in names)
        if chosen.file == rejected.file or (chosen.sha256 is not None and chosen.sha256 == rejected.sha256):
            left_out.append(f"{names[0]} is preferred to its own sound")
            continue
        weight = found.pop((chosen.file, rejected.file), Pair(chosen=chosen, rejected=rejected, weight=0.0)).weight
        against = found.pop((rejected.file, chosen.file), None)
        weight += row.weight - (against.weight if against else 0.0)
        if weight > 0:
            found[chosen.file, rejected.file] = Pair(chosen=chosen, rejected=rejected, weight=weight)
        elif weight < 0:
            found[rejected.file, chosen.file] = Pair(chosen=rejected, rejected=chosen, weight=-weight)
        else:
            left_out.append(f"{names[0]} and {names[1]} are preferred to each other by as many")
    return list(found.values()) or list(_rated_apart(split, rows, manifest))


def _rated_apart(split: str, rows: Sequence[Row], manifest: Manifest) -> Iterator[Pair]:
    """Of ratings: the best of each prompt beside each that is rated at least one star less."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        if row.rating_mean is not None and row.file_name is not None and SAFE.fullmatch(row.file_name):
            of.setdefault(_group(row), []).append(row)
    for same in of.values():
        best = max(same, key=lambda row: row.rating_mean or 0.0)
        for row in same:
            if (best.rating_mean or 0.0) - (row.rating_mean or 0.0) >= 1:
                chosen, rejected = (_clip(split, each, str(each.file_name), manifest) for each in (best, row))
                yield Pair(chosen=chosen, rejected=rejected)


def _clips(split: str, rows: Iterable[Row], manifest: Manifest) -> Iterator[Clip]:
    """What was rated well, labelled good, or preferred."""
    seen = set()
    for row in rows:
        is_good = row.label or (row.rating_mean or 0.0) >= WELL_RATED
        name = row.chosen_file_name or (row.file_name if is_good else None)
        if name is not None and name not in seen and SAFE.fullmatch(name):
            seen.add(name)
            yield _clip(split, row, name, manifest)


def _because(left_out: Sequence[str]) -> str:
    return f": {'; '.join(left_out[:NAMED])}" if left_out else ""
