"""The training data: short songs in eight styles, each composed and played from a seed."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

import numpy as np
from msgspec import Struct

from workers.engines.musicgen.nano.instruments import (
    FRAME_RATE,
    MAX_NOTE_SECONDS,
    PERIOD_FRAMES,
    SAMPLE_RATE,
    Signal,
    drum,
    note,
)

T = TypeVar("T")

# What the judge rates, and the window that the model hears at once.
CLIP_SECONDS: Final = 10.0
WINDOW_SECONDS: Final = 30.0
MIN_TEMPO: Final = 70
MAX_TEMPO: Final = 140
BEATS_PER_BAR: Final = 4
# Sections of four bars each: after sixteen bars a song begins again.
FORM: Final = "AABA"
BARS_PER_SECTION: Final = 4

# A start in seconds, and the sound.
TimedSound: TypeAlias = tuple[float, Signal]
# The lengths that an eighth note can have, in frames. Every note then starts with a frame. If it started between
# frames, its phase in the frame, and so its codes, would differ each time, and a model could not learn them.
EIGHTH_FRAMES: Final = range(11, 22)

LEADS: Final = ("piano", "guitar", "flute", "violin", "organ", "bells", "trumpet", "synth")
MODES: Final = ("major", "minor")
BACKINGS: Final = ("piano", "guitar", "strings", "organ", "pad")

MAJOR: Final = (0, 2, 4, 5, 7, 9, 11)
MINOR: Final = (0, 2, 3, 5, 7, 8, 10)
LEADING_TONE: Final = 11
# Semitones from a minor key's tonic up to its relative major's.
RELATIVE_MAJOR: Final = 3

# One chord per bar, as degrees of the scale counted from 0; degree 4 in minor is the major dominant.
PROGRESSIONS: Final = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 5, 4), (0, 5, 1, 4)),
    "minor": ((0, 5, 2, 4), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4), (0, 2, 5, 4)),
}
# Those of section B: they avoid the tonic at first and end with the dominant, which leads back to it.
BRIDGES: Final = {
    "major": ((3, 4, 0, 4), (5, 3, 0, 4), (3, 0, 3, 4), (1, 4, 5, 4)),
    "minor": ((3, 5, 2, 4), (5, 2, 3, 4), (2, 5, 3, 4), (3, 0, 5, 4)),
}

# For each drum, the strength of its stroke on each eighth of a bar, 0 for none.
Pattern = dict[str, tuple[float, ...]]
BACKBEAT: Final[Pattern] = {
    "kick": (1, 0, 0, 0, 0.9, 0, 0, 0),
    "snare": (0, 0, 0.9, 0, 0, 0, 0.9, 0),
    "hat": (0.8, 0.5, 0.7, 0.5, 0.8, 0.5, 0.7, 0.5),
}
ROCK: Final[Pattern] = {
    "kick": (1, 0, 0, 0.7, 1, 0, 0, 0),
    "snare": (0, 0, 1, 0, 0, 0, 1, 0),
    "hat": (0.9, 0.7, 0.9, 0.7, 0.9, 0.7, 0.9, 0.7),
}
SWING: Final[Pattern] = {
    "kick": (0.6, 0, 0, 0, 0.5, 0, 0, 0),
    "snare": (0, 0, 0.35, 0, 0, 0, 0.35, 0.2),
    "ride": (0.9, 0, 0.9, 0.6, 0.9, 0, 0.9, 0.6),
}
LAZY: Final[Pattern] = {
    "kick": (1, 0, 0, 0, 0, 0.8, 0, 0),
    "snare": (0, 0, 0.8, 0, 0, 0, 0.8, 0),
    "hat": (0.6, 0.4, 0.6, 0.4, 0.6, 0.4, 0.6, 0.5),
}
FOUR_ON_THE_FLOOR: Final[Pattern] = {
    "kick": (1, 0, 1, 0, 1, 0, 1, 0),
    "snare": (0, 0, 0.6, 0, 0, 0, 0.6, 0),
    "open hat": (0, 0.7, 0, 0.7, 0, 0.7, 0, 0.7),
}
SHAKEN: Final[Pattern] = {
    "kick": (0.8, 0, 0, 0, 0.8, 0, 0, 0),
    "shaker": (0.9, 0.6, 0.8, 0.6, 0.9, 0.6, 0.8, 0.6),
    "snare": (0, 0, 0.35, 0, 0, 0, 0.35, 0),
}
BRUSHED: Final[Pattern] = {
    "kick": (0.7, 0, 0, 0, 0.6, 0, 0, 0),
    "snare": (0, 0, 0.5, 0, 0, 0, 0.5, 0),
    "hat": (0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0),
}

# For each comping style, the chords of a bar as (start, length) in eighths.
CHORD_RHYTHMS: Final = {
    "held": ((0, 8),),
    "halves": ((0, 4), (4, 4)),
    "quarters": ((0, 2), (2, 2), (4, 2), (6, 2)),
    "eighths": tuple((eighth, 1) for eighth in range(8)),
    "offbeats": ((1, 1), (3, 1), (5, 1), (7, 1)),
    "comping": ((0, 2), (3, 3), (7, 1)),
}

# The index of the chord's note that an arpeggio plays on each eighth.
ARPEGGIOS: Final = ((0, 1, 2, 1, 2, 1, 2, 1), (0, 2, 1, 2, 0, 2, 1, 2))

# The notes of a bar as (start, length) in eighths.
MELODY_RHYTHMS: Final = (
    ((0, 2), (2, 2), (4, 2), (6, 2)),
    ((0, 2), (2, 1), (3, 1), (4, 4)),
    ((0, 3), (3, 1), (4, 2), (6, 2)),
    ((0, 1), (1, 1), (2, 2), (4, 1), (5, 1), (6, 2)),
    ((0, 2), (2, 2), (4, 1), (5, 1), (6, 1), (7, 1)),
    ((0, 4), (4, 2), (6, 2)),
    ((0, 1), (1, 1), (2, 1), (3, 1), (4, 4)),
)


class Style(Struct, frozen=True, kw_only=True):
    """`drums` and `minor` are probabilities. `room` is the reverberation time in seconds.

    `swing` is the position of a beat's second eighth: 0.5 is straight.
    """

    tempo: tuple[int, int]
    pattern: Pattern
    kit: str
    comp: tuple[str, ...]
    bass: str
    bassline: str
    drums: float
    minor: float = 0.5
    swing: float = 0.5
    sevenths: bool = False
    room: float = 0.35
    backings: tuple[str, ...] = BACKINGS


STYLES: Final = {
    "pop": Style(
        tempo=(90, 130), pattern=BACKBEAT, kit="acoustic", comp=("quarters", "halves"), bass="bass", bassline="roots",
        drums=0.75,
    ),
    "rock": Style(
        tempo=(100, 140), pattern=ROCK, kit="acoustic", comp=("eighths", "quarters"), bass="bass", bassline="eighths",
        drums=0.8, backings=("guitar", "organ", "piano"),
    ),
    "jazz": Style(
        tempo=(85, 140), pattern=SWING, kit="brushes", comp=("comping", "halves"), bass="bass", bassline="walking",
        drums=0.65, swing=0.64, sevenths=True, backings=("piano", "guitar", "organ"),
    ),
    "lofi": Style(
        tempo=(70, 92), pattern=LAZY, kit="dusty", comp=("halves", "comping"), bass="bass", bassline="roots",
        drums=0.75, swing=0.57, sevenths=True, minor=0.6, backings=("piano", "guitar", "pad"),
    ),
    "house": Style(
        tempo=(116, 132), pattern=FOUR_ON_THE_FLOOR, kit="electronic", comp=("offbeats", "held"), bass="synth bass",
        bassline="offbeats", drums=0.85, backings=("piano", "organ", "pad", "strings"),
    ),
    "folk": Style(
        tempo=(84, 128), pattern=SHAKEN, kit="brushes", comp=("arpeggio", "quarters"), bass="bass", bassline="roots",
        drums=0.4, minor=0.4, backings=("guitar", "piano", "strings"),
    ),
    "ballad": Style(
        tempo=(70, 88), pattern=BRUSHED, kit="brushes", comp=("arpeggio", "held"), bass="bass", bassline="halves",
        drums=0.3, room=0.7, backings=("piano", "guitar", "strings", "pad"),
    ),
    "classical": Style(
        tempo=(76, 132), pattern=BRUSHED, kit="brushes", comp=("arpeggio", "quarters"), bass="bass", bassline="halves",
        drums=0.08, room=0.6, backings=("piano", "strings", "organ"),
    ),
}  # fmt: skip


class Song(Struct, frozen=True, kw_only=True):
    """`tempo` is the tempo that prompts name, in beats per minute. `tonic` is a pitch class, `mode` major or minor.

    `eighth_frames` is the length of an eighth note in frames. It sets the tempo that is played, within 5 % of `tempo`.
    """

    seed: int
    style: str
    tempo: int
    eighth_frames: int
    tonic: int
    mode: str
    lead: str
    backing: str
    drums: bool

    @property
    def key(self) -> int:
        """The tonic of the major scale with the same notes."""
        return self.tonic if self.mode == "major" else (self.tonic + RELATIVE_MAJOR) % 12


def compose(seed: int) -> Song:
    rng = np.random.default_rng([seed, 1])
    name = str(rng.choice(list(STYLES)))
    style = STYLES[name]
    tempo = int(rng.integers(style.tempo[0], style.tempo[1] + 1))
    key, mode = int(rng.choice(list(PERIOD_FRAMES))), "minor" if rng.random() < style.minor else "major"
    return Song(
        seed=seed,
        style=name,
        tempo=tempo,
        eighth_frames=min(EIGHTH_FRAMES, key=lambda frames: abs(np.log(tempo * frames / (30 * FRAME_RATE)))),
        tonic=key if mode == "major" else (key - RELATIVE_MAJOR) % 12,
        mode=mode,
        lead=str(rng.choice(LEADS)),
        backing=str(rng.choice(style.backings)),
        drums=bool(rng.random() < style.drums),
    )


def play(song: Song, seconds: float = CLIP_SECONDS) -> Signal:
    """Mono at SAMPLE_RATE, within ±0.95. It is not normalised, because another gain would give other codes."""
    band = _Band(song, seconds)
    tune, drums = _track(band.tune(), seconds), _track(band.drums() if song.drums else (), seconds)
    mix = _reverberate(tune, band.style.room, 0.16) + 0.75 * _reverberate(drums, 0.2, 0.06)
    return np.asarray(0.95 * np.tanh(1.3 * mix), np.float32)


class _Band:
    """Plays a song bar by bar."""

    def __init__(self, song: Song, seconds: float) -> None:
        self.song = song
        self.style = STYLES[song.style]
        self._bars = int(np.ceil(seconds * FRAME_RATE / (2 * BEATS_PER_BAR * song.eighth_frames)))
        self._rng = np.random.default_rng([song.seed, 2])

    def tune(self) -> Iterator[TimedSound]:
        first = _choose(self._rng, PROGRESSIONS[self.song.mode])
        comp = str(self._rng.choice(self.style.comp))
        if self.song.backing in {"strings", "pad"} and comp in {"eighths", "comping"}:
            comp = "halves"
        figure = _choose(self._rng, ARPEGGIOS)
        motifs = [self._motif(self._rng), self._motif(self._rng)]
        order = (0, 0, 1, 0) if self._rng.random() < 0.5 else (0, 1, 0, 1)
        rng = np.random.default_rng([self.song.seed, 3])
        bridge, bridge_motifs = _choose(rng, BRIDGES[self.song.mode]), [self._motif(rng), self._motif(rng)]
        sections = {"A": (first, [motifs[number] for number in order]), "B": (bridge, 2 * bridge_motifs)}
        for bar in range(self._bars):
            progression, melody = sections[FORM[bar // BARS_PER_SECTION % len(FORM)]]
            degree = progression[bar % BARS_PER_SECTION]
            yield from self._chord(bar, degree, comp, figure)
            yield from self._bass(bar, degree)
            yield from self._melody(bar, degree, melody[bar % BARS_PER_SECTION])

    def drums(self) -> Iterator[TimedSound]:
        for bar in range(self._bars):
            for piece, strokes in self.style.pattern.items():
                for eighth, strength in enumerate(strokes):
                    if strength:
                        start = self._start(bar, eighth)
                        yield start, np.float32(strength) * drum(self.style.kit, piece)

    def _chord(self, bar: int, degree: int, comp: str, figure: tuple[int, ...]) -> Iterator[TimedSound]:
        steps = [0, 2, 4] + ([6] if self.style.sevenths else [])
        # Inversions keep the chords in one register.
        pitches = sorted(52 + (self._pitch(degree + step, degree) - 52) % 12 for step in steps)
        gain = 0.8 / len(pitches) ** 0.5
        if comp == "arpeggio":
            for eighth, index in enumerate(figure):
                yield self._start(bar, eighth), self._sound(self.song.backing, pitches[index], 2, gain * 1.2)
            return
        for eighth, length in CHORD_RHYTHMS[comp]:
            start = self._start(bar, eighth)
            for pitch in pitches:
                yield start, self._sound(self.song.backing, pitch, length * 0.95, gain)

    def _bass(self, bar: int, degree: int) -> Iterator[TimedSound]:
        root = 33 + (self._pitch(degree, degree) - 33) % 12
        third, fifth = (root + (self._pitch(degree + step, degree) - root) % 12 for step in (2, 4))
        match self.style.bassline:
            case "roots":
                line = [(0, 3, root), (3, 1, root), (4, 4, root if self._rng.random() < 0.6 else fifth)]
            case "eighths":
                line = [(eighth, 1, root) for eighth in range(8)]
            case "walking":
                line = [(0, 2, root), (2, 2, third), (4, 2, fifth), (6, 2, third if self._rng.random() < 0.5 else root)]
            case "offbeats":
                line = [(eighth, 1, root) for eighth in (1, 3, 5, 7)]
            case _:
                line = [(0, 4, root), (4, 4, fifth)]
        for eighth, length, pitch in line:
            yield self._start(bar, eighth), self._sound(self.style.bass, pitch, length * 0.9, 0.9)

    def _motif(self, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """Notes as (start in eighths, length in eighths, steps of the scale above the chord's root).

        Notes on strong beats are chord tones; the notes between them move by a step or two.
        """
        rhythm = _choose(rng, MELODY_RHYTHMS)
        step = int(rng.choice([0, 2, 4]))
        notes = []
        for eighth, length in rhythm:
            if eighth % 4 == 0:
                step = int(rng.choice([tone for tone in (0, 2, 4, 7) if abs(tone - step) <= 4]))
            else:
                step = int(np.clip(step + rng.choice([-2, -1, 1, 2]), -1, 8))
            notes.append((eighth, length, step))
        return notes

    def _melody(self, bar: int, degree: int, motif: list[tuple[int, int, int]]) -> Iterator[TimedSound]:
        root = degree if degree < 4 else degree - 7
        octave = 12 * int(self.song.lead in {"bells", "flute"})
        for eighth, length, step in motif:
            pitch = self._pitch(root + step + 7, degree) + octave
            start = self._start(bar, eighth)
            yield start, self._sound(self.song.lead, pitch, length * 0.95, 1.4, hard=eighth % 4 == 0)

    def _pitch(self, degree: int, chord: int) -> int:
        """The MIDI pitch of a degree of the scale. The dominant chord of a minor key has a raised seventh."""
        scale = MAJOR if self.song.mode == "major" else MINOR
        octave, step = divmod(degree, 7)
        raised = self.song.mode == "minor" and chord == 4 and step == 6
        return 48 + self.song.tonic + 12 * octave + (LEADING_TONE if raised else scale[step])

    def _start(self, bar: int, eighth: int) -> float:
        """The time in seconds at which an eighth of a bar starts."""
        frames = 2 * self.song.eighth_frames * (BEATS_PER_BAR * bar + eighth // 2)
        return (frames + (round(2 * self.song.eighth_frames * self.style.swing) if eighth % 2 else 0)) / FRAME_RATE

    def _sound(self, instrument: str, pitch: int, eighths: float, gain: float, *, hard: bool = False) -> Signal:
        seconds = min(eighths * self.song.eighth_frames / FRAME_RATE, MAX_NOTE_SECONDS)
        return np.float32(gain) * note(instrument, pitch, self.song.key, seconds, 1.0 if hard else 0.75)


def _choose(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _track(sounds: Iterable[TimedSound], seconds: float) -> Signal:
    track = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    for start, sound in sounds:
        at = round(start * SAMPLE_RATE)
        if at < len(track):
            track[at : at + len(sound)] += sound[: len(track) - at]
    return track


def _reverberate(sound: Signal, seconds: float, share: float) -> Signal:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    response = np.random.default_rng(0).standard_normal(len(time)) * np.exp(-6.9 * time / seconds)
    response = np.concatenate([np.zeros(int(0.012 * SAMPLE_RATE)), response / np.sqrt(np.sum(response**2))])
    size = 1 << (len(sound) + len(response)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size), size)[: len(sound)]
    return np.asarray((1 - share) * sound + share * wet, np.float32)
