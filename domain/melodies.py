"""Clips that new music follows the tones of: uploaded ones, or samples. What is uploaded is no event: an object alone,
so that nothing is left of it once it is erased. Jobs name the one that they follow.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeAlias
from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct

from domain.errors import Fault
from domain.events.jobs import Melody
from domain.models import Model

FOLDER: Final = "melodies"
PREFIX: Final = "melody-"  # of the ids of those that were uploaded
MAX_BYTES: Final = 50_000_000
SECONDS: Final = (1.0, 300.0)
RATES: Final = (8_000, 192_000)  # in Hz
MAX_CHANNELS: Final = 8

# Finds a sample or an uploaded clip by its id: None unless the caller can hear it.
Melodies: TypeAlias = Callable[[str], Awaitable[Melody | None]]


class Upload(Struct, frozen=True, kw_only=True):
    """An uploaded clip as it is stored: mono, in FLAC, with `sha256` and `size` in bytes; `sample_rate` is in Hz."""

    id: str
    duration_seconds: float
    sample_rate: int
    size: int
    sha256: str
    created_at: str
    user_id: str | None = None


def upload_id(owner: str, sha256: str) -> str:
    """The same clip of the same owner is the same; of another owner, nobody can tell that it is."""
    return f"{PREFIX}{uuid5(NAMESPACE_URL, f'melody:{owner}:{sha256}')}"


def folder(id_: str) -> str:
    return f"{FOLDER}/{id_}"


def audio(id_: str) -> str:
    return f"{folder(id_)}/melody.flac"


def description(id_: str) -> str:
    return f"{folder(id_)}/melody.json"


def faults(melody: Melody, model: Model, known: Sequence[Model]) -> Iterator[Fault]:
    """`known` are the models to name instead of one that follows no melody."""
    if not model.may("melody"):
        names = ", ".join(other.id for other in known if "melody" in other.capabilities)
        detail = f"{model.id} follows no melody, such as {melody.id}; leave melody_from out"
        yield Fault("/melody_from", f"{detail}, or use one that does: {names}." if names else f"{detail}.")
