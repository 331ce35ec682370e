"""Stored audio as an engine needs it: the end of a sample to go on from, and the tones of a melody to follow."""

import asyncio
import hashlib
import io
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import numpy as np
import soundfile

from domain.errors import NotFoundError
from domain.events.jobs import Continuation, Melody
from domain.journal import until_done
from domain.models import Model
from domain.ports import ObjectStore
from workers import chroma
from workers.engine import Opening
from workers.trade import AttemptError

T = TypeVar("T")

LARGEST: Final = 500_000_000  # bytes of a master
LEAD_SECONDS: Final = 1.0
BLOCK: Final = 65_536  # samples at a time


async def opening(objects: ObjectStore, continued: Continuation, model: Model | None) -> Opening:
    """Waits out outages of the object store. Raises AttemptError where trying again cannot help."""
    named = f"Sample {continued.sample_id} cannot be continued"
    way_out = "Put it back, or continue another sample"
    return await _read(objects, continued.storage_path, partial(_end, continued=continued, model=model), named, way_out)


async def melody(objects: ObjectStore, followed: Melody) -> tuple[int, ...]:
    """Its tones. Waits out outages of the object store. Raises AttemptError where trying again cannot help."""
    named = f"Melody {followed.id} cannot be followed"
    way_out = "Put it back, or submit the job again with another melody"
    return await _read(objects, followed.storage_path, partial(_tones, followed=followed), named, way_out)


async def _read(objects: ObjectStore, key: str, read: Callable[[bytes], T], named: str, way_out: str) -> T:
    """`read` raises ValueError, or what soundfile raises, for a file that is not the one that was stored."""
    try:
        flac = await until_done(partial(_fetch, objects, key), "The worker")
    except NotFoundError as error:
        raise AttemptError(f"{named}: its file {error.key!r} is gone from the object store. {way_out}.") from error
    try:
        return await asyncio.to_thread(read, flac)
    except (ValueError, soundfile.LibsndfileError) as error:
        raise AttemptError(f"{named}: its file {key!r} {error}.") from error


async def _fetch(objects: ObjectStore, key: str) -> bytes:
    flac = bytearray()
    async for chunk in objects.read(key):
        flac += chunk
        if len(flac) > LARGEST:
            break
    return bytes(flac)


def _end(flac: bytes, continued: Continuation, model: Model | None) -> Opening:
    """Raises ValueError, or what soundfile raises, for a file that is not the one that was stored."""
    _check(flac, continued.sha256)
    with soundfile.SoundFile(io.BytesIO(flac)) as source:
        made = (source.samplerate, source.channels)
        if model is not None and made != (model.sample_rate, model.channels):
            raise ValueError(
                f"has {made[0]} Hz and {made[1]} channel(s), but the model makes {model.sample_rate} Hz "
                f"and {model.channels}"
            )
        kept = min(round(continued.seconds * source.samplerate), source.frames)
        lead = min(round(LEAD_SECONDS * source.samplerate), source.frames - kept)
        source.seek(source.frames - kept - lead)
        pcm = source.read(dtype="float32", always_2d=True)
    return Opening(pcm=pcm.T.copy(), kept=kept)


def _tones(flac: bytes, followed: Melody) -> tuple[int, ...]:
    """Raises as `_end` does."""
    _check(flac, followed.sha256)
    with soundfile.SoundFile(io.BytesIO(flac)) as source:
        parts = [block.mean(axis=1) for block in source.blocks(BLOCK, dtype="float32", always_2d=True)]
        return chroma.tones(np.concatenate([np.zeros(0, np.float32), *parts]), source.samplerate)


def _check(flac: bytes, sha256: str) -> None:
    if hashlib.sha256(flac).hexdigest() != sha256:
        raise ValueError("is damaged: its SHA-256 is not the one on record")
