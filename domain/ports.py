"""The four ports: EventLog, ReadStore, ObjectStore and Counters.

Each has a local and a cluster adapter in `infra/`, and both pass `tests/contract/`.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, Generic, Protocol, Self, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

TopicPartition: TypeAlias = tuple[str, int]

# The key of records that mean nothing and move a compacted topic on; no text encodes to it.
TICK: Final = b"\xff"
# Objects below it are for the studio's own processes: no route serves them, and other users cannot read their files.
SECRETS: Final = "secrets/"


class Topic(Struct, frozen=True):
    """`partitions` is how many Kafka has; a log in a file has one. It cannot change once there are records.

    `retention_seconds` None keeps records forever.

    `compacted` lets a tombstone erase its key's records; a later value of the key may do so too.
    """

    name: str
    partitions: int = 1
    retention_seconds: float | None = None
    compacted: bool = False


class Position(Struct, frozen=True, order=True):
    """Where a record stands; its text form is what HTTP carries: `jobs/3/1287`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for anything but `topic/partition/offset`."""
        if parts := re.fullmatch(r"([a-z]+)/([0-9]{1,9})/([0-9]{1,18})", text):
            return cls(parts[1], int(parts[2]), int(parts[3]))
        raise ValueError(f"{text!r} is not a position such as 'jobs/3/1287'")


def after(positions: Iterable[Position]) -> dict[TopicPartition, int]:
    """For each partition, the offset from which to go on when all the positions have been read."""
    ends: dict[TopicPartition, int] = {}
    for at in positions:
        ends[at.topic, at.partition] = max(at.offset + 1, ends.get((at.topic, at.partition), 0))
    return ends


class Message(Struct, frozen=True):
    """A record before it has a place. `value` None is a tombstone: it erases the key's earlier records.

    Records of one `partition_key`, by default the key, stand on one partition. A key's records all need the same one.
    """

    topic: str
    key: str
    value: bytes | None
    headers: Mapping[str, str]
    partition_key: str | None = None


class Record(Struct, frozen=True):
    position: Position
    key: str
    value: bytes | None
    headers: Mapping[str, str]

    @classmethod
    def from_bytes(
        cls, position: Position, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]
    ) -> Self:
        """As Kafka holds it. Bytes that are no UTF-8 are escaped: strangers wrote them, and no event has them."""
        return cls(position, _text(key), value, {name: _text(content) for name, content in headers})


R = TypeVar("R")


class Batch(Struct, Generic[R], frozen=True):
    """What a follower of the log reads at once, as records or as what has been made of them.

    `reached` has the offset to go on from for each partition that was read on: behind the records, and behind offsets
    that hold none, such as those of erased records. A batch may consist of such offsets alone.
    """

    records: Sequence[R]
    reached: Mapping[TopicPartition, int]


def _text(content: bytes | None) -> str:
    return (content or b"").decode(errors="backslashreplace")


class EventLog(Protocol):
    """An append-only log of keyed records, ordered within each partition; offsets rise and may have gaps."""

    @property
    def topics(self) -> Mapping[str, Topic]: ...

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        """Returns once every message is durable.

        Raises UnavailableError when none was written, UncertainError when that is not known, and TooLargeError
        before anything is sent.
        """

    async def read(self, topic: str, partition: int, offset: int, limit: int = 500) -> list[Record]:
        """Up to `limit` records from the first at or after `offset`; empty at the end."""

    def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[Batch[Record]]:
        """Batches from the given offsets on, without end; reconnects by itself, without gap or repeat.

        Whatever `ends` says is reached, whether or not there is a record before it.
        """

    async def ends(self, topic: str) -> dict[int, int]:
        """The offset the next record of each partition will get."""

    async def close(self) -> None: ...


class Document(Protocol):
    """What a view holds: a fold of one partition's records, saved under the offset up to which it was folded."""

    @property
    def id(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def created_at(self) -> str: ...


D = TypeVar("D", bound=Document)
Scalar: TypeAlias = str | int | float | bool | None


class View(Struct, Generic[D], frozen=True):
    """A named collection of documents, listed newest first by `(created_at, id)`.

    `fields` computes the values a query may compare; each name in `filters` gets an index that serves lists filtered
    by it. A document whose field `hidden` is true is kept and listed only when asked for.

    A filter of `several` has a tuple of different values, none of them None; a query for any of them finds the
    document.

    One that is not `is_folded` holds what processes remember, not what the log says: no rebuild touches it.
    """

    name: str
    document: type[D]
    fields: Callable[[D], Mapping[str, Scalar | tuple[Scalar, ...]]] = lambda _: {}
    filters: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    is_folded: bool = True


class Erasure(Struct, frozen=True):
    """Nothing is to be left of a document but that it was erased at this offset of its partition."""

    view: View[Any]
    id: str
    position: int


class Changes(Struct, frozen=True):
    """What a batch of records makes of the views, in the order to be written."""

    saved: Sequence[tuple[View[Any], Document]] = ()
    erased: Sequence[Erasure] = ()


class Query(Struct, frozen=True, kw_only=True):
    """`start` and `end` bound `created_at`, both inclusive; `after` is the `(created_at, id)` of the last item seen.

    `among` asks for any of a few values of a filter, one that `equal` does not name and that has not several values;
    alone it is as fast as `equal`. `ids`, where given, are the only documents that may be found, and those of
    `without` are not.
    `hidden` True asks for the hidden documents instead of the others.
    """

    equal: Mapping[str, Scalar] = msgspec.field(default_factory=dict)
    among: Mapping[str, Sequence[Scalar]] = msgspec.field(default_factory=dict)
    start: str | None = None
    end: str | None = None
    hidden: bool = False
    ids: Sequence[str] | None = None
    without: Sequence[str] = ()
    after: tuple[str, str] | None = None
    offset: int = 0
    limit: int = 50


class Reader(Protocol):
    """What may be asked of the views."""

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        """The documents that exist, hidden ones too, by id."""

    async def find(self, view: View[D], query: Query) -> list[D]: ...

    async def count(self, view: View[D], query: Query) -> int:
        """How many documents match, whatever `after`, `offset` and `limit` say."""


class ReadStore(Reader, Protocol):
    """Documents that can be thrown away and folded again from the log."""

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        """Writes each document, then erases, both unless a newer position is stored, then writes the watermarks.

        The order given is the order written, or all is written at once. An erased document may come again, at a newer
        position.
        """

    async def watermarks(self) -> dict[TopicPartition, int]:
        """For each partition, the offset from which folding goes on."""

    def scan(self, view: View[D]) -> AsyncIterator[D]:
        """Every document, hidden ones too, by id."""

    def pinned(self) -> Self:
        """The store for one batch: its `save` is refused when the views have been switched since its first read."""

    async def close(self) -> None: ...


class RebuildableStore(ReadStore, Protocol):
    """A read store whose views can be replaced while they are read and written."""

    async def begin_rebuild(self, views: Sequence[View[Any]]) -> Self:
        """Empty views beside the live ones, with watermarks of their own; it shares this store's connection.

        Only the newest rebuild goes on: an earlier one, dead or alive, loses its views, and its next call raises
        ConflictError.
        """

    async def hold(self) -> None:
        """For the next few seconds no save of the live views begins: it waits."""

    async def switch(self, rebuilt: Self, watermarks: Mapping[TopicPartition, int]) -> bool:
        """Makes the rebuilt views and their watermarks the live ones, at once.

        False, and nothing is done, when the live watermarks are no longer these. Whatever was saved under them must be
        in the rebuilt views.
        """

    async def drop_unused(self) -> None:
        """Removes views that are neither live nor being rebuilt, once nobody can be reading them."""


def check_key(key: str) -> list[str]:
    """The segments of an object's key. Raises ValueError for a key that some store could not hold."""
    if len(key.encode()) > 1024 or "\0" in key or "\\" in key:
        raise ValueError(f"{key!r} is no object key: at most 1024 bytes, without NUL and backslash.")
    segments = key.split("/")
    for segment in segments:
        if segment in {"", ".", ".."} or len(segment.encode()) > 255:
            raise ValueError(f"{key!r} is no object key: {segment!r} cannot be a part of one.")
    return segments


class ObjectInfo(Struct, frozen=True):
    """`etag` changes whenever the bytes do."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """Whole files under keys such as `samples/{job}/{attempt}/{claim}/{index}.flac`.

    Keys are relative, `/`-separated, and never climb: any other raises ValueError.
    """

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        """All or nothing: a reader sees the old bytes or the new.

        Without `replace` an object that is already there stays, and its info is returned: of many such puts at once
        the first wins, and all of them are told of it.

        Raises UnavailableError when the disk or server refuses.
        """

    async def put_file(self, key: str, file: BinaryIO, *, replace: bool = True) -> ObjectInfo:
        """As `put`, with all that a file holds, which may be more than fits in memory. It can be put again."""

    async def stat(self, key: str) -> ObjectInfo | None: ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes in chunks. Raises NotFoundError before the first chunk when there is no such object."""

    async def list(self, prefix: str) -> list[ObjectInfo]: ...

    async def delete(self, prefix: str) -> int:
        """Removes the object of that key and every object below `prefix/`; returns how many."""

    async def close(self) -> None: ...


class Counters(Protocol):
    """Numbers that all processes of a studio count together, such as requests in a window of time."""

    async def add(self, name: str, amount: int, expires_at: float) -> int:
        """The sum of all that was added under the name, this too; it may be forgotten from then on, in Unix time.

        Raises UnavailableError. Then it may have been added.
        """

    async def close(self) -> None: ...
