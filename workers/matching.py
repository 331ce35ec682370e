"""Makes the two sides of a blind trial alike in everything but the music."""

import io
from collections.abc import Sequence
from math import inf
from typing import Final, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from domain.errors import DamagedError
from workers.mastering import FADE_SECONDS, LOUDNESS_BLOCK, loudness

Pcm: TypeAlias = NDArray[np.float32]  # [channels, samples]

# Music quieter than this is as good as silence. The other side is not turned down to it: nobody could hear either.
SILENT_LUFS: Final = -50.0
CEILING: Final = 10 ** (-1 / 20)  # -1 dBTP
TOLERANCE_LU: Final = 0.05
ROUNDS: Final = 4
OVERSAMPLING: Final = 4
MAX_CHANNELS: Final = 5  # whose loudness the standard defines
BLOCK: Final = 65_536
MARGIN: Final = 16  # samples that the oversampling filter reads beyond a block


def matched(one: bytes, other: bytes) -> tuple[bytes, bytes]:
    """Two masters as 16-bit WAV without tags, of one length, sample rate and channel count, so of as many bytes.

    Both are as loud as the quieter one (ITU-R BS.1770), or softer where a peak between samples would pass -1 dBTP, and
    both end where the shorter one does. Where one is silent the other keeps its loudness. Raises DamagedError for what
    is no audio.
    """
    masters = [_decoded(flac) for flac in (one, other)]
    rate = max(found for _, found in masters)
    sides = _alike([_resampled(pcm, found, rate) for pcm, found in masters], rate)
    first, second = (_wav(side * np.float32(gain), rate) for gain, side in zip(_gains(sides, rate), sides, strict=True))
    return first, second


def true_peak(pcm: Pcm) -> float:
    """The highest peak between samples, at four times the sample rate (ITU-R BS.1770, annex 2)."""
    from scipy.signal import resample_poly  # noqa: PLC0415

    peak = float(np.abs(pcm).max(initial=0.0))
    for start in range(0, pcm.shape[1], BLOCK):
        block = pcm[:, max(0, start - MARGIN) : start + BLOCK + MARGIN]
        peak = max(peak, float(np.abs(resample_poly(block, OVERSAMPLING, 1, axis=1)).max()))
    return peak


def _decoded(flac: bytes) -> tuple[Pcm, int]:
    try:
        frames, rate = soundfile.read(io.BytesIO(flac), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DamagedError(f"A side of a trial is no audio: {error.error_string}") from None
    if frames.shape[1] > MAX_CHANNELS:
        raise DamagedError(f"A side of a trial has {frames.shape[1]} channels; the limit is {MAX_CHANNELS}.")
    return frames.T, rate


def _resampled(pcm: Pcm, rate: int, wanted: int) -> Pcm:
    if rate == wanted:
        return pcm
    from scipy.signal import resample_poly  # noqa: PLC0415

    resampled: Pcm = resample_poly(pcm, wanted, rate, axis=1).astype(np.float32)
    return resampled


def _alike(sides: Sequence[Pcm], rate: int) -> list[Pcm]:
    """Of one length and channel count. Where one is cut both fade out, as a fade would tell which one it was."""
    channels = max(len(side) for side in sides)
    length = min(side.shape[1] for side in sides)
    is_cut = any(side.shape[1] > length for side in sides)
    fade = min(round(FADE_SECONDS * rate), length) if is_cut else 0
    alike = []
    for side in sides:
        mixed = side if len(side) == channels else np.tile(side.mean(axis=0), (channels, 1))
        cut = mixed[:, :length].copy()
        if fade:
            cut[:, -fade:] *= np.cos(np.linspace(0, np.pi / 2, fade, dtype=np.float32)) ** 2
        alike.append(cut)
    return alike


def _gains(sides: Sequence[Pcm], rate: int) -> list[float]:
    """What each side is turned down by: none is turned up."""
    gains = [1.0] * len(sides)
    levels = [_loudness(side, rate) for side in sides]
    if min(levels) > SILENT_LUFS:
        # More than once: softer music has fewer passages above the gate, so its loudness falls by less than its gain.
        for _ in range(ROUNDS):
            target = min(levels)
            if max(levels) - target <= TOLERANCE_LU:
                break
            gains = [gain * 10 ** ((target - level) / 20) for gain, level in zip(gains, levels, strict=True)]
            levels = [_loudness(side * np.float32(gain), rate) for gain, side in zip(gains, sides, strict=True)]
    peak = max(gain * true_peak(side) for gain, side in zip(gains, sides, strict=True))
    return [gain * min(1.0, CEILING / max(peak, CEILING)) for gain in gains]


def _loudness(pcm: Pcm, rate: int) -> float:
    """In LUFS, or the power in dB of clips that are too short for it; minus infinity for silence."""
    if pcm.shape[1] >= LOUDNESS_BLOCK * rate:
        level = loudness(pcm, rate)
        return -inf if level is None else level
    power = float(np.square(pcm, dtype=np.float64).sum(axis=0).mean()) if pcm.size else 0.0
    return 10 * float(np.log10(power)) if power else -inf


def _wav(pcm: Pcm, rate: int) -> bytes:
    buffer = io.BytesIO()
    frames = np.rint(np.clip(pcm.T, -1, 1) * 32_767).astype(np.int16)
    soundfile.write(buffer, frames, rate, "PCM_16", format="WAV")
    return buffer.getvalue()
