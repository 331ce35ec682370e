"""From raw samples to files: the tagged FLAC master, its loudness and waveform, and the formats derived from it."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import soundfile
from msgspec import Struct
from numpy.typing import NDArray

SOFTWARE: Final = "Text2Song Studio"
CONTENT_TYPES: Final = {"flac": "audio/flac", "wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
SUBTYPES: Final = {"flac": "PCM_24", "wav": "PCM_24", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
ID3_FRAMES: Final = {
    "title": (b"TIT2", b"\x03"),
    "artist": (b"TPE1", b"\x03"),
    "date": (b"TDRC", b"\x03"),
    "software": (b"TSSE", b"\x03"),
    "comment": (b"COMM", b"\x03eng\x00"),
}
LOUDNESS_BLOCK: Final = 0.4
POINTS: Final = 1000
BLOCK_FRAMES: Final = 32768


class Waveform(Struct, frozen=True, kw_only=True):
    """The audiowaveform JSON layout, version 2: for every pixel each channel's minimum and maximum, -127 to 127."""

    version: int = 2
    channels: int
    sample_rate: int
    samples_per_pixel: int
    bits: int = 8
    length: int
    data: list[int]


class Master(Struct, frozen=True, kw_only=True):
    """`flac` is 24 bit and the same bytes for the same samples and tags.

    `loudness_lufs` is integrated (ITU-R BS.1770-4); None for silence and for less than 0.4 s.
    """

    flac: bytes
    sha256: str
    size: int
    duration_seconds: float
    sample_rate: int
    channels: int
    loudness_lufs: float | None
    waveform: Waveform


def prepare() -> None:
    """Loads what `master` needs and nothing else does: it takes more than a second, and most processes never master."""
    import pyloudnorm  # noqa: F401, PLC0415


def master(pcm: NDArray[np.float32], sample_rate: int, tags: Mapping[str, str]) -> Master:
    """`pcm` is `[channels, samples]`; peaks beyond ±1 turn the whole clip down. Raises ValueError where not finite.

    `tags` are by soundfile's names: title, artist, date, comment.
    """
    if not np.isfinite(pcm).all():
        raise ValueError("The audio has samples that are not finite.")
    pcm = pcm / np.abs(pcm).max(initial=1.0)
    flac = _encode(pcm.T, sample_rate, "flac", {**tags, "software": SOFTWARE})
    return Master(
        flac=flac,
        sha256=hashlib.sha256(flac).hexdigest(),
        size=len(flac),
        duration_seconds=pcm.shape[1] / sample_rate,
        sample_rate=sample_rate,
        channels=len(pcm),
        loudness_lufs=_loudness(pcm, sample_rate),
        waveform=_waveform(pcm, sample_rate),
    )


def transcode(flac: bytes, audio_format: str) -> bytes:
    """The master in another format, tags included; WAV keeps every bit. Raises ValueError for an unknown format."""
    content_type(audio_format)
    if audio_format == "flac":
        return flac
    with soundfile.SoundFile(io.BytesIO(flac)) as source:
        found = {name: getattr(source, name) for name in ("title", "artist", "date", "comment")}
        tags = {name: value for name, value in found.items() if value}
        frames = source.read(dtype="int32", always_2d=True)
    if audio_format == "mp3":
        # libsndfile garbles an MP3's tags beyond Latin-1.
        return _id3({**tags, "software": SOFTWARE}) + _encode(frames, source.samplerate, audio_format, {})
    return _encode(frames, source.samplerate, audio_format, {**tags, "software": SOFTWARE})


def content_type(audio_format: str) -> str:
    """Raises ValueError for an unknown format."""
    if audio_format not in CONTENT_TYPES:
        raise ValueError(f"The format is {audio_format}; it can be {', '.join(CONTENT_TYPES)}.")
    return CONTENT_TYPES[audio_format]


def _encode(frames: NDArray[Any], sample_rate: int, audio_format: str, tags: Mapping[str, str]) -> bytes:
    """`frames` is `[samples, channels]`."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", sample_rate, frames.shape[1], SUBTYPES[audio_format], format=audio_format.upper()
    ) as file:
        for name, value in tags.items():
            setattr(file, name, value)
        # libsndfile's Vorbis encoder overflows its stack on one long write.
        for start in range(0, len(frames), BLOCK_FRAMES):
            file.write(frames[start : start + BLOCK_FRAMES])
    return buffer.getvalue()


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


def _loudness(pcm: NDArray[np.float32], sample_rate: int) -> float | None:
    if pcm.shape[1] < LOUDNESS_BLOCK * sample_rate:
        return None
    import pyloudnorm  # noqa: PLC0415

    lufs = pyloudnorm.Meter(sample_rate).integrated_loudness(pcm.T.astype(np.float64))
    return round(float(lufs), 2) if np.isfinite(lufs) else None


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
