"""The end of a stored sample, as an engine needs it to go on from there."""

import asyncio
import hashlib
import io
from functools import partial
from typing import Final

import soundfile

from domain.errors import NotFoundError
from domain.events.jobs import Continuation
from domain.journal import until_done
from domain.models import Model
from domain.ports import ObjectStore
from workers.engine import Opening
from workers.trade import AttemptError

LARGEST: Final = 500_000_000  # bytes of a master
LEAD_SECONDS: Final = 1.0


async def opening(objects: ObjectStore, continued: Continuation, model: Model | None) -> Opening:
    """Waits out outages of the object store. Raises AttemptError where trying again cannot help."""
    named = f"Sample {continued.sample_id} cannot be continued"
    try:
        flac = await until_done(partial(_fetch, objects, continued), "The worker")
    except NotFoundError as error:
        way_out = "Put it back, or continue another sample"
        raise AttemptError(f"{named}: its file {error.key!r} is gone from the object store. {way_out}.") from error
    try:
        return await asyncio.to_thread(_end, flac, continued, model)
    except (ValueError, soundfile.LibsndfileError) as error:
        raise AttemptError(f"{named}: its file {continued.storage_path!r} {error}.") from error


async def _fetch(objects: ObjectStore, continued: Continuation) -> bytes:
    flac = bytearray()
    async for chunk in objects.read(continued.storage_path):
        flac += chunk
        if len(flac) > LARGEST:
            break
    return bytes(flac)


def _end(flac: bytes, continued: Continuation, model: Model | None) -> Opening:
    """Raises ValueError, or what soundfile raises, for a file that is not the one that was stored."""
    if hashlib.sha256(flac).hexdigest() != continued.sha256:
        raise ValueError("is damaged: its SHA-256 is not the one on record")
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
