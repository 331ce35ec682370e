"""Sound as a picture and back, as Riffusion draws it.

A picture is `[512, columns]` of 0 to 255: a column is 10 ms, a row a band of 0 to 10,000 Hz on the mel scale, the
highest on top. 255 is silence, and the darker, the louder.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from workers.engines.diffusion.calls import Sound

Picture: TypeAlias = NDArray[np.float32]

RATE: Final = 44_100
ROWS: Final = 512
TOP_HZ: Final = 10_000
# There is nothing above the highest band: phases are sought at this rate, in a fraction of the time.
LOW_RATE: Final = 2 * TOP_HZ
# In samples, a column.
HOP: Final = RATE // 100

POWER: Final = 0.25
LOUDEST: Final = 30e6
ITERATIONS: Final = 32
MOMENTUM: Final = 0.99
# In columns: a transform of a longer picture would not fit into memory, so its parts are faded into each other.
PART: Final = 1024
FADE: Final = 32

THRESHOLD_DB: Final = -20.0
RATIO: Final = 4.0
ATTACK: Final = RATE * 5 // 1000
RELEASE: Final = RATE * 50 // 1000
LEVEL_DB: Final = -12.0


def picture(sound: Sound) -> Picture:
    """Of a sound of one channel, `[samples]`."""
    samples = torch.from_numpy(np.ascontiguousarray(sound, dtype=np.float32))
    bands = _bands().T @ _transform(samples, RATE).abs()[: len(_bands()), : len(sound) // HOP]
    share = (bands / bands.max().clamp(min=1e-9)) ** POWER
    drawn: Picture = (255 * (1 - share)).flip(0).numpy()
    return drawn


def sound(picture: Picture, device: torch.device | str = "cpu", between: Callable[[], None] = lambda: None) -> Sound:
    """The sound of a picture, `[samples]`, compressed and at an even level. Calls `between` before each part of it.

    The phases, which it does not show, are found by Griffin and Lim's way from the same random ones each time.
    """
    columns = picture.shape[1]
    hop = LOW_RATE // 100
    whole = np.zeros(columns * hop, np.float32)
    for start in range(0, max(1, columns - FADE), PART - FADE):
        between()
        part = _part(picture[:, start : start + PART], device)
        if start:
            fade = np.linspace(0, 1, FADE * hop, dtype=np.float32)
            part[: FADE * hop] *= fade
            whole[start * hop :][: FADE * hop] *= 1 - fade
        whole[start * hop :][: len(part)] += part
    return _leveled(resample_poly(whole, RATE, LOW_RATE).astype(np.float32))


def _part(picture: Picture, device: torch.device | str) -> Sound:
    rows = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).to(device).flip(0)
    bands = (1 - rows / 255) ** (1 / POWER) * LOUDEST
    magnitudes = (_spread().to(device) @ bands).clamp(min=0)
    magnitudes = torch.nn.functional.pad(magnitudes, (0, 1), mode="replicate")
    dice = torch.Generator("cpu").manual_seed(0)
    phases = torch.rand(magnitudes.shape, generator=dice).to(device) * 2 * torch.pi
    turned, before = torch.polar(torch.ones_like(phases), phases), torch.zeros((), device=device)
    share = MOMENTUM / (1 + MOMENTUM)
    for _ in range(ITERATIONS):
        rebuilt = _transform(_inverse(magnitudes * turned), LOW_RATE)
        turned = rebuilt - share * before
        turned = turned / (turned.abs() + 1e-16)
        before = rebuilt
    made: Sound = _inverse(magnitudes * turned).cpu().numpy()
    return made


def _leveled(sound: Sound) -> Sound:
    sound = sound / max(1e-9, np.abs(sound).max())
    power = uniform_filter1d(np.square(sound, dtype=np.float64), ATTACK, mode="nearest")
    over = np.maximum(0, 10 * np.log10(np.maximum(power, 1e-12)) - THRESHOLD_DB)
    sound = sound * 10 ** (-uniform_filter1d(over * (1 - 1 / RATIO), RELEASE, mode="nearest") / 20)
    level = np.sqrt(np.mean(np.square(sound)))
    return np.asarray(sound * 10 ** (LEVEL_DB / 20) / max(1e-9, level), np.float32)


def _sizes(rate: int, device: torch.device) -> tuple[int, int, int, torch.Tensor]:
    """Of a transform: 400 ms, of which 100 are seen, every 10."""
    return rate * 2 // 5, rate // 100, rate // 10, torch.hann_window(rate // 10, device=device)


def _transform(sound: torch.Tensor, rate: int) -> torch.Tensor:
    return torch.stft(sound, *_sizes(rate, sound.device), pad_mode="constant", return_complex=True)


def _inverse(transform: torch.Tensor) -> torch.Tensor:
    return torch.istft(transform, *_sizes(LOW_RATE, transform.device))


@lru_cache(maxsize=1)
def _bands() -> torch.Tensor:
    """`[frequencies, rows]`: the triangles of the mel scale as HTK has it, each of height one."""
    frequencies = torch.linspace(0, TOP_HZ, LOW_RATE // 5 + 1, dtype=torch.float64)
    mels = torch.linspace(0, 2595 * np.log10(1 + TOP_HZ / 700), ROWS + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    triangles: torch.Tensor = torch.minimum(rising, falling).clamp(min=0).float()
    return triangles


@lru_cache(maxsize=1)
def _spread() -> torch.Tensor:
    """`[frequencies, rows]`: of all spectra that have these bands, the one of the least energy."""
    bands = _bands().double()
    spread: torch.Tensor = torch.linalg.solve(bands.T @ bands, bands.T).T.float()
    return spread
