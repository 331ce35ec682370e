"""What of a training's result goes to the log, and the samples that it names."""

import asyncio
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from domain.events.prompts import MAX_TEXT
from domain.events.trainings import MAX_POINTS, CurvePoint, SampleFile, TrainingSample
from domain.journal import until_done
from domain.ports import ObjectStore
from domain.trainings import Training, sample_path
from workers.training.result import Result, Sample


async def sample(training: Training, objects: ObjectStore, made: Sample, output: Path) -> TrainingSample:
    """Of which both files have been stored."""
    stored = []
    for name in (made.before, made.after):
        content = await asyncio.to_thread((output / name).read_bytes)
        digest = sha256(content).hexdigest()
        key = sample_path(training.id, training.attempt, digest)
        await until_done(partial(objects.put, key, content, replace=False), "The trainer")
        stored.append(SampleFile(size=len(content), sha256=digest))
    before, after = stored
    return TrainingSample(
        prompt=made.prompt[:MAX_TEXT],
        seed=made.seed,
        duration_seconds=made.seconds,
        is_held_out=made.is_held_out,
        before=before,
        after=after,
    )


def curve(points: Sequence[dict[str, float]]) -> tuple[CurvePoint, ...]:
    """Of all points as many as an event may have, evenly, with the last one."""
    every = -(-len(points) // MAX_POINTS) or 1
    kept = points[::-1][::every][::-1]
    return tuple(
        CurvePoint(step=round(point["step"]), values=sound({n: v for n, v in point.items() if n != "step"}))
        for point in kept
    )


def sound(values: Any) -> dict[str, float]:
    return {name: value for name, value in list(values.items())[:20] if abs(value) < 1e15}


def described(result: Result) -> dict[str, str | float | bool | None]:
    """The lineage: what it was trained with, and on what."""
    positions = result.dataset.get("positions")
    return {
        **msgspec.structs.asdict(result.config),
        "code_version": result.code_version,
        "dataset_digest": str(result.dataset.get("digest")),
        "dataset_positions": msgspec.json.encode(positions).decode()[:1_000],
        "dataset_rows": result.dataset.get("rows"),
        "weights_sha256": result.sha256,
        **({"hears": ", ".join(each["words"] for each in result.hears)[:1_000]} if result.hears else {}),
    }
