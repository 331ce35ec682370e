"""What a preference model hears in a clip: numbers that can be derived by the clip's codec latents.

They come in groups. Colour, level and movement are of a log-mel spectrogram, rhythm of its onsets, and timbre is the
mean of the codec's latents, whose places have no names.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from msgspec import Struct
from torch.nn import functional

BANDS: Final = 24
LOWEST: Final = 40.0  # Hz
HIGHEST: Final = 7_600.0
FRAMES_PER_SECOND: Final = 100
WINDOW_SECONDS: Final = 0.064
FLOOR: Final = 1e-3  # of a band's magnitude, beside full scale's 1
PARTS: Final = {"bass": (0, 5), "middle": (5, 14), "treble": (14, BANDS), "all": (0, BANDS)}
# Seconds between onsets that repeat, from 240 to 40 beats a minute.
PERIODS: Final = tuple(0.25 * 6 ** (step / 11) for step in range(12))
BLOCK: Final = 10  # frames


class Ear(Struct, frozen=True):
    """Hears audio `[clips, samples]` of a sample rate."""

    sample_rate: int

    @property
    def names(self) -> Mapping[str, list[str]]:
        """The numbers that `hear` returns, by group, in its order."""
        middles = [f"{hertz:.0f} Hz" for hertz in _edges(self._highest)[1:-1].tolist()]
        return {
            "colour": [f"level at {name}" for name in middles],
            "power": [f"share of power at {name}" for name in middles],
            "movement": [f"change at {name}" for name in middles],
            "rhythm": [
                *(f"{what} in {part}" for part in PARTS for what in ("onsets", "onsets' spread", "share of onsets")),
                *(f"repeats after {period:.2f} s" for period in PERIODS),
            ],
            "dynamics": ["loudness", "loudness's spread", "loud against soft"],
        }

    def hear(self, sound: torch.Tensor) -> dict[str, torch.Tensor]:
        """`[clips, numbers]` of each group."""
        return self.describe(self.levels(sound))

    def describe(self, level: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `hear`, of what `levels` returned."""
        mel = level.exp() - FLOOR
        power = mel.square().mean(1) + FLOOR**2
        flux = functional.relu(level[:, 1:] - level[:, :-1])
        return {
            "colour": level.mean(1),
            "power": (power / power.sum(1, keepdim=True)).clamp_min(1e-5).log(),
            "movement": _spread(level),
            "rhythm": _rhythm(flux),
            "dynamics": _dynamics(mel),
        }

    @property
    def _highest(self) -> float:
        return min(HIGHEST, 0.475 * self.sample_rate)

    def levels(self, sound: torch.Tensor) -> torch.Tensor:
        """The log-mel spectrogram `[clips, frames, BANDS]`, FRAMES_PER_SECOND of them."""
        size = 2 ** round(math.log2(WINDOW_SECONDS * self.sample_rate))
        window = torch.hann_window(size, device=sound.device)
        hop = self.sample_rate // FRAMES_PER_SECOND
        spectrum = torch.stft(sound, size, hop, window=window, return_complex=True)
        # The root of a square has no slope at nought.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt() * (2 / window.sum())
        mel = _filters(size, self.sample_rate, self._highest).to(sound.device) @ magnitude
        return (mel.transpose(1, 2) + FLOOR).log()


def _edges(highest: float) -> torch.Tensor:
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (LOWEST, highest))
    mels = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    return 700 * (10 ** (mels / 2595) - 1)


def _filters(size: int, sample_rate: int, highest: float) -> torch.Tensor:
    """Triangles `[BANDS, size / 2 + 1]`."""
    hertz = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)
    edges = _edges(highest)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0).float()


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Along the frames, with a slope where all are alike."""
    return (values.var(1, correction=0) + 1e-8).sqrt()


def _rhythm(flux: torch.Tensor) -> torch.Tensor:
    found = []
    for low, high in PARTS.values():
        onsets = flux[..., low:high].mean(2)
        mean, spread = onsets.mean(1), _spread(onsets)
        # A soft count of the moments that stand out.
        standing = torch.sigmoid(4 * ((onsets - mean[:, None]) / spread[:, None] - 1))
        found += [(mean + 1e-4).log(), (spread / (mean + 1e-4)).log(), standing.mean(1)]
    onsets = flux.mean(2)
    onsets = onsets - onsets.mean(1, keepdim=True)
    length = onsets.shape[1]
    spectrum = torch.fft.rfft(onsets, 2 * length)
    similar = torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), 2 * length)[:, :length]
    similar = similar / (similar[:, :1] + 1e-6)
    for period in PERIODS:
        middle = period * FRAMES_PER_SECOND
        near = slice(round(0.93 * middle), max(round(1.07 * middle), round(0.93 * middle) + 1))
        part = similar[:, near]
        found.append(part.logsumexp(1) if part.shape[1] else similar[:, 0] * 0)
    return torch.stack(found, dim=1)


def _dynamics(mel: torch.Tensor) -> torch.Tensor:
    power = mel.square().sum(2) + FLOOR**2
    blocks = power[:, : power.shape[1] // BLOCK * BLOCK].unfold(1, BLOCK, BLOCK).mean(2).log()
    loud = blocks.sort(1).values
    quarter = max(1, loud.shape[1] // 4)
    apart = loud[:, -quarter:].mean(1) - loud[:, :quarter].mean(1)
    return torch.stack([power.mean(1).log(), _spread(blocks), apart], dim=1)
