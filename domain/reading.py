"""What a model reads of a prompt, and what its listener has to be told of it."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from domain.events.prompts import PromptAttributes

SHOWN: Final = 5
PUNCTUATION: Final = ",.;:!?()[]\"'"
TEMPO: Final = re.compile(
    r"(?<![\d.])(\d{1,4})(?:\.\d+)?[ -]*(?:bpm|beats (?:per|a) minute)|\b(?:bpm|tempo)(?: of| is|:|=| =)? *(\d{1,4})",
    re.IGNORECASE,
)
UNIT: Final = re.compile(r"bpm|beats", re.IGNORECASE)


class Reading(Struct, frozen=True, kw_only=True):
    """`words` are those read, `unread` those that mean nothing to the model; with `cut` begins what it leaves out."""

    words: tuple[str, ...]
    unread: tuple[str, ...] = ()
    cut: str | None = None


Reader: TypeAlias = Callable[[str], Reading]


def wording(text: str, attributes: PromptAttributes) -> str:
    """The whole prompt in words: its text, and each attribute that the text does not have."""
    named = (attributes.style, attributes.mood, *attributes.instrumentation, attributes.tempo)
    words = text.strip()
    for word in (word.strip() for word in named if word):
        if word and word.lower() not in words.lower():
            words = f"{words}, {word}"
    return words


def warnings(model_id: str, reading: Reading) -> list[str]:
    """In sentences, none for a prompt that is read as a whole."""
    found = []
    if len(reading.unread) == len(reading.words):
        found.append(
            f"{model_id} can read nothing of this prompt, so what it makes has nothing to do with it. "
            "Describe the music in English words."
        )
    elif reading.unread:
        found.append(f"{model_id} does not know {_quoted(reading.unread)}, and makes the music from the other words.")
    if reading.cut is not None:
        found.append(f"The prompt is too long for {model_id}, which reads nothing from “{reading.cut}” on.")
    return found


def with_unit(text: str) -> str:
    """With a tempo that has no unit, such as “tempo 96”, once more as beats a minute, which models know better."""
    found = TEMPO.search(text)
    return f"{text}, {found[2]} bpm" if found and not UNIT.search(text) else text


def tempo_warnings(model_id: str, tempi: tuple[int, int], text: str) -> list[str]:
    """A sentence that names the tempi in the text that are outside `tempi`, the slowest and the fastest."""
    slowest, fastest = tempi
    asked = [int(before or after) for before, after in TEMPO.findall(text)]
    outside = [str(tempo) for tempo in dict.fromkeys(asked) if not slowest <= tempo <= fastest]
    return [f"{model_id} plays {slowest} to {fastest} beats a minute, not {_listed(outside)}."] if outside else []


def _quoted(words: Iterable[str]) -> str:
    different = list(dict.fromkeys(f"“{word.strip(PUNCTUATION)[:40]}”" for word in words))
    return _listed(different, " words")


def _listed(different: Sequence[str], kind: str = "") -> str:
    shown = ", ".join(different[:SHOWN])
    return shown if len(different) <= SHOWN else f"{shown} and {len(different) - SHOWN} more{kind}"
