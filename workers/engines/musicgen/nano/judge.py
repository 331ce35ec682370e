"""Recognises a clip's tempo from its onsets, and its lead, drums and mode with small networks trained on songs.

The training uses neither the codec nor the language model, so the judge is independent of the models that it judges.
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

from workers.engines.musicgen.nano.instruments import FRAME_RATE, SAMPLE_RATE, Signal
from workers.engines.musicgen.nano.songs import (
    BARS_PER_SECTION,
    BEATS_PER_BAR,
    LEADS,
    MAX_TEMPO,
    MIN_TEMPO,
    MODES,
    Song,
    compose,
    play,
)
from workers.engines.musicgen.nano.spectra import pitch_classes, spectrum

HOP_LENGTH: Final = 160
BANDS: Final = 64
FIRST_SEED: Final = 9_000_000
NUM_CLIPS: Final = 2_400
EPOCHS: Final = 12
LEARNING_RATE: Final = 3e-3
BATCH_SIZE: Final = 32
CHROMA_WINDOW: Final = 8192
# Less than a bar of the fastest song: the first chord is the tonic's, which tells a major key from its relative minor.
OPENING_SECONDS: Final = 1.7
TEMPO_TOLERANCE: Final = 0.05
# (lag in beats, weight): onsets that repeat after one beat also repeat after two and four, and often after a half.
LAG_WEIGHTS: Final = ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (0.5, 0.5))
# In Hz: where leads and chords are, and the bass is not.
TUNE: Final = (170, 1500)


class Prediction(Struct, frozen=True):
    tempo: float
    lead: str
    drums: bool
    mode: str


def tempo(audio: Signal) -> float:
    """Beats per minute, between MIN_TEMPO and MAX_TEMPO."""
    envelope = onsets(audio)
    size = 1 << (2 * len(envelope)).bit_length()
    power = np.abs(np.fft.rfft(envelope, size)) ** 2
    autocorrelation = np.fft.irfft(power, size)[: len(envelope)]
    # An unbiased estimate: long lags have fewer products.
    autocorrelation = autocorrelation / (len(envelope) - np.arange(len(envelope)))
    candidates = np.arange(MIN_TEMPO, MAX_TEMPO + 0.25, 0.25)
    beats = SAMPLE_RATE / HOP_LENGTH * 60 / candidates
    lags = [(weight, beats * multiple) for multiple, weight in LAG_WEIGHTS]
    score = np.sum([weight * _interpolate(autocorrelation, lag) for weight, lag in lags], axis=0)
    return float(candidates[np.argmax(score)])


def onsets(audio: Signal) -> Signal:
    """Onset strength in each frame of HOP_LENGTH samples: the summed rise of the bands' levels, minus its mean."""
    levels = np.log1p(300 * bands(audio))
    rise = np.maximum(0, levels[:, 2:] - levels[:, :-2]).sum(0)
    smooth = np.convolve(rise, np.hanning(7) / 3, "same")
    return np.asarray(smooth - smooth.mean(), np.float32)


