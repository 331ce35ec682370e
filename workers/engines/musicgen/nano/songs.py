"""Short songs in eight styles, composed and played from a seed: what the model is trained on."""

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import numpy as np
from msgspec import Struct

from workers.engines.musicgen.nano.instruments import FRAMES, LONGEST, PERIODS, RATE, Signal, drum, note

SECONDS: Final = 10.0
SLOWEST: Final = 70
FASTEST: Final = 140
BEATS: Final = 4

Strike: TypeAlias = tuple[float, Signal]
# In frames. All that is played begins with one: between frames the same note would have other phases each time, and so
# other codes, which nothing could learn.
EIGHTHS: Final = range(11, 22)

LEADS: Final = ("piano", "guitar", "flute", "violin", "organ", "bells", "trumpet", "synth")
MODES: Final = ("major", "minor")
BACKINGS: Final = ("piano", "guitar", "strings", "organ", "pad")

MAJOR: Final = (0, 2, 4, 5, 7, 9, 11)
MINOR: Final = (0, 2, 3, 5, 7, 8, 10)
LEADING_TONE: Final = 11
# Semitones from a minor key's tonic up to that of the major scale with the same notes.
RELATIVE: Final = 3

# Degrees of the scale, one chord a bar; 4 in minor is the major dominant.
PROGRESSIONS: Final = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 5, 4), (0, 5, 1, 4)),
    "minor": ((0, 5, 2, 4), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4), (0, 2, 5, 4)),
}

# Eighths of a bar: what is struck, and how hard.
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

# Where in the eighths of a bar the chord is struck, and for how many eighths; an arpeggio plays its notes in turn.
STABS: Final = {
    "held": ((0, 8),),
    "halves": ((0, 4), (4, 4)),
    "quarters": ((0, 2), (2, 2), (4, 2), (6, 2)),
    "eighths": tuple((eighth, 1) for eighth in range(8)),
    "offbeats": ((1, 1), (3, 1), (5, 1), (7, 1)),
    "comping": ((0, 2), (3, 3), (7, 1)),
}

# Which of the chord's notes an arpeggio plays on each eighth.
FIGURES: Final = ((0, 1, 2, 1, 2, 1, 2, 1), (0, 2, 1, 2, 0, 2, 1, 2))

MOTIFS: Final = (
    ((0, 2), (2, 2), (4, 2), (6, 2)),
    ((0, 2), (2, 1), (3, 1), (4, 4)),
    ((0, 3), (3, 1), (4, 2), (6, 2)),
    ((0, 1), (1, 1), (2, 2), (4, 1), (5, 1), (6, 2)),
    ((0, 2), (2, 2), (4, 1), (5, 1), (6, 1), (7, 1)),
    ((0, 4), (4, 2), (6, 2)),
    ((0, 1), (1, 1), (2, 1), (3, 1), (4, 4)),
)


class Style(Struct, frozen=True, kw_only=True):
    """`swing` is where the second eighth of a beat falls, 0.5 being even; `room` is the reverberation time in s."""

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
    """`tempo` is what is asked for, in beats per minute, and `eighth` the frames of an eighth note, within 5 % of it.

    `tonic` is the pitch class of the key, `mode` major or minor.
    """

    seed: int
    style: str
    tempo: int
    eighth: int
    tonic: int
    mode: str
    lead: str
    backing: str
    drums: bool

    @property
    def key(self) -> int:
        """The tonic of the major scale whose notes it has."""
        return self.tonic if self.mode == "major" else (self.tonic + RELATIVE) % 12


def compose(seed: int) -> Song:
    rng = np.random.default_rng([seed, 1])
    name = str(rng.choice(list(STYLES)))
    style = STYLES[name]
    tempo = int(rng.integers(style.tempo[0], style.tempo[1] + 1))
    key, mode = int(rng.choice(list(PERIODS))), "minor" if rng.random() < style.minor else "major"
    return Song(
        seed=seed,
        style=name,
        tempo=tempo,
        eighth=min(EIGHTHS, key=lambda frames: abs(np.log(tempo * frames / (30 * FRAMES)))),
        tonic=key if mode == "major" else (key - RELATIVE) % 12,
        mode=mode,
        lead=str(rng.choice(LEADS)),
        backing=str(rng.choice(style.backings)),
        drums=bool(rng.random() < style.drums),
    )


def play(song: Song, seconds: float = SECONDS) -> Signal:
    """Mono at RATE, below 0.95 and always as loud as its notes: another gain would be other codes."""
    band = _Band(song, seconds)
    tune, drums = _track(band.tune(), seconds), _track(band.drums() if song.drums else (), seconds)
    mix = _reverberate(tune, band.style.room, 0.16) + 0.75 * _reverberate(drums, 0.2, 0.06)
    return np.asarray(0.95 * np.tanh(1.3 * mix), np.float32)


