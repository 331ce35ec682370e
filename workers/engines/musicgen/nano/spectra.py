"""Magnitude spectra of audio at SAMPLE_RATE, and their sums by pitch class."""

import torch

from workers.engines.musicgen.nano.instruments import CONCERT_PITCH, SAMPLE_RATE


def spectrum(audio: torch.Tensor, window: int, hop: int | None = None) -> torch.Tensor:
    """Magnitudes `[..., bins, frames]` of audio `[..., samples]`; `hop` is a quarter of the window unless given."""
    return torch.stft(audio, window, hop or window // 4, window=torch.hann_window(window), return_complex=True).abs()


def pitch_classes(magnitudes: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Magnitudes summed by pitch class, `[..., 12, frames]`, C first, with A at CONCERT_PITCH.

    Uses the bins between the frequencies `low` and `high`, in Hz.
    """
    bins = magnitudes.shape[-2]
    frequency = torch.linspace(0, SAMPLE_RATE / 2, bins)
    in_range = (frequency > low) & (frequency < high)
    classes = (69 + 12 * torch.log2(frequency[in_range] / CONCERT_PITCH)).round().long() % 12
    sums = magnitudes.new_zeros(*magnitudes.shape[:-2], 12, magnitudes.shape[-1])
    return sums.index_add_(-2, classes, magnitudes[..., in_range, :])
