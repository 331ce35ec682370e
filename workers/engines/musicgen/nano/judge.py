"""Hears what is in a clip: its tempo by its onsets, its lead, drums and mode by networks that learnt from songs.

No codec and no language model takes part in their training, so they judge what those make.
"""

import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from workers.engines.musicgen.nano.instruments import RATE, Signal
from workers.engines.musicgen.nano.songs import FASTEST, LEADS, MODES, SLOWEST, Song, compose, play
from workers.engines.musicgen.nano.spectra import pitch_classes, spectrum

HOP: Final = 160
BANDS: Final = 64
FIRST: Final = 9_000_000
CLIPS: Final = 2_400
EPOCHS: Final = 12
BATCH: Final = 32
PITCH_WINDOW: Final = 8192
# Within the first bar of the fastest song: the tonic's chord, which tells a major key from its relative minor.
OPENING: Final = 1.7
TOLERANCE: Final = 0.05
# An echo after a beat is heard again after two and four, and often after a half.
MULTIPLES: Final = ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (0.5, 0.5))


class Verdict(Struct, frozen=True):
    tempo: float
    lead: str
    drums: bool
    mode: str


def tempo(audio: Signal) -> float:
    """Beats per minute, between those of the slowest and the fastest song."""
    envelope = onsets(audio)
    size = 1 << (2 * len(envelope)).bit_length()
    power = np.abs(np.fft.rfft(envelope, size)) ** 2
    echo = np.fft.irfft(power, size)[: len(envelope)]
    # An unbiased estimate: long lags have fewer products.
    echo = echo / (len(envelope) - np.arange(len(envelope)))
    candidates = np.arange(SLOWEST, FASTEST + 0.25, 0.25)
    beats = RATE / HOP * 60 / candidates
    score = np.sum([weight * _at(echo, beats * multiple) for multiple, weight in MULTIPLES], axis=0)
    return float(candidates[np.argmax(score)])


def onsets(audio: Signal) -> Signal:
    """How much louder the bands get from one hundredth of a second to the next, zero on average."""
    levels = np.log1p(300 * bands(audio))
    rise = np.maximum(0, levels[:, 2:] - levels[:, :-2]).sum(0)
    smooth = np.convolve(rise, np.hanning(7) / 3, "same")
    return np.asarray(smooth - smooth.mean(), np.float32)


