import io
import wave
from hashlib import sha256

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers import comments
from workers.mastering import content_type, master, transcode

RATE = 32000
TAGS = {
    "title": "dub techno, “größer” 🎛",
    "artist": "text2song/wiring-noise",
    "date": "2026-01-02",
    "comment": '{"seed":7,"sampling":{"temperature":1.0}}',
}


def tone(seconds: float, *, amplitude: float = 0.5, channels: int = 1, rate: int = RATE) -> NDArray[np.float32]:
    """It begins and ends at zero where it lasts whole seconds."""
    time = np.linspace(0, seconds, round(seconds * rate))
    sound = amplitude * np.sin(2 * np.pi * 997 * time)
    return np.tile(sound.astype(np.float32), (channels, 1))


def samples(data: bytes) -> NDArray[np.float64]:
    return np.asarray(soundfile.read(io.BytesIO(data), always_2d=True)[0]).T


def test_a_master_holds_the_samples_to_24_bits_and_measures_itself() -> None:
    pcm = tone(2, channels=2)
    made = master(pcm, RATE, TAGS)
    assert np.abs(samples(made.flac) - pcm).max() < 2**-22
    assert (made.duration_seconds, made.sample_rate, made.channels, made.size) == (2.0, RATE, 2, len(made.flac))


def test_a_master_is_the_same_bytes_for_the_same_input() -> None:
    assert master(tone(1), RATE, TAGS) == master(tone(1), RATE, TAGS)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_digest_of_the_sound_is_that_of_its_samples_whatever_the_tags(channels: int) -> None:
    made = master(tone(3, channels=channels), RATE, TAGS)
    assert made.pcm_sha256 == master(tone(3, channels=channels), RATE, {}).pcm_sha256
    assert made.pcm_sha256 != master(tone(2, channels=channels), RATE, TAGS).pcm_sha256
    with wave.open(io.BytesIO(transcode(made.flac, "wav"))) as file:
        assert sha256(file.readframes(file.getnframes())).hexdigest() == made.pcm_sha256


def test_a_master_carries_its_tags_and_the_studios_name() -> None:
    with soundfile.SoundFile(io.BytesIO(master(tone(1), RATE, TAGS).flac)) as file:
        assert {name: getattr(file, name) for name in TAGS} == TAGS
        assert file.software.startswith("Text2Song Studio")


def test_loudness_is_that_of_the_standards_reference_tone() -> None:
    assert master(tone(3, amplitude=1.0, rate=48000), 48000, TAGS).loudness_lufs == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize("pcm", [tone(0.3), np.zeros((1, RATE), np.float32), tone(1, amplitude=1e-5)])
def test_what_is_too_short_or_too_quiet_has_no_loudness(pcm: NDArray[np.float32]) -> None:
    assert master(pcm, RATE, TAGS).loudness_lufs is None


def test_peaks_over_full_scale_turn_the_clip_down_without_clipping_it() -> None:
    heard = samples(master(tone(1, amplitude=4.0), RATE, TAGS).flac)
    assert np.abs(heard - tone(1, amplitude=1.0)).max() < 1e-3


def test_a_clip_that_begins_and_stops_within_a_note_is_faded_over_a_few_milliseconds() -> None:
    pcm = np.stack([tone(1)[0] + 0.25, np.zeros(RATE, np.float32)])
    heard = samples(master(pcm, RATE, TAGS).flac)
    edge = RATE // 200
    assert not heard[:, [0, -1]].any()
    assert np.abs(np.diff(heard)).max() <= np.abs(np.diff(pcm)).max() + 0.01
    assert np.abs(heard - pcm)[:, edge:-edge].max() < 2**-22
    assert (np.abs(heard) <= np.abs(pcm) + 2**-22).all()


