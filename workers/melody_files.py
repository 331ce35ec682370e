"""Reads an uploaded clip to find out whether it is audio that can be followed, and writes it as it is kept."""

from hashlib import file_digest
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import soundfile
from msgspec import Struct

from domain.errors import Fault, InvalidError, plain
from domain.melodies import MAX_CHANNELS, RATES, SECONDS

BLOCK: Final = 65_536  # samples at a time
FORMATS: Final = "WAV, FLAC, MP3, Ogg Vorbis or AIFF"


class Kept(Struct, frozen=True, kw_only=True):
    """As in Upload."""

    duration_seconds: float
    sample_rate: int
    size: int
    sha256: str


def keep(source: Path, target: Path) -> Kept:
    """Writes the clip of `source` to `target` as mono FLAC at its own rate. The same sound gives the same bytes.

    Raises InvalidError for what is no audio, or is out of bounds.
    """
    try:
        with soundfile.SoundFile(source) as sound:
            _check(sound)
            samples = _write(sound, target)
            rate = sound.samplerate
    except soundfile.LibsndfileError as error:
        _say(f"The file cannot be read as audio: {str(error.error_string).rstrip('.')}. Send {FORMATS}.")
    if not SECONDS[0] <= samples / rate:
        _say(f"The clip has {plain(round(samples / rate, 3))} s; at least {plain(SECONDS[0])} s can be followed.")
    with target.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return Kept(duration_seconds=samples / rate, sample_rate=rate, size=target.stat().st_size, sha256=digest)


def _check(sound: soundfile.SoundFile) -> None:
    low, high = RATES
    if not low <= sound.samplerate <= high:
        _say(f"The clip has a sample rate of {sound.samplerate:,} Hz; it can be from {low:,} to {high:,} Hz.")
    if sound.channels > MAX_CHANNELS:
        _say(f"The clip has {sound.channels:,} channels; it can have up to {MAX_CHANNELS}. Mix it to stereo.")


def _write(sound: soundfile.SoundFile, target: Path) -> int:
    """The samples that were written. A header may say anything, so they are counted."""
    samples, longest = 0, SECONDS[1]
    with soundfile.SoundFile(target, "w", sound.samplerate, 1, "PCM_16", format="FLAC") as file:
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            samples += len(block)
            if samples > longest * sound.samplerate:
                _say(f"The clip has more than {plain(longest)} s, which is the limit. Send the part to follow.")
            if not np.isfinite(block).all():
                _say("The clip has samples that are not finite. Save it again as 16-bit WAV or FLAC.")
            file.write(block.mean(axis=1).clip(-1, 1))
    return samples


def _say(detail: str) -> NoReturn:
    raise InvalidError([Fault("/file", detail)])
