"""Prompts for songs: many ways of asking for a song's style, tempo, instruments and mood."""

from typing import Final

import numpy as np

from workers.engines.musicgen.nano.songs import Song

SLOW: Final = 88
FAST: Final = 112

# The most usual words stand twice.
STYLES: Final = {
    "pop": (
        "pop", "pop", "radio pop", "indie pop", "catchy pop", "pop music", "dance pop", "bubblegum pop", "summer hit",
    ),
    "rock": (
        "rock", "rock", "indie rock", "rock and roll", "garage rock", "hard rock", "punk", "punk rock", "metal",
        "grunge", "blues rock",
    ),
    "jazz": (
        "jazz", "jazz", "swing", "swing jazz", "smooth jazz", "jazz club", "bebop", "big band", "blues", "lounge",
    ),
    "lofi": (
        "lofi", "lo-fi", "lofi hip hop", "chill hop", "hip hop", "study beats", "lo-fi beats", "hip hop beats",
        "trip hop", "boom bap", "rap beat", "chillout",
    ),
    "house": (
        "house", "house", "dance", "electronic dance", "club", "techno", "edm", "electronic", "electronic dance music",
        "deep house", "trance", "disco", "electro",
    ),
    "folk": (
        "folk", "folk", "country", "acoustic", "singer songwriter", "bluegrass", "celtic", "campfire song", "americana",
    ),
    "ballad": (
        "ballad", "ballad", "slow ballad", "love song", "lullaby", "slow song", "romantic ballad", "ambient",
        "slow dance",
    ),
    "classical": (
        "classical", "classical", "chamber music", "baroque", "orchestral", "orchestra", "symphonic", "film score",
        "cinematic", "soundtrack",
    ),
}  # fmt: skip
LEADS: Final = {
    "piano": ("piano", "piano", "piano", "grand piano", "keys", "upright piano", "keyboard"),
    "guitar": ("guitar", "guitar", "guitar", "acoustic guitar", "nylon guitar", "electric guitar", "banjo", "ukulele"),
    "flute": ("flute", "flute", "flute", "wooden flute", "whistle", "pan flute", "recorder"),
    "violin": ("violin", "violin", "violin", "fiddle", "solo violin", "viola", "cello"),
    "organ": ("organ", "organ", "organ", "hammond organ", "church organ", "pipe organ", "accordion"),
    "bells": ("bells", "bells", "bells", "music box", "glockenspiel", "chimes", "xylophone", "vibraphone"),
    "trumpet": ("trumpet", "trumpet", "trumpet", "brass", "horn", "saxophone", "sax", "trombone"),
    "synth": ("synth", "synth", "synth", "synthesizer", "synth lead", "analog synth", "synthesiser"),
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
        "major key", "in a major key", "major", "merry", "optimistic", "triumphant", "sweet", "carefree", "feel good",
        "romantic", "for a summer morning", "for a party",
    ),
    "minor": (
        "sad", "sad", "dark", "melancholic", "moody", "somber", "gloomy", "mysterious", "tense", "nostalgic",
        "minor key", "in a minor key", "minor", "melancholy", "sorrowful", "lonely", "haunting", "ominous", "spooky",
        "bittersweet", "angry", "for a rainy evening", "for a lonely night",
    ),
}  # fmt: skip
PACES: Final = {
    "slow": ("slow", "slow", "relaxed", "calm", "laid back", "gentle", "very slow", "unhurried", "chill", "sleepy"),
    "medium": ("mid tempo", "medium tempo", "moderate", "walking pace", "medium pace", "not too fast"),
    "fast": ("fast", "fast", "upbeat", "energetic", "lively", "driving", "very fast", "quick", "danceable", "up tempo"),
}
DRUMS: Final = (
    "with drums", "drums", "drum beat", "with a steady beat", "drums and bass", "with percussion", "drum kit",
    "with a drummer", "heavy drums", "kick and snare", "percussion", "with a beat",
)  # fmt: skip
NO_DRUMS: Final = (
    "no drums", "without drums", "no percussion", "without percussion", "drumless", "no drum kit", "without any drums",
    "no beat", "without a drummer", "beatless",
)  # fmt: skip
# What people write too, and every song has or none can have.
ASIDES: Final = (
    "music", "instrumental", "background music", "with bass", "heavy bass", "high quality", "loop", "beats", "melody",
)  # fmt: skip


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
    aside = _choose(rng, ASIDES) if rng.random() < 0.15 else ""
    if rng.random() < 0.5 or not style:
        words = [word for word in (style, mood, lead, backing, drums, tempo, aside) if word]
        rng.shuffle(words)
        return ", ".join(words)
    opening = _choose(rng, ("", "a ", "make me a ", "I want a ", "some ", "an instrumental: "))
    noun = _choose(rng, ("", " track", " song", " piece", " tune", " instrumental"))
    adjective = mood if not mood.startswith(("in ", "for ", "major", "minor")) else ""
    rest = [part for part in (lead, backing, drums, tempo, aside, "" if adjective else mood) if part]
    rng.shuffle(rest)
    head = f"{opening}{adjective} {style}{noun}".replace("  ", " ").strip()
    joint = (
        _choose(rng, (" with ", ", ", ": ")) if rest and not rest[0].startswith(("with", "at", "in", "for")) else " "
    )
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
    forms = (
        "{} bpm", "{} bpm", "{} bpm", "at {} bpm", "{}bpm", "tempo {}", "around {} bpm", "{} beats per minute", "{}",
        "bpm {}", "bpm: {}", "a tempo of {}", "at {}", "{} beats a minute", "exactly {} bpm",
    )  # fmt: skip
    return _choose(rng, forms).format(song.tempo)


def _choose(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
