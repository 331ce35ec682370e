"""Turns raw samples into files: the tagged FLAC master, its loudness and waveform, and the other formats."""

import hashlib
import io
import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import soundfile
from msgspec import Struct
from numpy.typing import NDArray

from workers import comments

SOFTWARE: Final = "Text2Song Studio"
CONTENT_TYPES: Final = {"flac": "audio/flac", "wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
SUBTYPES: Final = {"flac": "PCM_24", "wav": "PCM_24", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
ID3_FRAMES: Final = {
    "title": (b"TIT2", b"\x03"),
    "artist": (b"TPE1", b"\x03"),
    "date": (b"TDRC", b"\x03"),
    "software": (b"TSSE", b"\x03"),
    "comment": (b"COMM", b"\x03eng\x00"),
    "lyrics": (b"USLT", b"\x03und\x00"),
}
LYRICS: Final = "LYRICS"
LOUDNESS_BLOCK: Final = 0.4
POINTS: Final = 1000
BLOCK_FRAMES: Final = 32768
# A step to or from more than -60 dB of full scale clicks.
AUDIBLE_STEP: Final = 0.001
FADE_SECONDS: Final = 0.005

_measuring: Final = threading.Lock()


class Waveform(Struct, frozen=True, kw_only=True):
    """The audiowaveform JSON layout, version 2: for each pixel, every channel's minimum and maximum, -127 to 127."""

    version: int = 2
    channels: int
    sample_rate: int
    samples_per_pixel: int
    bits: int = 8
    length: int
    data: list[int]


class Master(Struct, frozen=True, kw_only=True):
    """`flac` is 24-bit; the same samples and tags give the same bytes.

    `pcm_sha256` is of the sound alone: its samples as 24-bit little-endian integers, the channels in turn.
    `loudness_lufs` is the integrated loudness (ITU-R BS.1770-4), None for silence and for clips under 0.4 s.
    """

    flac: bytes
    sha256: str
    pcm_sha256: str
    size: int
    duration_seconds: float
    sample_rate: int
    channels: int
    loudness_lufs: float | None
    waveform: Waveform


def prepare() -> None:
    """Imports the loudness library ahead of `master`. It takes more than a second, and most processes never need it."""
    import pyloudnorm  # noqa: F401, PLC0415


def master(pcm: NDArray[np.float32], sample_rate: int, tags: Mapping[str, str]) -> Master:
    """`pcm` is `[channels, samples]`; a clip with peaks beyond ±1 is scaled down as a whole. Where it begins or stops
    within a note, it is faded over 5 ms.

    `tags` are any of title, artist, date, comment and lyrics. Raises ValueError if a sample is not finite.
    """
    if not np.isfinite(pcm).all():
        raise ValueError("The audio has samples that are not finite.")
    pcm = _without_clicks(pcm / np.abs(pcm).max(initial=1.0), sample_rate)
    flac = _encode(pcm.T, sample_rate, "flac", {**tags, "software": SOFTWARE})
    return Master(
        flac=flac,
        sha256=hashlib.sha256(flac).hexdigest(),
        # libsndfile opens no FLAC without samples.
        pcm_sha256=pcm_sha256(flac) if pcm.size else hashlib.sha256().hexdigest(),
        size=len(flac),
        duration_seconds=pcm.shape[1] / sample_rate,
        sample_rate=sample_rate,
        channels=len(pcm),
        loudness_lufs=loudness(pcm, sample_rate),
        waveform=_waveform(pcm, sample_rate),
    )


def pcm_sha256(flac: bytes) -> str:
    """Of what `ffmpeg -i FILE -f s24le -` writes."""
    with soundfile.SoundFile(io.BytesIO(flac)) as source:
        digest = hashlib.sha256()
        for frames in source.blocks(BLOCK_FRAMES, dtype="int32", always_2d=True):
            # soundfile puts the 24 bits of a sample into the upper three of four bytes.
            digest.update(frames.astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes())
    return digest.hexdigest()


def transcode(flac: bytes, audio_format: str) -> bytes:
    """The master in another format, with its tags; WAV is lossless. Raises ValueError for an unknown format."""
    content_type(audio_format)
    if audio_format == "flac":
        return flac
    with soundfile.SoundFile(io.BytesIO(flac)) as source:
        found = {name: getattr(source, name) for name in ("title", "artist", "date", "comment")}
        tags = {name: value for name, value in found.items() if value}
        if (lyrics := comments.read(flac, LYRICS)) is not None:
            tags["lyrics"] = lyrics
        frames = source.read(dtype="int32", always_2d=True)
    if audio_format == "mp3":
        # libsndfile garbles characters beyond Latin-1 in an MP3's tags.
        return _id3({**tags, "software": SOFTWARE}) + _encode(frames, source.samplerate, audio_format, {})
    return _encode(frames, source.samplerate, audio_format, {**tags, "software": SOFTWARE})


def content_type(audio_format: str) -> str:
    """Raises ValueError for an unknown format."""
    if audio_format not in CONTENT_TYPES:
        raise ValueError(f"The format is {audio_format}; it can be {', '.join(CONTENT_TYPES)}.")
    return CONTENT_TYPES[audio_format]


def loudness(pcm: NDArray[np.float32], sample_rate: int) -> float | None:
    """The integrated loudness in LUFS of `[channels, samples]`, None for silence and for clips under 0.4 s."""
    if pcm.shape[1] < LOUDNESS_BLOCK * sample_rate:
        return None
    import pyloudnorm  # noqa: PLC0415

    # It changes the process's warning filters while it measures, which of two threads only one may do.
    with _measuring:
        lufs = pyloudnorm.Meter(sample_rate).integrated_loudness(pcm.T.astype(np.float64))
    return round(float(lufs), 2) if np.isfinite(lufs) else None


def _without_clicks(pcm: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    length = min(round(FADE_SECONDS * sample_rate), pcm.shape[1])
    fade = np.sin(np.linspace(0, np.pi / 2, length, dtype=np.float32)) ** 2
    if length and np.abs(pcm[:, 0]).max() > AUDIBLE_STEP:
        pcm[:, :length] *= fade
    if length and np.abs(pcm[:, -1]).max() > AUDIBLE_STEP:
        pcm[:, -length:] *= fade[::-1]
    return pcm


def _encode(frames: NDArray[Any], sample_rate: int, audio_format: str, tags: Mapping[str, str]) -> bytes:
    """`frames` is `[samples, channels]`. A WAV has no place for lyrics."""
    buffer = io.BytesIO()
    lyrics = tags.get("lyrics")
    with soundfile.SoundFile(
        buffer, "w", sample_rate, frames.shape[1], SUBTYPES[audio_format], format=audio_format.upper()
    ) as file:
        for name, value in tags.items():
            if name != "lyrics":
                setattr(file, name, value)
        # libsndfile's Vorbis encoder overflows its stack on one long write.
        for start in range(0, len(frames), BLOCK_FRAMES):
            file.write(frames[start : start + BLOCK_FRAMES])
    audio = buffer.getvalue()
    return audio if lyrics is None or audio_format == "wav" else comments.add(audio, LYRICS, lyrics)


def _id3(tags: Mapping[str, str]) -> bytes:
    """An ID3v2.4 tag in UTF-8."""

    def size(number: int) -> bytes:
        return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))

    body = b""
    for name, value in tags.items():
        frame, head = ID3_FRAMES[name]
        text = head + value.encode()
        body += frame + size(len(text)) + b"\x00\x00" + text
    return b"ID3\x04\x00\x00" + size(len(body)) + body


def _waveform(pcm: NDArray[np.float32], sample_rate: int) -> Waveform:
    channels, samples = pcm.shape
    step = max(1, -(-samples // POINTS))
    starts = np.arange(0, samples, step)
    peaks = np.stack([np.minimum.reduceat(pcm, starts, axis=1), np.maximum.reduceat(pcm, starts, axis=1)])
    return Waveform(
        channels=channels,
        sample_rate=sample_rate,
        samples_per_pixel=step,
        length=len(starts),
        data=np.rint(peaks.transpose(2, 1, 0) * 127).astype(int).ravel().tolist(),
    )