class _Band:
    """Plays a song bar by bar; what it yields are sounds and when they start, in seconds."""

    def __init__(self, song: Song, seconds: float) -> None:
        self.song = song
        self.style = STYLES[song.style]
        self._bars = int(np.ceil(seconds * FRAMES / (2 * BEATS * song.eighth)))
        self._rng = np.random.default_rng([song.seed, 2])

    def tune(self) -> Iterator[Strike]:
        progressions = PROGRESSIONS[self.song.mode]
        progression = progressions[self._rng.integers(len(progressions))]
        comp = str(self._rng.choice(self.style.comp))
        if self.song.backing in {"strings", "pad"} and comp in {"eighths", "comping"}:
            comp = "halves"
        figure = FIGURES[self._rng.integers(len(FIGURES))]
        motifs = [self._motif(), self._motif()]
        order = (0, 0, 1, 0) if self._rng.random() < 0.5 else (0, 1, 0, 1)
        for bar in range(self._bars):
            degree = progression[bar % 4]
            yield from self._chord(bar, degree, comp, figure)
            yield from self._bass(bar, degree)
            yield from self._melody(bar, degree, motifs[order[bar % 4]])

    def drums(self) -> Iterator[Strike]:
        for bar in range(self._bars):
            for piece, strokes in self.style.pattern.items():
                for eighth, strength in enumerate(strokes):
                    if strength:
                        start = self._start(bar, eighth)
                        yield start, np.float32(strength) * drum(self.style.kit, piece)

    def _chord(self, bar: int, degree: int, comp: str, figure: tuple[int, ...]) -> Iterator[Strike]:
        steps = [0, 2, 4] + ([6] if self.style.sevenths else [])
        # Inversions keep the chords in one register.
        pitches = sorted(52 + (self._pitch(degree + step, degree) - 52) % 12 for step in steps)
        gain = 0.8 / len(pitches) ** 0.5
        if comp == "arpeggio":
            for eighth, index in enumerate(figure):
                yield self._start(bar, eighth), self._sound(self.song.backing, pitches[index], 2, gain * 1.2)
            return
        for eighth, length in STABS[comp]:
            start = self._start(bar, eighth)
            for pitch in pitches:
                yield start, self._sound(self.song.backing, pitch, length * 0.95, gain)

    def _bass(self, bar: int, degree: int) -> Iterator[Strike]:
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

    def _motif(self) -> list[tuple[int, int, int]]:
        """(eighth, eighths, steps above the chord's root): chord tones on the strong beats, steps between them."""
        rhythm = MOTIFS[self._rng.integers(len(MOTIFS))]
        step = int(self._rng.choice([0, 2, 4]))
        notes = []
        for eighth, length in rhythm:
            if eighth % 4 == 0:
                step = int(self._rng.choice([tone for tone in (0, 2, 4, 7) if abs(tone - step) <= 4]))
            else:
                step = int(np.clip(step + self._rng.choice([-2, -1, 1, 2]), -1, 8))
            notes.append((eighth, length, step))
        return notes

    def _melody(self, bar: int, degree: int, motif: list[tuple[int, int, int]]) -> Iterator[Strike]:
        root = degree if degree < 4 else degree - 7
        octave = 12 * int(self.song.lead in {"bells", "flute"})
        for eighth, length, step in motif:
            pitch = self._pitch(root + step + 7, degree) + octave
            start = self._start(bar, eighth)
            yield start, self._sound(self.song.lead, pitch, length * 0.95, 1.4, hard=eighth % 4 == 0)

    def _pitch(self, degree: int, chord: int) -> int:
        """The MIDI pitch of a degree of the scale, the seventh raised where the chord is a minor key's dominant."""
        scale = MAJOR if self.song.mode == "major" else MINOR
        octave, step = divmod(degree, 7)
        raised = self.song.mode == "minor" and chord == 4 and step == 6
        return 48 + self.song.tonic + 12 * octave + (LEADING_TONE if raised else scale[step])

    def _start(self, bar: int, eighth: int) -> float:
        """When an eighth of a bar falls."""
        frames = 2 * self.song.eighth * (BEATS * bar + eighth // 2)
        return (frames + (round(2 * self.song.eighth * self.style.swing) if eighth % 2 else 0)) / FRAMES

    def _sound(self, instrument: str, pitch: int, eighths: float, gain: float, *, hard: bool = False) -> Signal:
        seconds = min(eighths * self.song.eighth / FRAMES, LONGEST)
        return np.float32(gain) * note(instrument, pitch, self.song.key, seconds, 1.0 if hard else 0.75)


def _track(strikes: Iterable[Strike], seconds: float) -> Signal:
    track = np.zeros(int(seconds * RATE), np.float32)
    for start, sound in strikes:
        at = round(start * RATE)
        if at < len(track):
            track[at : at + len(sound)] += sound[: len(track) - at]
    return track


def _reverberate(sound: Signal, seconds: float, share: float) -> Signal:
    time = np.arange(int(seconds * RATE)) / RATE
    response = np.random.default_rng(0).standard_normal(len(time)) * np.exp(-6.9 * time / seconds)
    response = np.concatenate([np.zeros(int(0.012 * RATE)), response / np.sqrt(np.sum(response**2))])
    size = 1 << (len(sound) + len(response)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size), size)[: len(sound)]
    return np.asarray((1 - share) * sound + share * wet, np.float32)
