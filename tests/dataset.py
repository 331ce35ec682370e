"""Exports of datasets, written without a studio."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from domain.models import NOISE

Sound = NDArray[np.float32]


def write(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    sounds: dict[str, Sound],
    *,
    type_: str = "preference",
    sample_rate: int = NOISE.sample_rate,
    split: str = "train",
) -> Path:
    """`sounds` are `[samples]` by file name. A second call adds another split."""
    place = folder / "data" / split
    (place / "audio").mkdir(parents=True, exist_ok=True)
    for name, sound in sounds.items():
        soundfile.write(place / name, sound.T, sample_rate, subtype="PCM_24")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "metadata.jsonl").write_text(lines)
    files = {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": "text2song-dataset/1",
        "dataset_id": "6f3c",
        "name": "liked",
        "description": "",
        "type": type_,
        "digest": sha256(json.dumps(files).encode()).hexdigest(),
        "filter_query": {},
        "positions": {"feedback/0": 7},
        "agreement": None,
        "exported_at": "2026-11-28T00:00:00Z",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def preference(
    number: int, chosen: str, rejected: str, prompt: str, model: str = NOISE.id, **more: Any
) -> dict[str, Any]:
    return {
        "chosen_file_name": chosen,
        "rejected_file_name": rejected,
        "prompt": prompt,
        "model_prompt": prompt,
        "prompt_id": f"p{number}",
        "chosen_id": chosen,
        "rejected_id": rejected,
        "model_id": model,
        "seed": number,
        "weight": 1,
        "n_votes": 1,
        **more,
    }


def pairs(
    folder: Path,
    prompts: Sequence[str],
    sounds: Sequence[tuple[Sound, Sound]],
    *,
    model: str = NOISE.id,
    sample_rate: int = NOISE.sample_rate,
    **options: Any,
) -> Path:
    """Of each prompt the first sound is preferred to the second."""
    files = {
        f"audio/{number}-{side}.flac": sound
        for number, two in enumerate(sounds)
        for side, sound in zip("ab", two, strict=True)
    }
    rows = [
        preference(number, f"audio/{number}-a.flac", f"audio/{number}-b.flac", prompt, model)
        for number, prompt in enumerate(prompts)
    ]
    return write(folder, rows, files, sample_rate=sample_rate, **options)