def _interpolate(autocorrelation: NDArray[np.floating[Any]], lags: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(np.interp(lags, np.arange(len(autocorrelation)), autocorrelation))


_EDGES: Final = 40 * (7600 / 40) ** (np.arange(BANDS + 1) / BANDS)


def bands(audio: Signal) -> Signal:
    """Magnitudes `[BANDS, frames]` of bands of equal width in octaves, a frame every HOP_LENGTH samples."""
    size = 1024
    magnitude = spectrum(torch.from_numpy(np.ascontiguousarray(audio)), size, HOP_LENGTH).numpy()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    place = np.clip(np.searchsorted(_EDGES, frequency, "right") - 1, 0, BANDS - 1)
    weights = (place[None] == np.arange(BANDS)[:, None]) / (np.bincount(place, minlength=BANDS)[:, None] + 1e-9)
    return np.asarray(weights @ magnitude / size, np.float32)


class Judge(nn.Module):
    """A convolutional network with three classifiers: of the lead, the drums and the mode."""

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
        """Logits of the leads, of drums absent and present, and of the modes.

        `levels` are `[clips, BANDS, frames]` and `chroma` `[clips, 4, 12]`, as extract_features returns them.
        """
        hidden = self.features(levels[:, None]).flatten(1, 2)
        pooled = torch.cat([hidden.mean(-1), hidden.amax(-1)], dim=1)
        # The convolution sees all twelve rotations, one for each tonic, so it recognises a mode in any key.
        mode_logits = self.pitches(torch.cat([chroma, chroma[..., :-1]], dim=-1))
        return self.lead(pooled), self.drums(pooled), mode_logits.logsumexp(-1)

    @classmethod
    def load_or_train(cls, path: Path) -> "Judge":
        """Loads the weights from the file; if there is none, trains on songs and writes it."""
        judge = cls()
        if path.exists():
            judge.load_state_dict(torch.load(path, weights_only=True))
            return judge.eval()
        torch.manual_seed(0)
        songs = [compose(seed) for seed in range(FIRST_SEED, FIRST_SEED + NUM_CLIPS)]
        with multiprocessing.get_context("spawn").Pool() as pool:
            features = pool.map(_song_features, songs, chunksize=50)
        levels, chroma = (torch.from_numpy(np.stack(part)) for part in zip(*features, strict=True))
        labels = torch.tensor([[LEADS.index(s.lead), int(s.drums), MODES.index(s.mode)] for s in songs])
        steps = EPOCHS * NUM_CLIPS // BATCH_SIZE
        optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(NUM_CLIPS, (BATCH_SIZE,))
            logits = judge(_augment(levels[chosen]), chroma[chosen] + 0.02 * torch.rand(BATCH_SIZE, 4, 12))
            losses = [functional.cross_entropy(each, labels[chosen, part]) for part, each in enumerate(logits)]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        torch.save(judge.state_dict(), path)
        return judge.eval()

    @torch.inference_mode()
    def predict(self, audio: Signal) -> Prediction:
        levels, chroma = extract_features(audio)
        lead, drums, mode = (int(logits.argmax()) for logits in self(levels[None], chroma[None]))
        return Prediction(tempo(audio), LEADS[lead], bool(drums), MODES[mode])


def correct_attributes(prediction: Prediction, song: Song) -> dict[str, bool]:
    """For each attribute, whether the prediction is right; `tempo_octave` also accepts half and twice the tempo."""
    ratio = prediction.tempo / song.tempo
    return {
        "tempo": abs(ratio - 1) < TEMPO_TOLERANCE,
        "tempo_octave": any(abs(ratio * factor - 1) < TEMPO_TOLERANCE for factor in (0.5, 1, 2)),
        "drums": prediction.drums == song.drums,
        "lead": prediction.lead == song.lead,
        "mode": prediction.mode == song.mode,
    }


def section_likeness(audio: Signal, song: Song) -> tuple[float, float]:
    """How much bars 5 to 8 sound like bars 1 to 4, which they repeat, and like bars 9 to 12, which they do not.

    The audio has to have these twelve bars at the song's tempo. Likeness is the mean cosine of the pitch classes of
    eighth notes at the same place of two sections.
    """
    eighths, size = 2 * BEATS_PER_BAR * BARS_PER_SECTION, song.eighth_frames * SAMPLE_RATE // FRAME_RATE
    notes = torch.from_numpy(np.ascontiguousarray(audio[: 3 * eighths * size])).view(3 * eighths, size)
    magnitudes = torch.fft.rfft(notes * torch.hann_window(size)).abs()[..., None]
    first, second, third = functional.normalize(pitch_classes(magnitudes, *TUNE)[..., 0], dim=1).view(3, eighths, 12)
    return float((first * second).sum(1).mean()), float((second * third).sum(1).mean())


def extract_features(audio: Signal) -> tuple[torch.Tensor, torch.Tensor]:
    """Log levels `[BANDS, frames]`, 25 a second, and chroma `[4, 12]`.

    The rows of the chroma are the bass and the rest over the whole clip, and then the same two over its opening.
    """
    levels = np.log(bands(audio) + 1e-4)
    levels = levels[:, : levels.shape[1] // 4 * 4].reshape(BANDS, -1, 4).mean(-1)
    levels = (levels - levels.mean()) / (levels.std() + 1e-6)
    magnitudes = spectrum(torch.from_numpy(np.ascontiguousarray(audio)), CHROMA_WINDOW).sqrt()
    parts = torch.stack([pitch_classes(magnitudes, low, high) for low, high in ((50, TUNE[0]), TUNE)])
    opening = round(OPENING_SECONDS * SAMPLE_RATE / (CHROMA_WINDOW // 4))
    chroma = torch.cat([parts.sum(-1), parts[..., :opening].sum(-1)])
    return torch.from_numpy(levels).float(), functional.normalize(chroma, dim=1)


def _song_features(song: Song) -> tuple[Signal, Signal]:
    torch.set_num_threads(1)
    levels, chroma = extract_features(play(song))
    return levels.numpy(), chroma.numpy()


def _augment(levels: torch.Tensor) -> torch.Tensor:
    """Augments with random colour, noise and blur in time, so that the networks do not rely on fine detail."""
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