def test_an_edge_at_rest_is_left_as_it_is() -> None:
    pcm = tone(1)
    pcm[:, -1] = 0.5
    heard = samples(master(pcm, RATE, TAGS).flac)
    assert np.abs(heard - pcm)[:, : -RATE // 200].max() < 2**-22
    assert not heard[:, -1].any()


@pytest.mark.parametrize("length", [0, 1, 2, 100])
def test_a_clip_shorter_than_its_fades_is_still_a_clip(length: int) -> None:
    made = master(np.ones((1, length), np.float32), RATE, TAGS)
    assert made.duration_seconds == length / RATE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    pcm = tone(1)
    pcm[0, 100] = bad
    with pytest.raises(ValueError, match="not finite"):
        master(pcm, RATE, TAGS)


@given(length=st.integers(1, 70_000), channels=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_waveform_is_the_minimum_and_maximum_of_every_pixel(length: int, channels: int, seed: int) -> None:
    pcm = np.random.default_rng(seed).uniform(-1, 1, (channels, length)).astype(np.float32)
    pcm[:, [0, -1]] = 0
    waveform = master(pcm, RATE, TAGS).waveform
    step = waveform.samples_per_pixel
    assert waveform.length <= 1000
    assert waveform.length == -(-length // step) == len(waveform.data) // (2 * channels)
    pixel = waveform.length - 1
    for channel in range(channels):
        part = pcm[channel, pixel * step : (pixel + 1) * step]
        at = 2 * (pixel * channels + channel)
        assert waveform.data[at : at + 2] == [round(float(part.min()) * 127), round(float(part.max()) * 127)]


def test_a_waveform_of_a_long_clip_has_about_a_thousand_points() -> None:
    waveform = master(tone(30), RATE, TAGS).waveform
    assert (waveform.version, waveform.bits, waveform.samples_per_pixel, waveform.length) == (2, 8, 960, 1000)


def test_wav_keeps_every_bit_and_flac_is_the_master_itself() -> None:
    flac = master(np.random.default_rng(0).uniform(-1, 1, (2, 5000)).astype(np.float32), RATE, TAGS).flac
    wav = transcode(flac, "wav")
    assert transcode(flac, "flac") is flac
    assert np.array_equal(samples(wav), samples(flac))


@pytest.mark.parametrize("length", [1, 40, 1_000, 10_000, 70_000])
def test_lyrics_of_any_length_are_in_each_file_that_has_a_place_for_them_and_change_no_sound(length: int) -> None:
    lyrics = ("[verse]\nRegen größer 🎛 " * length)[:length]
    dumb, sung = (master(tone(1, channels=2), RATE, TAGS | more) for more in ({}, {"lyrics": lyrics}))
    assert dumb.pcm_sha256 == sung.pcm_sha256
    assert comments.read(sung.flac, "LYRICS") == lyrics
    assert comments.read(dumb.flac, "LYRICS") is None
    assert comments.read(sung.flac, "TITLE") == TAGS["title"]
    for audio_format in ("flac", "ogg", "mp3", "wav"):
        copy, other = (transcode(made.flac, audio_format) for made in (sung, dumb))
        assert np.array_equal(samples(copy), samples(other))
        with soundfile.SoundFile(io.BytesIO(copy)) as file:
            assert {name: getattr(file, name) for name in TAGS} == TAGS
    mp3 = transcode(sung.flac, "mp3")
    frame = b"\x03und\x00" + lyrics.encode()
    assert mp3[mp3.index(b"USLT") + 10 :].startswith(frame)
    # The comments of an Ogg file are in pages of up to 255 times 255 bytes, each with a head in between.
    pages = transcode(sung.flac, "ogg").split(b"OggS")
    packets = b"".join(page[23 + page[22] :] for page in pages[1:])
    assert f"LYRICS={lyrics}".encode() in packets


@pytest.mark.parametrize("audio_format", ["mp3", "ogg"])
def test_a_lossy_copy_sounds_the_same_and_keeps_its_tags(audio_format: str) -> None:
    pcm = tone(3, channels=2)
    copy = transcode(master(pcm, RATE, TAGS).flac, audio_format)
    assert len(copy) < pcm.size
    heard = samples(copy)
    assert heard.shape == pcm.shape
    assert np.std(heard) == pytest.approx(np.std(pcm), rel=0.05)
    with soundfile.SoundFile(io.BytesIO(copy)) as file:
        assert {name: getattr(file, name) for name in TAGS} == TAGS


def test_a_long_clip_becomes_ogg() -> None:
    """One write of 90 s would overflow libsndfile's stack."""
    assert samples(transcode(master(tone(90), RATE, TAGS).flac, "ogg")).shape == (1, 90 * RATE)


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="The format is aiff; it can be flac, wav, mp3, ogg"):
        transcode(b"", "aiff")
    assert content_type("mp3") == "audio/mpeg"
