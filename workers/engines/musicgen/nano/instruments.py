"""Synthesised sounds, mono at SAMPLE_RATE: notes are sums of partials, drums are shaped sines and noise."""

from functools import lru_cache
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

SAMPLE_RATE: Final = 16_000
MAX_PARTIAL_HZ: Final = 7_600.0
MAX_NOTE_SECONDS: Final = 4.0
VELOCITY_LAYERS: Final = (0.55, 1.0)

# The codec's frames per second.
FRAME_RATE: Final = 50
# By key, as the tonic of its major scale: the frames after which the waveform of every note in the key repeats. The
# codes of a held chord then repeat too, and a model can learn them; in equal temperament no two frames are alike.
PERIOD_FRAMES: Final = {0: 18, 1: 17, 2: 16, 7: 24, 11: 19}
# The semitones above the tonic, as multiples of the frequency that has one cycle in the key's period.
JUST_INTONATION: Final = (24, 25.5, 27, 28.5, 30, 32, 34, 36, 37.5, 40, 42.5, 45)

# The A above middle C, in Hz, that fits these keys best.
CONCERT_PITCH: Final = 449.0

Signal = NDArray[np.float32]


class Timbre(Struct, frozen=True, kw_only=True):
    """How a note of an instrument sounds.

    `partials` are (multiple of the fundamental, amplitude). At MIDI pitch 57 the first partial falls to 1/e in `decay`
    seconds, and partial k in 1 / (1 + `damping` · (k - 1)) of that; without a `decay`, notes are sustained. `vibrato`
    is in radians of phase.
    """

    partials: tuple[tuple[float, float], ...]
    attack: float
    release: float
    decay: float | None = None
    damping: float = 0.0
    vibrato: float = 0.0
    vibrato_rate: float = 5.3
    tremolo: float = 0.0
    breath: float = 0.0
    brightness: float = 0.6


def _harmonics(*amplitudes: float) -> tuple[tuple[float, float], ...]:
    return tuple((float(number), amplitude) for number, amplitude in enumerate(amplitudes, start=1))


def _saw(count: int, slope: float) -> tuple[tuple[float, float], ...]:
    return tuple((float(number), number**-slope) for number in range(1, count + 1))


def _plucked(count: int, place: float) -> tuple[tuple[float, float], ...]:
    """The partials of a string plucked at `place`, a share of its length: those with a node there are missing."""
    return tuple((float(n), abs(np.sin(np.pi * n * place)) / n) for n in range(1, count + 1))


TIMBRES: Final = {
    "piano": Timbre(partials=_saw(12, 1.25), attack=0.003, release=0.12, decay=1.1, damping=0.35),
    "guitar": Timbre(partials=_plucked(16, 0.18), attack=0.002, release=0.08, decay=0.55, damping=0.22),
    "flute": Timbre(
        partials=_harmonics(1, 0.35, 0.12, 0.04), attack=0.05, release=0.08, vibrato=0.25, tremolo=0.12, breath=0.02
    ),
    "violin": Timbre(partials=_saw(14, 1.05), attack=0.07, release=0.1, vibrato=0.45, tremolo=0.05, brightness=0.8),
    "organ": Timbre(
        partials=((0.5, 0.5), (1, 1), (1.5, 0.45), (2, 0.6), (3, 0.35), (4, 0.3), (6, 0.15), (8, 0.2)),
        attack=0.012,
        release=0.05,
        tremolo=0.18,
        vibrato_rate=6.4,
        brightness=1.0,
    ),
    "bells": Timbre(
        partials=((1, 1), (2.5, 0.6), (5.5, 0.35), (9, 0.12)), attack=0.001, release=0.3, decay=0.9, damping=0.6
    ),
    "trumpet": Timbre(
        partials=_harmonics(0.55, 0.8, 1, 0.85, 0.65, 0.45, 0.32, 0.22, 0.15, 0.1),
        attack=0.035,
        release=0.06,
        vibrato=0.12,
        brightness=0.35,
    ),
    "synth": Timbre(partials=_saw(24, 0.85), attack=0.006, release=0.06, decay=1.6, damping=0.12),
    "strings": Timbre(partials=_saw(10, 1.3), attack=0.16, release=0.2, vibrato=0.3, brightness=0.8),
    "pad": Timbre(partials=_saw(6, 1.8), attack=0.25, release=0.3, tremolo=0.08, vibrato_rate=0.9),
    "bass": Timbre(partials=_harmonics(1, 0.5, 0.3, 0.15, 0.08), attack=0.006, release=0.05, decay=0.9, damping=0.5),
    "synth bass": Timbre(partials=_saw(10, 1.1), attack=0.004, release=0.03, decay=0.5, damping=0.4),
}


def frequency(pitch: int, key: int) -> float:
    """In Hz, of a MIDI pitch in the major scale on the pitch class `key`, or in its relative minor."""
    octave, step = divmod(pitch - 36 - ((key + 6) % 12 - 6), 12)
    return JUST_INTONATION[step] * FRAME_RATE / PERIOD_FRAMES[key] * 2.0**octave


