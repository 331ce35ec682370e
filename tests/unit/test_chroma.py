"""The tones of a melody, against the library's own extractor and its own filters."""

from importlib import import_module
from typing import Any, Final

import numpy as np
import pytest
import torch
from transformers.audio_utils import chroma_filter_bank

from workers import chroma

LIBRARY: Final = "transformers.models.musicgen_melody.feature_extraction_musicgen_melody"
KEYS: Final = (0, 4, 7, 2, 11, 9, 5, 3)


def scale(rate: int, seconds: float, noise: float = 0.0) -> Any:
    """A sine a half second a note, from C4 up."""
    time = np.arange(round(rate * seconds)) / rate
    notes = 261.63 * 2 ** (np.array(KEYS)[(time * 2).astype(int) % len(KEYS)] / 12)
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(notes) / rate)
    return (sound + noise * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def extracted(sound: Any) -> list[int]:
    """By the library, which torchaudio alone keeps from being built: its spectrogram is torch's own."""
    extractor: Any = object.__new__(import_module(LIBRARY).MusicgenMelodyFeatureExtractor)
    filters = chroma_filter_bank(chroma.WINDOW, chroma.TONES, chroma.RATE)
    extractor.n_fft, extractor.chroma_filters = chroma.WINDOW, torch.from_numpy(filters).float()
    bell = torch.hann_window(chroma.WINDOW)

    def spectrogram(wave: Any) -> Any:
        found = torch.stft(wave, chroma.WINDOW, chroma.HOP, window=bell, return_complex=True, pad_mode="reflect")
        return (found / bell.pow(2).sum().sqrt()).abs().pow(2)

    extractor.spectrogram = spectrogram
    found: Any = extractor._torch_extract_fbank_features(torch.from_numpy(sound)[None])
    return list(found[0].argmax(-1).tolist())


@pytest.mark.parametrize("seconds", [8.0, 0.25, 0.0])
def test_the_tones_are_those_of_the_library(seconds: float) -> None:
    sound = scale(chroma.RATE, seconds, noise=0.02)
    assert list(chroma.tones(sound, chroma.RATE)) == extracted(sound)
    bank = chroma_filter_bank(chroma.WINDOW, chroma.TONES, chroma.RATE)
    assert np.abs(chroma.filters() - bank).max() < 1e-12


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_a_melody_is_heard_at_any_rate(rate: int) -> None:
    heard = chroma.tones(scale(rate, 12.0), rate)
    # In the middle of each note.
    assert [heard[round((note / 2 + 0.25) * chroma.RATE / chroma.HOP)] for note in range(1, 22)] == [
        KEYS[note % 8] for note in range(1, 22)
    ]
    time = np.arange(rate) / rate
    made = chroma.resample(np.sin(2 * np.pi * 1000 * time).astype(np.float32), rate, chroma.RATE)
    expected = np.sin(2 * np.pi * 1000 * np.arange(chroma.RATE) / chroma.RATE)
    middle = slice(2000, -2000)
    assert made.shape == expected.shape
    assert np.abs(made - expected)[middle].max() < 2e-3


def test_silence_has_the_first_tone() -> None:
    assert set(chroma.tones(np.zeros(40_000, np.float32), chroma.RATE)) == {0}
