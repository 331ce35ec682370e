"""The pictures that Riffusion starts from, by the names that its interface gave them.

Those that it came with cannot be had. These are the project's own: some are drawn from music that it synthesises, in
loops of a picture's length, and the masks are plain shades.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.signal import resample_poly

from workers.engines.diffusion.spectrograms import HOP, RATE, ROWS, Picture, picture
from workers.engines.musicgen.nano.instruments import SAMPLE_RATE, Signal, drum, note

COLUMNS: Final = 512
SECONDS: Final = COLUMNS * HOP / RATE
# A picture holds two bars, of eight beats of 0.64 s.
SIXTEENTHS: Final = 32
STEP: Final = SECONDS / SIXTEENTHS
# In columns, what is seen of the loop before it begins and after it ends.
LEAD: Final = 20
DEFAULT: Final = "vibes"

# A start in sixteenths, and the sound.
Event = tuple[float, Signal]


@lru_cache
def seed_image(name: str) -> Picture:
    """Always the same. Raises KeyError."""
    return np.round(PICTURES[name]())


def _played(*events: Event) -> Picture:
    """What sounds beyond the end is heard at the beginning, as in a loop."""
    loop = np.zeros(round(SECONDS * SAMPLE_RATE), np.float32)
    for start, sound in events:
        place = round(start * STEP * SAMPLE_RATE) + np.arange(len(sound))
        np.add.at(loop, place % len(loop), sound)
    lead = LEAD * SAMPLE_RATE // 100
    turning = resample_poly(np.pad(loop, lead, mode="wrap"), RATE, SAMPLE_RATE).astype(np.float32)
    return np.ascontiguousarray(picture(turning)[:, LEAD : LEAD + COLUMNS])


def _notes(instrument: str, pitches: str, *, every: float, held: float, loud: float = 0.9) -> list[Event]:
    """Pitches of MIDI with spaces between the starts, joined by + where they sound together, and - for a rest."""
    return [
        (index * every, note(instrument, int(pitch), 0, held * STEP, loud))
        for index, chord in enumerate(pitches.split())
        if chord != "-"
        for pitch in chord.split("+")
    ]


def _beats(kit: str, **strokes: str) -> list[Event]:
    """A string of sixteenths a drum, with x for a stroke and o for a soft one; repeated until the end."""
    return [
        (index, drum(kit, piece.replace("_", " ")) * (0.9 if stroke == "x" else 0.45))
        for piece, bar in strokes.items()
        for index, stroke in enumerate(bar * (SIXTEENTHS // len(bar)))
        if stroke != "-"
    ]


def _og_beat() -> Picture:
    return _played(
        *_beats("acoustic", kick="x-----x-x-------", snare="----x-------x--o", hat="x-o-x-o-x-o-x-o-"),
        *_notes("bass", "36 - - 36 36 - 43 - 41 - - 41 41 - 43 -", every=2, held=1.8),
    )


def _vibes() -> Picture:
    return _played(
        *_notes("bells", "60+64+67+71 - 62+65+69+72 - 57+60+64+67 - 59+62+65+69 64", every=4, held=6),
        *_notes("pad", "48 45", every=16, held=15, loud=0.5),
    )


def _marim() -> Picture:
    return _played(
        *_notes("bells", "60 67 64 67 72 67 64 67 57 64 60 64 69 64 60 64", every=2, held=1.0),
        *_notes("guitar", "48 - 48 55 45 - 45 52", every=4, held=2.0, loud=0.7),
    )


def _agile() -> Picture:
    turns = "57 60 64 69 72 69 64 60 57 60 64 69 72 69 64 60 53 57 60 65 69 65 60 57 55 59 62 67 71 67 62 59"
    return _played(*_notes("synth", turns, every=1, held=0.8), *_beats("electronic", hat="x-x-x-x-"))


def _motorway() -> Picture:
    return _played(
        *_beats("electronic", kick="x---", snare="----x---", open_hat="--x-"),
        *_notes("synth bass", "33 33 33 33 33 33 33 33 29 29 29 29 31 31 31 31", every=2, held=1.5),
        *_notes("pad", "57+60+64 53+57+60", every=16, held=16, loud=0.7),
    )


def _shaded(darkness: float, *, above: float, gradual: bool = False) -> Picture:
    """Silence in the upper part of so much of the height, or what leads from it to the shade, which is below it."""
    heights = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None]
    share = np.clip(heights / above, 0, 1) if gradual else (heights > above)
    return np.broadcast_to(255 * (1 - darkness * share), (ROWS, COLUMNS)).astype(np.float32)


def _beat_lines() -> Picture:
    """One line a beat, which fades as a stroke does."""
    since = np.arange(COLUMNS, dtype=np.float32) % (COLUMNS // 8)
    return np.broadcast_to(255 * (1 - 0.8 * np.exp(-since / 6)), (ROWS, COLUMNS)).astype(np.float32)


PICTURES: Final[dict[str, Callable[[], Picture]]] = {
    "agile": _agile,
    "marim": _marim,
    "mask_beat_lines_80": _beat_lines,
    "mask_gradient_dark": lambda: _shaded(0.9, above=1.0, gradual=True),
    "mask_gradient_top_70": lambda: _shaded(0.7, above=0.7, gradual=True),
    "mask_graident_top_fifth_75": lambda: _shaded(0.75, above=0.2, gradual=True),
    "mask_top_third_75": lambda: _shaded(0.75, above=1 / 3),
    "mask_top_third_95": lambda: _shaded(0.95, above=1 / 3),
    "motorway": _motorway,
    "og_beat": _og_beat,
    "vibes": _vibes,
}