def _at(echo: NDArray[np.floating[Any]], lags: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(np.interp(lags, np.arange(len(echo)), echo))


_EDGES: Final = 40 * (7600 / 40) ** (np.arange(BANDS + 1) / BANDS)


def bands(audio: Signal) -> Signal:
    """Magnitudes `[BANDS, frames]` of bands of equal musical width, a frame every HOP samples."""
    size = 1024
    magnitude = spectrum(torch.from_numpy(np.ascontiguousarray(audio)), size, HOP).numpy()
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    place = np.clip(np.searchsorted(_EDGES, frequency, "right") - 1, 0, BANDS - 1)
    weights = (place[None] == np.arange(BANDS)[:, None]) / (np.bincount(place, minlength=BANDS)[:, None] + 1e-9)
    return np.asarray(weights @ magnitude / size, np.float32)


class Judge(nn.Module):
    """Convolutions over bands and over time, and then three opinions on what the whole clip has."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.lead = nn.Linear(2 * widths[-1] * BANDS // 16, len(LEADS))
        self.drums = nn.Linear(2 * widths[-1] * BANDS // 16, 2)
        self.pitches = nn.Sequential(
            nn.Conv1d(4, 48, 12), nn.ReLU(), nn.Conv1d(48, 48, 1), nn.ReLU(), nn.Conv1d(48, 2, 1)
        )

    def forward(self, levels: torch.Tensor, chroma: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores of the leads, of drums absent and present, and of the modes.

        `levels` are `[clips, BANDS, frames]`, `chroma` `[clips, 4, 12]`, as they are heard.
        """
        seen = self.features(levels[:, None]).flatten(1, 2)
        whole = torch.cat([seen.mean(-1), seen.amax(-1)], dim=1)
        # Each rotation is heard as the key of that tonic, so that what is learnt in one key holds in all.
        around = self.pitches(torch.cat([chroma, chroma[..., :-1]], dim=-1))
        return self.lead(whole), self.drums(whole), around.logsumexp(-1)

    @classmethod
    def trained(cls, path: Path) -> "Judge":
        """From the file, or taught on songs and kept there."""
        judge = cls()
        if path.exists():
            judge.load_state_dict(torch.load(path, weights_only=True))
            return judge.eval()
        torch.manual_seed(0)
        songs = [compose(seed) for seed in range(FIRST, FIRST + CLIPS)]
        with multiprocessing.get_context("spawn").Pool() as pool:
            heard = pool.map(_hear, songs, chunksize=50)
        levels, chroma = (torch.from_numpy(np.stack(part)) for part in zip(*heard, strict=True))
        wanted = torch.tensor([[LEADS.index(s.lead), int(s.drums), MODES.index(s.mode)] for s in songs])
        steps = EPOCHS * CLIPS // BATCH
        optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(CLIPS, (BATCH,))
            scores = judge(_worn(levels[chosen]), chroma[chosen] + 0.02 * torch.rand(BATCH, 4, 12))
            losses = [functional.cross_entropy(score, wanted[chosen, part]) for part, score in enumerate(scores)]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        torch.save(judge.state_dict(), path)
        return judge.eval()

    @torch.inference_mode()
    def listen(self, audio: Signal) -> Verdict:
        levels, chroma = hear(audio)
        lead, drums, mode = (int(score.argmax()) for score in self(levels[None], chroma[None]))
        return Verdict(tempo(audio), LEADS[lead], bool(drums), MODES[mode])


def right(verdict: Verdict, song: Song) -> dict[str, bool]:
    """What of the song was heard; `tempo_octave` also takes half and twice the tempo."""
    ratio = verdict.tempo / song.tempo
    return {
        "tempo": abs(ratio - 1) < TOLERANCE,
        "tempo_octave": any(abs(ratio * factor - 1) < TOLERANCE for factor in (0.5, 1, 2)),
        "drums": verdict.drums == song.drums,
        "lead": verdict.lead == song.lead,
        "mode": verdict.mode == song.mode,
    }


def hear(audio: Signal) -> tuple[torch.Tensor, torch.Tensor]:
    """Log levels `[BANDS, frames]`, 25 a second, and chroma `[4, 12]`.

    The chroma is that of the bass and of the rest, over the whole clip, and then of both at its opening.
    """
    levels = np.log(bands(audio) + 1e-4)
    levels = levels[:, : levels.shape[1] // 4 * 4].reshape(BANDS, -1, 4).mean(-1)
    levels = (levels - levels.mean()) / (levels.std() + 1e-6)
    sizes = spectrum(torch.from_numpy(np.ascontiguousarray(audio)), PITCH_WINDOW).sqrt()
    parts = torch.stack([pitch_classes(sizes, low, high) for low, high in ((50, 170), (170, 1500))])
    opening = round(OPENING * RATE / (PITCH_WINDOW // 4))
    chroma = torch.cat([parts.sum(-1), parts[..., :opening].sum(-1)])
    return torch.from_numpy(levels).float(), functional.normalize(chroma, dim=1)


def _hear(song: Song) -> tuple[Signal, Signal]:
    torch.set_num_threads(1)
    levels, chroma = hear(play(song))
    return levels.numpy(), chroma.numpy()


def _worn(levels: torch.Tensor) -> torch.Tensor:
    """As if through a poor medium: coloured, noisy, and smeared in time, so that no fine detail decides."""
    clips, bands, _ = levels.shape
    colour = functional.interpolate(torch.randn(clips, 1, 8), bands, mode="linear")[:, 0, :, None]
    smeared = functional.avg_pool1d(levels, 3, 1, 1, count_include_pad=False)
    share = torch.rand(clips, 1, 1)
    return (
        levels * (1 - share)
        + smeared * share
        + 0.25 * colour
        + 0.2 * torch.rand(clips, 1, 1) * torch.randn_like(levels)
    )
