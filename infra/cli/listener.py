"""A simulated listener: it prefers the clip that has more of something that can be measured, and errs at times."""

import asyncio
import io
import random
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from text2song.client import AsyncStudio, ClientError

Sound: TypeAlias = NDArray[np.float32]
Preferred: TypeAlias = Literal["left", "right", "tie"]
LEVEL: Final = 0.1  # root mean square, to which every clip is brought before it is measured
BASS: Final = 200.0  # Hz
BLOCK_SECONDS: Final = 0.1
WINDOW_SECONDS: Final = 0.032
HOP_SECONDS: Final = 0.01
QUIET: Final = 1e-2


def brightness(sound: Sound, rate: int) -> float:
    """The mean frequency, in Hz."""
    spectra = _spectra(sound, rate)
    frequencies = np.fft.rfftfreq(2 * (spectra.shape[1] - 1), 1 / rate)
    return float((spectra @ frequencies).sum() / (spectra.sum() + 1e-9))


def bass(sound: Sound, rate: int) -> float:
    """The share of power below 200 Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float(power[np.fft.rfftfreq(len(sound), 1 / rate) < BASS].sum() / (power.sum() + 1e-9))


def dynamics(sound: Sound, rate: int) -> float:
    """The spread of the level's logarithm, over tenths of a second."""
    size = max(1, round(BLOCK_SECONDS * rate))
    blocks = sound[: len(sound) // size * size].reshape(-1, size)
    return float(np.log(np.sqrt((blocks**2).mean(1)) + 1e-4).std()) if len(blocks) else 0.0


def density(sound: Sound, rate: int) -> float:
    """Onsets a second: moments at which the spectrum rises more than it usually does."""
    rises = np.maximum(0, np.diff(np.log(_spectra(sound, rate) + QUIET), axis=0)).sum(1)
    stand_out = rises[1:-1] > rises.mean() + rises.std()
    peaks = stand_out & (rises[1:-1] > rises[:-2]) & (rises[1:-1] > rises[2:])
    return float(peaks.sum() * rate / len(sound))


TASTES: Final[Mapping[str, tuple[Callable[[Sound, int], float], int]]] = {
    "brighter": (brightness, 1),
    "darker": (brightness, -1),
    "bass": (bass, 1),
    "dynamics": (dynamics, 1),
    "denser": (density, 1),
}


class Listener:
    """Errs in a share `errors` of its answers. Which ones follows from the seed and what is asked."""

    def __init__(self, taste: str, errors: float, seed: int) -> None:
        self._measure, self._sign = TASTES[taste]
        self._errors = errors
        self._seed = seed

    async def prefers(self, client: AsyncStudio, left: str, right: str, question: object) -> Preferred:
        """Of two clips by the paths of their WAV files; exactly alike is a tie. Raises ClientError."""
        scores = [await asyncio.to_thread(self._score, path, await client.content(path)) for path in (left, right)]
        if scores[0] == scores[1]:
            return "tie"
        errs = random.Random(f"{self._seed} {question}").random() < self._errors
        return "left" if (scores[0] > scores[1]) != errs else "right"

    def _score(self, path: str, content: bytes) -> float:
        try:
            channels, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ClientError(f"What the studio has at {path} is no WAV file: {error}") from None
        sound = channels.mean(1)
        level = float(np.sqrt((sound**2).mean())) if len(sound) else 0.0
        if level == 0:
            return 0.0
        return self._sign * self._measure((sound * (LEVEL / level)).astype(np.float32), rate)


def _spectra(sound: Sound, rate: int) -> NDArray[np.float64]:
    """Magnitudes `[frames, frequencies]`."""
    size = 2 * round(WINDOW_SECONDS * rate / 2)
    padded = np.pad(sound, (0, max(0, size - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: max(1, round(HOP_SECONDS * rate))]
    magnitudes: NDArray[np.float64] = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))
    return magnitudes
