"""The tones of a melody as MusicGen's melody models hear them: at each moment, the strongest of the twelve.

The same as transformers' MusicgenMelodyFeatureExtractor makes of the mixed sound. The models were trained on the parts
that Demucs takes for singing and other instruments; without that, drums and bass are heard too. The library cuts a
melody off after 30 s; here it goes on, for windows that come later, so the last moments before that may differ.
"""

from functools import lru_cache
from math import ceil, gcd
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Sound: TypeAlias = NDArray[np.float32]

RATE: Final = 32_000  # in Hz
WINDOW: Final = 16_384  # samples that a moment is heard by
HOP: Final = 4_096  # samples from one moment to the next
TONES: Final = 12
A_BELOW_ALL: Final = 440 / 16  # in Hz
# Low and high frequencies weigh less: a bell around this octave, with this half-width.
CENTRE: Final = 5.0
HALF_WIDTH: Final = 2.0
BLOCK: Final = 64  # moments at a time
# Those of the extractor's resampling: zero crossings on each side, and the share of the frequencies that is kept.
CROSSINGS: Final = 24
ROLLOFF: Final = 0.945
BLOCK_SECONDS: Final = 10


def tones(pcm: Sound, rate: int) -> tuple[int, ...]:
    """Of mono `[samples]` at `rate` Hz, the strongest tone of each moment: 0 for C to 11 for B. In silence it is C.

    Moments are HOP / RATE seconds apart, the first at the beginning.
    """
    sound = resample(pcm, rate, RATE)
    if (lacking := WINDOW - len(sound)) > 0:
        sound = np.pad(sound, (lacking // 2, lacking - lacking // 2))
    sound = np.pad(sound, WINDOW // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    bell = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    found: list[int] = []
    for start in range(0, len(windows), BLOCK):
        power = np.abs(np.fft.rfft(windows[start : start + BLOCK] * bell)) ** 2
        found += np.argmax(power @ filters().T, axis=1).tolist()
    return tuple(found)


@lru_cache(maxsize=1)
def filters() -> NDArray[np.float64]:
    """`[tones, frequencies]`: how much of each frequency's power belongs to each tone."""
    frequencies = np.linspace(0, RATE, WINDOW, endpoint=False)[1:]
    places = TONES * np.log2(frequencies / A_BELOW_ALL)
    # A place for 0 Hz, an octave and a half below the next one.
    places = np.concatenate([[places[0] - 1.5 * TONES], places])
    widths = np.concatenate([np.maximum(np.diff(places), 1.0), [1.0]])
    apart = places - np.arange(TONES)[:, None]
    apart = np.remainder(apart + TONES / 2 + 10 * TONES, TONES) - TONES / 2
    weights = np.exp(-0.5 * (2 * apart / widths) ** 2)
    weights /= np.sqrt((weights**2).sum(axis=0, keepdims=True))
    weights *= np.exp(-0.5 * ((places / TONES - CENTRE) / HALF_WIDTH) ** 2)
    # From A to C, and without the half of the frequencies that mirrors the other.
    return np.ascontiguousarray(np.roll(weights, -3, axis=0)[:, : WINDOW // 2 + 1])


def resample(pcm: Sound, source: int, target: int) -> Sound:
    """As torchaudio does it with a Hann-windowed sinc. `[samples]`, rates in Hz."""
    if source == target:
        return pcm
    divisor = gcd(source, target)
    source, target = source // divisor, target // divisor
    kernels, reach = _kernels(source, target)
    length = ceil(target * len(pcm) / source)
    padded = np.pad(pcm, (reach, reach + source))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])[::source]
    step = max(1, BLOCK_SECONDS * RATE // target)
    parts = [windows[start : start + step] @ kernels.T for start in range(0, len(windows), step)]
    return np.concatenate(parts).reshape(-1)[:length]


@lru_cache(maxsize=4)
def _kernels(source: int, target: int) -> tuple[Any, int]:
    """For each of the `target` samples that are made of `source` ones, what it takes of those around."""
    limit = min(source, target) * ROLLOFF
    reach = ceil(CROSSINGS * source / limit)
    times = np.arange(-reach, reach + source)[None] / source - np.arange(target)[:, None] / target
    times = np.clip(times * limit, -CROSSINGS, CROSSINGS)
    bell = np.cos(times * np.pi / CROSSINGS / 2) ** 2
    return (np.sinc(times) * bell * limit / source).astype(np.float32), reach