def note(instrument: str, pitch: int, key: int, seconds: float, velocity: float) -> Signal:
    """A note of a MIDI pitch, held for `seconds` (at most MAX_NOTE_SECONDS) and then released.

    `key` is the tonic of the key's major scale, as a pitch class; `velocity` is 0 to 1.
    """
    timbre = TIMBRES[instrument]
    body = _body(instrument, pitch, key, velocity > 0.75)
    held, fade = int(min(seconds, MAX_NOTE_SECONDS) * SAMPLE_RATE), int(timbre.release * SAMPLE_RATE)
    sound = body[: held + fade].copy()
    if (tail := len(sound) - held) > 0:
        sound[held:] *= np.linspace(1, 0, tail, dtype=np.float32)
    return np.asarray(sound * velocity, np.float32)


@lru_cache(maxsize=4000)
def _body(instrument: str, pitch: int, key: int, loud: bool) -> Signal:
    timbre, layer = TIMBRES[instrument], VELOCITY_LAYERS[loud]
    time = np.arange(int((MAX_NOTE_SECONDS + timbre.release) * SAMPLE_RATE)) / SAMPLE_RATE
    fundamental, base = frequency(pitch, key), FRAME_RATE / PERIOD_FRAMES[key]
    rate = base * max(1, round(timbre.vibrato_rate / base))
    onset = 1 - np.exp(-time / 0.25)
    wobble = timbre.vibrato * onset * np.sin(2 * np.pi * rate * time)
    sound = np.zeros_like(time)
    phase = 2 * np.pi * fundamental * time + wobble
    for number, (multiple, amplitude) in enumerate(timbre.partials):
        if fundamental * multiple > MAX_PARTIAL_HZ:
            continue
        # A louder note is brighter, and a sustained note gets brighter during its attack.
        level = amplitude * layer ** (timbre.brightness * number)
        partial = level * np.sin(multiple * phase + 1.7 * number)
        if timbre.decay is not None:
            reach = timbre.decay * 2 ** ((57 - pitch) / 24) / (1 + timbre.damping * number)
            partial *= np.exp(-time / reach)
        else:
            partial *= 1 - np.exp(-time / (timbre.attack * (0.4 + 0.25 * number)))
        sound += partial
    if timbre.tremolo:
        sound *= 1 + timbre.tremolo * onset * np.sin(2 * np.pi * rate * time + 0.6)
    if timbre.breath:
        sound += timbre.breath * np.random.default_rng(pitch).standard_normal(len(time))
    sound *= np.minimum(1, time / timbre.attack)
    level = np.sqrt(np.mean(np.square(sound[: SAMPLE_RATE // 2]))) + 1e-9
    return np.asarray(0.12 * sound / level, np.float32)


class Kit(Struct, frozen=True, kw_only=True):
    """Frequencies in Hz, times in seconds."""

    kick: float = 48.0
    kick_click: float = 0.25
    kick_decay: float = 0.09
    snare: float = 190.0
    snare_decay: float = 0.07
    snare_noise: float = 0.8
    hat_decay: float = 0.025
    level: float = 1.0


KITS: Final = {
    "acoustic": Kit(),
    "electronic": Kit(kick=44.0, kick_click=0.5, kick_decay=0.13, snare=220.0, snare_noise=1.0, hat_decay=0.02),
    "dusty": Kit(kick=55.0, kick_click=0.1, snare=170.0, snare_decay=0.05, snare_noise=0.6, hat_decay=0.018, level=0.8),
    "brushes": Kit(kick=60.0, kick_click=0.05, snare_decay=0.11, snare_noise=0.5, hat_decay=0.05, level=0.6),
}


@lru_cache
def drum(kit: str, piece: str) -> Signal:
    """`piece` is kick, snare, hat, open hat, ride or shaker."""
    sounds = KITS[kit]
    rng = np.random.default_rng([0, len(piece)])
    time = np.arange(int(0.5 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = rng.standard_normal(len(time))
    hiss = np.diff(noise, prepend=0.0)
    match piece:
        case "kick":
            sweep = 2 * np.pi * (sounds.kick * time + 5.0 * (1 - np.exp(-time * 30)))
            sound = np.sin(sweep) * np.exp(-time / sounds.kick_decay) + sounds.kick_click * noise * np.exp(-time * 400)
        case "snare":
            tone = 0.6 * np.sin(2 * np.pi * sounds.snare * time) * np.exp(-time * 22)
            sound = 0.8 * tone + 0.45 * sounds.snare_noise * noise * np.exp(-time / sounds.snare_decay)
        case "hat":
            sound = 0.22 * hiss * np.exp(-time / sounds.hat_decay)
        case "open hat":
            sound = 0.2 * hiss * np.exp(-time / 0.12)
        case "ride":
            ping = np.sin(2 * np.pi * 3100 * time) + np.sin(2 * np.pi * 4370 * time)
            sound = (0.12 * hiss + 0.05 * ping) * np.exp(-time / 0.14)
        case "shaker":
            sound = 0.12 * hiss * np.exp(-(((time - 0.03) / 0.02) ** 2))
        case _:
            raise ValueError(f"A drum kit has no {piece!r}.")
    fade = np.minimum(1, (0.5 - time) / 0.05)
    return np.asarray(sounds.level * sound * fade, np.float32)
