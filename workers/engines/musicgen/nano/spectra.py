"""Magnitude spectra of audio at RATE, and which of their bins sound which note."""

import torch

from workers.engines.musicgen.nano.instruments import CONCERT, RATE


def spectrum(audio: torch.Tensor, window: int, hop: int | None = None) -> torch.Tensor:
    """Magnitudes `[..., bins, frames]` of audio `[..., samples]`; a hop is a quarter of the window unless given."""
    return torch.stft(audio, window, hop or window // 4, window=torch.hann_window(window), return_complex=True).abs()


def pitch_classes(magnitudes: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`[..., 12, frames]`: the sums of the bins between two frequencies in Hz, C first, tuned as the songs are."""
    bins = magnitudes.shape[-2]
    frequency = torch.linspace(0, RATE / 2, bins)
    heard = (frequency > low) & (frequency < high)
    classes = (69 + 12 * torch.log2(frequency[heard] / CONCERT)).round().long() % 12
    folded = magnitudes.new_zeros(*magnitudes.shape[:-2], 12, magnitudes.shape[-1])
    return folded.index_add_(-2, classes, magnitudes[..., heard, :])
