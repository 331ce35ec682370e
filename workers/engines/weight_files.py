"""The files of a folder of weights, whole or in shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from workers.engine import EngineError

STEMS: Final = ("model.safetensors", "pytorch_model.bin")


class ShardIndex(Struct):
    weight_map: dict[str, str]


def weights(name: str, folder: Path, way_out: str, stems: Sequence[str] = STEMS) -> list[Path]:
    """Of the first of these stems that is there. Raises EngineError, in the name of the model."""
    for stem in stems:
        index = folder / f"{stem}.index.json"
        if (folder / stem).exists():
            return [folder / stem]
        if index.exists():
            files = sorted({folder / file for file in _shards(name, index, way_out)})
            missing = [file.name for file in files if not file.exists()]
            if missing:
                raise EngineError(f"Model {name} is incomplete: {missing[0]} is missing in {folder}. {way_out}")
            return files
    raise EngineError(f"Model {name} has no weights: {stems[0]} is missing in {folder}. {way_out}")


def brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _shards(name: str, index: Path, way_out: str) -> set[str]:
    try:
        return set(msgspec.json.decode(index.read_bytes(), type=ShardIndex).weight_map.values())
    except (msgspec.DecodeError, OSError) as error:
        said = f"Model {name} has a broken {index.name}: {brief(error)}. {way_out}"
        raise EngineError(said, transient=isinstance(error, OSError)) from error
