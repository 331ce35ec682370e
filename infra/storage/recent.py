"""The records appended last, as long as they follow each other: followers at the end of a log share them."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Final

from domain.ports import Record

RECORDS: Final = 1_000
BYTES: Final = 1_000_000


class Recent:
    """Those of one partition, from the offset `start` to before `end`, without what has been erased since."""

    def __init__(self, records: int = RECORDS, size: int = BYTES) -> None:
        self.start = self.end = 0
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._most_records = records
        self._most_bytes = size

    def add(self, records: Sequence[Record]) -> None:
        """Of offsets without a gap. Behind a gap, where another process has appended, it begins anew."""
        if (first := records[0].position.offset) != self.end:
            self._keep(())
            self.start = first
        self._records += records
        self._bytes += sum(map(_size, records))
        self.end = records[-1].position.offset + 1
        if erased := {record.key: record.position.offset for record in records if record.value is None}:
            self._keep(each for each in self._records if each.position.offset >= erased.get(each.key, 0))
        while len(self._records) > self._most_records or self._bytes > self._most_bytes:
            oldest = self._records.popleft()
            self._bytes -= _size(oldest)
            self.start = oldest.position.offset + 1

    def between(self, start: int, end: int) -> list[Record] | None:
        """None where it does not have all of them."""
        if start < self.start or end != self.end:
            return None
        later = takewhile(lambda record: record.position.offset >= start, reversed(self._records))
        return list(later)[::-1]

    def _keep(self, records: Iterable[Record]) -> None:
        self._records = deque(records)
        self._bytes = sum(map(_size, self._records))


def _size(record: Record) -> int:
    return len(record.value or b"")
