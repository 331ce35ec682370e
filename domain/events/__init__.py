"""The published events, a file for each topic, and the records that readers meet instead of them.

An event is a JSON object tagged by `type`. Fields are only ever added, with defaults; anything else is a new version
with an upcaster.
"""

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, TypeAlias

from msgspec import Meta, Struct

from domain.correlation import Correlation
from domain.ports import Position

# What a stranger writes on the log is held to the same bounds as what is written here; what breaks them is no event.
# Python's $ would let a line break through, which other languages' does not.
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
END: Final = r"$(?!\n)"
MAX_ERROR: Final = 4_000
MAX_LABEL: Final = 200
MAX_ID: Final = 200
Identifier: TypeAlias = Annotated[str, Meta(pattern=f"^{NAME}{END}", max_length=MAX_ID)]
Label: TypeAlias = Annotated[str, Meta(max_length=MAX_LABEL)]
ModelId: TypeAlias = Annotated[str, Meta(max_length=1_000)]
ErrorText: TypeAlias = Annotated[str, Meta(max_length=MAX_ERROR)]
Attempt: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Sha256: TypeAlias = Annotated[str, Meta(pattern=f"^[0-9a-f]{{64}}{END}")]
Moment: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
        rf"\.[0-9]{{6}}Z{END}",
    ),
]


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """`key` is the aggregate's id. `partition_key` says which aggregate's partition the event stands on: its own."""

    topic: ClassVar[str]
    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def key(self) -> str:
        raise NotImplementedError

    @property
    def partition_key(self) -> str:
        return self.key


class Erased(Struct, frozen=True, kw_only=True):
    """A tombstone on a topic that erases: the aggregate and its earlier records are gone.

    `given_partition_key` is that of the events it erases, where it is not the key; readers do not know it.
    """

    topic: str
    key: str
    given_partition_key: str | None = None

    @property
    def partition_key(self) -> str:
        return self.given_partition_key or self.key


class UnknownEvent(Struct, frozen=True):
    """A type this version does not know: every fold passes over it."""

    type: str


class Undecodable(Struct, frozen=True):
    """Bytes that are no event: kept on the dead-letter topic, and the aggregate is marked suspect."""

    error: str


class Recorded(Struct, frozen=True):
    """An event and its place. `time` is ISO 8601 in UTC with microseconds and a Z, so that text order is time order."""

    position: Position
    key: str
    id: str
    time: str
    event: Event | Erased | UnknownEvent | Undecodable
    correlation: Correlation | None = None

    @property
    def type(self) -> str:
        return self.event.type if isinstance(self.event, UnknownEvent) else type(self.event).__name__


def timestamp(moment: datetime) -> str:
    """Raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def cloud_type(event: type[Event]) -> str:
    return f"text2song.{event.name}.v{event.version}"
