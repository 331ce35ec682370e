"""Prompts for songs: many ways of asking for a song's style, tempo, instruments and mood."""

from typing import Final

import numpy as np

from workers.engines.musicgen.nano.songs import Song

SLOW: Final = 88
FAST: Final = 112

STYLES: Final = {
    "pop": ("pop", "pop", "radio pop", "indie pop", "catchy pop"),
    "rock": ("rock", "rock", "indie rock", "rock and roll", "garage rock"),
    "jazz": ("jazz", "jazz", "swing", "swing jazz", "smooth jazz", "jazz club"),
    "lofi": ("lofi", "lo-fi", "lofi hip hop", "chill hop", "hip hop", "study beats"),
    "house": ("house", "house", "dance", "electronic dance", "club", "techno"),
    "folk": ("folk", "folk", "country", "acoustic", "singer songwriter"),
    "ballad": ("ballad", "ballad", "slow ballad", "love song", "lullaby"),
    "classical": ("classical", "classical", "chamber music", "baroque", "orchestral"),
}
LEADS: Final = {
    "piano": ("piano", "piano", "grand piano", "keys"),
    "guitar": ("guitar", "guitar", "acoustic guitar", "nylon guitar"),
    "flute": ("flute", "flute", "wooden flute", "whistle"),
    "violin": ("violin", "violin", "fiddle", "solo violin"),
    "organ": ("organ", "organ", "hammond organ", "church organ"),
    "bells": ("bells", "bells", "music box", "glockenspiel"),
    "trumpet": ("trumpet", "trumpet", "brass", "horn"),
    "synth": ("synth", "synth", "synthesizer", "synth lead"),
}
BACKINGS: Final = {
    "piano": ("piano", "piano", "keys"),
    "guitar": ("guitar", "guitar", "strummed guitar"),
    "strings": ("strings", "strings", "string section"),
    "organ": ("organ", "organ"),
    "pad": ("synth pad", "pads", "warm pad"),
}
MOODS: Final = {
    "major": (
        "happy", "happy", "cheerful", "joyful", "bright", "uplifting", "sunny", "warm", "hopeful", "playful",
        "major key", "in a major key", "major",
    ),
    "minor": (
        "sad", "sad", "dark", "melancholic", "moody", "somber", "gloomy", "mysterious", "tense", "nostalgic",
        "minor key", "in a minor key", "minor",
    ),
}  # fmt: skip
PACES: Final = {
    "slow": ("slow", "slow", "relaxed", "calm", "laid back", "gentle"),
    "medium": ("mid tempo", "medium tempo", "moderate", "walking pace"),
    "fast": ("fast", "fast", "upbeat", "energetic", "lively", "driving"),
}
DRUMS: Final = ("with drums", "drums", "drum beat", "with a steady beat", "drums and bass", "with percussion")
NO_DRUMS: Final = ("no drums", "without drums", "no percussion", "without percussion", "drumless")


def pace(tempo: int) -> str:
    return "slow" if tempo <= SLOW else "medium" if tempo <= FAST else "fast"


def describe(song: Song, rng: np.random.Generator) -> str:
    """A random prompt for the song. Any attribute may be left out, as in people's prompts."""
    if rng.random() < 0.1:
        return _form_prompt(song, rng)
    style = _choose(rng, STYLES[song.style]) if rng.random() < 0.75 else ""
    mood = _choose(rng, MOODS[song.mode]) if rng.random() < 0.85 else ""
    lead = _lead(song, rng) if rng.random() < 0.92 else ""
    backing = _backing(song, rng) if rng.random() < 0.6 else ""
    drums = _choose(rng, DRUMS if song.drums else NO_DRUMS) if rng.random() < 0.85 else ""
    tempo = _tempo(song, rng) if rng.random() < 0.9 else ""
    if rng.random() < 0.5 or not style:
        words = [word for word in (style, mood, lead, backing, drums, tempo) if word]
        rng.shuffle(words)
        return ", ".join(words)
    opening = _choose(rng, ("", "a ", "make me a ", "I want a ", "some ", "an instrumental: "))
    noun = _choose(rng, ("", " track", " song", " piece", " tune", " instrumental"))
    adjective = mood if mood and "key" not in mood and mood not in {"major", "minor"} else ""
    rest = [part for part in (lead, backing, drums, tempo, "" if adjective else mood) if part]
    rng.shuffle(rest)
    head = f"{opening}{adjective} {style}{noun}".replace("  ", " ").strip()
    joint = _choose(rng, (" with ", ", ", ": ")) if rest and not rest[0].startswith(("with", "at", "in")) else " "
    return head + joint + ", ".join(rest) if rest else head


def request(song: Song, rng: np.random.Generator) -> str:
    """A prompt that names tempo, drums, lead, mode and style, so that an evaluation can check them."""
    words = [
        f"{song.tempo} bpm",
        _choose(rng, DRUMS if song.drums else NO_DRUMS),
        _lead(song, rng),
        _choose(rng, MOODS[song.mode]),
        _choose(rng, STYLES[song.style]),
    ]
    rng.shuffle(words)
    return ", ".join(words)


def _form_prompt(song: Song, rng: np.random.Generator) -> str:
    return (
        f"style: {_choose(rng, STYLES[song.style])}, tempo: {song.tempo} bpm, "
        f"instrumentation: {_choose(rng, LEADS[song.lead])}, {_choose(rng, BACKINGS[song.backing])}"
        f"{', drums' if song.drums else ''}, mood: {_choose(rng, MOODS[song.mode])}"
    )


def _lead(song: Song, rng: np.random.Generator) -> str:
    name = _choose(rng, LEADS[song.lead])
    forms = ("{} melody", "{} lead", "lead {}", "{}", "featuring {}", "melody on the {}", "with a {} melody", "{} solo")
    return _choose(rng, forms).format(name)


def _backing(song: Song, rng: np.random.Generator) -> str:
    name = _choose(rng, BACKINGS[song.backing])
    return _choose(rng, ("{} chords", "{} backing", "over {} chords", "soft {} chords", "{} accompaniment")).format(
        name
    )


def _tempo(song: Song, rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return _choose(rng, PACES[pace(song.tempo)])
    forms = ("{} bpm", "{} bpm", "at {} bpm", "{}bpm", "tempo {}", "around {} bpm", "{} beats per minute")
    return _choose(rng, forms).format(song.tempo)


def _choose(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
