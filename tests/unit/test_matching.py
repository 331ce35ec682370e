"""The two sides of a blind trial: alike in everything but the music."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.mastering import loudness, master
from workers.matching import CEILING, matched, true_peak

RATE = 16_000
TAGS = {"title": "rain", "artist": "model", "comment": '{"seed":7,"job_id":"job-1"}'}
Pcm = NDArray[np.float32]


def noise(seconds: float, level: float, *, seed: int = 0, channels: int = 1, rate: int = RATE) -> Pcm:
    drawn = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return (drawn * 10 ** (level / 20)).astype(np.float32)


def music(seconds: float, level: float, seed: int) -> Pcm:
    """Notes of very different strength, with pauses: much of it lies below the gate of the loudness measure."""
    draws = np.random.default_rng(seed)
    pcm = noise(seconds, level, seed=seed)
    notes = np.repeat(10 ** (draws.uniform(-70, 0, 1 + round(seconds * 4)) / 20), RATE // 4)
    return pcm * notes[: pcm.shape[1]].astype(np.float32)


def sides(one: Pcm, other: Pcm, rates: tuple[int, int] = (RATE, RATE)) -> tuple[list[Pcm], int, tuple[bytes, bytes]]:
    masters = [master(pcm, rate, TAGS).flac for pcm, rate in zip((one, other), rates, strict=True)]
    made = matched(masters[0], masters[1])
    read = [soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True) for wav in made]
    assert read[0][1] == read[1][1]
    assert read[0][0].shape == read[1][0].shape
    assert len(made[0]) == len(made[1])
    return [frames.T for frames, _ in read], read[0][1], made


def lufs(pcm: Pcm, rate: int = RATE) -> float:
    level = loudness(pcm, rate)
    assert level is not None
    return level


@pytest.mark.parametrize(("first", "second"), [(-3, -30), (-30, -3), (-18, -18), (0, -45), (-40, -41)])
def test_both_sides_are_as_loud_as_the_quieter_one(first: float, second: float) -> None:
    heard, rate, _ = sides(noise(2, first), noise(2, second, seed=1))
    assert abs(lufs(heard[0]) - lufs(heard[1])) <= 0.2
    quieter = min(lufs(master_pcm(noise(2, first))), lufs(master_pcm(noise(2, second, seed=1))))
    assert lufs(heard[0], rate) == pytest.approx(quieter, abs=0.2)


def master_pcm(pcm: Pcm) -> Pcm:
    frames: Pcm = soundfile.read(io.BytesIO(master(pcm, RATE, TAGS).flac), dtype="float32", always_2d=True)[0]
    return frames.T


CLIPS = st.builds(music, st.floats(0.6, 5), st.floats(-40, 0), st.integers(0, 10_000))


@settings(max_examples=30, deadline=None)
@given(CLIPS, CLIPS)
def test_music_with_quiet_passages_is_matched_too(a: Pcm, b: Pcm) -> None:
    heard, _, _ = sides(a, b)
    assert heard[0].shape[1] == min(a.shape[1], b.shape[1])
    levels = [loudness(pcm, RATE) for pcm in heard]
    before = [loudness(master_pcm(pcm)[:, : heard[0].shape[1]], RATE) for pcm in (a, b)]
    if None not in before and min(level for level in before if level is not None) > -49.5:
        assert levels[0] is not None
        assert levels[1] is not None
        assert abs(levels[0] - levels[1]) <= 0.2
    assert max(true_peak(pcm) for pcm in heard) <= CEILING + 1e-3


def test_peaks_between_samples_stay_below_the_ceiling() -> None:
    # A quarter of the sample rate, sampled beside its crests: 3 dB more between the samples than in them.
    time = np.arange(RATE * 2)
    crest = np.sin(np.pi / 2 * time + np.pi / 4).astype(np.float32)[None, :]
    assert true_peak(crest / np.abs(crest).max()) == pytest.approx(2**0.5, abs=0.02)
    heard, _, _ = sides(crest, crest.copy())
    for pcm in heard:
        assert true_peak(pcm) == pytest.approx(CEILING, abs=0.01)


def test_the_peak_is_found_wherever_it_lies() -> None:
    quiet = np.zeros((2, 200_000), np.float32)
    for place in (0, 65_535, 65_536, 131_080, 199_999):
        one = quiet.copy()
        one[1, place] = 0.5
        assert 0.5 <= true_peak(one) < 0.6
    assert true_peak(quiet) == 0


def test_the_longer_side_ends_with_the_shorter_one_and_both_fade() -> None:
    heard, _, _ = sides(noise(1.5, -20), noise(3, -20, seed=1))
    assert heard[0].shape == (1, round(1.5 * RATE))
    for pcm in heard:
        assert abs(pcm[0, -1]) < 1e-3
        assert np.abs(pcm[0, -3 * RATE // 1000 :]).max() < np.abs(pcm[0, : RATE // 10]).max()


def test_sides_of_one_length_are_not_faded() -> None:
    steady = np.full((1, RATE), 0.1, np.float32)
    heard, _, _ = sides(steady, steady.copy())
    inside = heard[0][0, RATE // 100 : -RATE // 100]
    assert np.ptp(inside) < 1e-3
    assert np.array_equal(heard[0], heard[1])


def test_sample_rates_and_channels_become_the_same() -> None:
    heard, rate, _ = sides(noise(2, -10), noise(1, -30, seed=1, channels=2, rate=24_000), (RATE, 24_000))
    assert rate == 24_000
    assert heard[0].shape == heard[1].shape == (2, 24_000)
    assert np.array_equal(heard[0][0], heard[0][1])
    assert not np.array_equal(heard[1][0], heard[1][1])
    assert abs(lufs(heard[0], rate) - lufs(heard[1], rate)) <= 0.2


@pytest.mark.parametrize("quiet", [np.zeros((1, RATE * 2), np.float32), noise(2, -75, seed=1)], ids=["silent", "hiss"])
@pytest.mark.parametrize("is_first", [True, False])
def test_silence_takes_nothing_from_the_other_side(quiet: Pcm, is_first: bool) -> None:
    loud = noise(2, -20)
    heard, _, _ = sides(*((quiet, loud) if is_first else (loud, quiet)))
    assert lufs(heard[is_first]) == pytest.approx(lufs(loud), abs=0.05)
    assert np.abs(heard[not is_first]).max() == pytest.approx(np.abs(quiet).max(), abs=1e-4)


def test_two_silent_sides_are_two_silent_sides() -> None:
    silence = np.zeros((1, RATE), np.float32)
    heard, _, made = sides(silence, silence)
    assert not heard[0].any()
    assert made[0] == made[1]


def test_clips_too_short_for_the_measure_have_the_same_power() -> None:
    heard, _, _ = sides(noise(0.3, -10), noise(0.2, -30, seed=1))
    powers = [10 * np.log10(np.square(pcm).mean()) for pcm in heard]
    assert abs(powers[0] - powers[1]) < 0.2


def test_nothing_but_the_samples_is_left_and_the_same_masters_give_the_same_bytes() -> None:
    one, other = noise(1, -10), noise(1, -20, seed=1)
    _, _, made = sides(one, other)
    assert sides(one, other)[2] == made
    for wav in made:
        assert len(wav) == 44 + 2 * RATE
        assert wav[:4] + wav[8:16] == b"RIFFWAVEfmt "
        assert wav[36:40] == b"data"
        with soundfile.SoundFile(io.BytesIO(wav)) as file:
            assert (file.subtype, file.copy_metadata()) == ("PCM_16", {})
    # The headers are the same to the byte.
    assert made[0][:44] == made[1][:44]
