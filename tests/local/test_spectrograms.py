"""Sound as a picture and back, and the pictures that Riffusion starts from."""

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.engines.diffusion import spectrograms
from workers.engines.diffusion.seed_images import PICTURES, seed_image
from workers.engines.diffusion.spectrograms import FADE, HOP, RATE, picture, sound

pytestmark = pytest.mark.usefixtures("one_thread")

Sound = NDArray[np.float32]


def chord(seconds: float, *pitches: float) -> Sound:
    """Of MIDI's pitches, each with five harmonics."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [
        np.sin(2 * np.pi * number * 440 * 2 ** ((pitch - 69) / 12) * time + number) / number
        for pitch in pitches
        for number in range(1, 6)
    ]
    return np.asarray(np.sum(waves, axis=0), np.float32)


def chroma(sound: Sound) -> NDArray[np.float64]:
    """The energy of each pitch class."""
    energies = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    frequencies = np.fft.rfftfreq(len(sound), 1 / RATE)
    heard = (frequencies > 60) & (frequencies < 5000)
    classes = np.round(12 * np.log2(frequencies[heard] / 440)).astype(int) % 12
    found = np.zeros(12)
    np.add.at(found, classes, energies[heard])
    return found


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def level(sound: Sound) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(sound**2))))


def test_a_chord_is_the_same_chord_after_its_picture() -> None:
    played = chord(2.0, 60, 64, 67)
    back = sound(np.round(picture(played)))
    assert back.shape == played.shape
    assert cosine(chroma(played), chroma(back)) >= 0.95
    # A measure that any chord would meet measures nothing.
    assert cosine(chroma(played), chroma(chord(2.0, 61, 65, 68))) < 0.5


def test_a_picture_shows_what_sounds_when_and_how_high() -> None:
    """It is dark where sound is; the highest row is on top."""
    drawn = picture(np.concatenate([np.zeros(RATE, np.float32), chord(1.0, 69)]))
    assert drawn.shape == (512, 200)
    assert drawn[:, :90].min() > 254
    loudest = 512 - 1 - int(drawn[:, 150].argmin())
    mel = 2595 * np.log10(1 + 440 / 700)
    assert abs(loudest - (mel / (2595 * np.log10(1 + 10_000 / 700)) * 513 - 1)) < 2
    assert (drawn.min(), drawn.max() <= 255) == (0, True)


def test_a_sound_has_an_even_level() -> None:
    """What is 20 dB softer comes out 15 dB nearer at most."""
    soft_and_loud = np.concatenate([0.1 * chord(1.0, 60), chord(1.0, 60)])
    back = sound(picture(soft_and_loud))
    assert level(back) == pytest.approx(-12, abs=0.1)
    softer, louder = level(back[RATE // 4 : RATE * 3 // 4]), level(back[-RATE * 3 // 4 : -RATE // 4])
    assert 2 < louder - softer < 12


def test_silence_is_silence_and_no_fault() -> None:
    assert not sound(np.full((512, 20), 255, np.float32)).any()


def test_the_parts_of_a_long_picture_are_joined_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    part, columns = 4 * FADE, 7 * FADE
    monkeypatch.setattr(spectrograms, "PART", part)
    held = picture(chord(1.0, 57, 60, 64))[:, 50:51]
    parts: list[int] = []
    back = sound(np.repeat(held, columns, axis=1), between=lambda: parts.append(1))
    assert (len(back), len(parts)) == (columns * HOP, 2)
    seam = slice((part - FADE) * HOP, part * HOP)
    assert abs(level(back[seam]) - level(back)) < 3


def test_every_picture_to_start_from_is_another_and_always_the_same() -> None:
    drawn = {name: seed_image(name) for name in PICTURES}
    assert len({image.tobytes() for image in drawn.values()}) == len(drawn) == 11
    for image in drawn.values():
        assert image.shape == (512, 512)
        assert 0 <= image.min() < image.max() <= 255
        assert np.array_equal(image, np.round(image))
    seed_image.cache_clear()
    assert np.array_equal(seed_image("vibes"), drawn["vibes"])
    assert np.array_equal(seed_image("og_beat"), drawn["og_beat"])


def test_the_pictures_are_of_the_loops_that_they_are_named_after() -> None:
    """In a beat the columns differ, in a chord the rows do; and a loop's end leads to its beginning."""
    beat, vibes = seed_image("og_beat"), seed_image("vibes")
    assert beat.mean(axis=0).std() > 2 * vibes.mean(axis=0).std()
    assert vibes.mean(axis=1).std() > beat.mean(axis=1).std() / 2
    for image in (beat, vibes):
        step = np.abs(np.diff(image, axis=1)).mean(axis=0)
        assert np.abs(image[:, 0] - image[:, -1]).mean() <= step.max()


def test_phases_are_found_anew_in_the_same_way() -> None:
    drawn = picture(chord(0.5, 60))
    assert np.array_equal(sound(drawn), sound(drawn))
