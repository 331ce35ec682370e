"""The records that are no events, kept with their original bytes on a topic of their own."""

import asyncio
from collections.abc import Sequence
from typing import Final

from domain.aggregates import DEAD_LETTERS
from domain.errors import TooLargeError
from domain.ports import EventLog, Message, Position, Record, TopicPartition

MAX_ERROR: Final = 500
MAX_KEY: Final = 1_000
REMEMBERED: Final = 100_000


class DeadLetters:
    """Writes each record once: a rebuild, and a host that starts again, meet the same records again.

    It reads the topic from the first record only once, then what was added. Of the positions buried it knows the newest
    `remembered` one by one; of those before, how far each partition was buried, which is in order.
    """

    def __init__(self, log: EventLog, remembered: int = REMEMBERED) -> None:
        self._log = log
        self._remembered = remembered
        self._read: dict[int, int] = {}
        self._known: dict[str, None] = {}
        self._older: dict[TopicPartition, int] = {}
        self._burying = asyncio.Lock()

    async def bury(self, dead: Sequence[tuple[Record, str]]) -> None:
        """Each record with the reason why it is none. Raises as EventLog.append and EventLog.read do."""
        async with self._burying:
            await self._catch_up()
            for record, error in dead:
                if not self._is_known(record.position):
                    await self._append(record, error[:MAX_ERROR])

    async def _catch_up(self) -> None:
        for partition, end in (await self._log.ends(DEAD_LETTERS.name)).items():
            while (offset := self._read.get(partition, 0)) < end:
                page = await self._log.read(DEAD_LETTERS.name, partition, offset)
                for letter in page:
                    self._remember(letter.key)
                self._read[partition] = page[-1].position.offset + 1 if page else end

    def _is_known(self, position: Position) -> bool:
        return str(position) in self._known or position.offset < self._older.get(_partition(position), 0)

    def _remember(self, key: str) -> None:
        self._known[key] = None
        if len(self._known) > self._remembered:
            oldest = next(iter(self._known))
            del self._known[oldest]
            try:
                position = Position.parse(oldest)
            except ValueError:  # a stranger's letter
                return
            place = _partition(position)
            self._older[place] = max(position.offset + 1, self._older.get(place, 0))

    async def _append(self, record: Record, error: str) -> None:
        key = str(record.position)
        headers = {"deadletter_key": record.key, "deadletter_error": error}
        try:
            letter = Message(DEAD_LETTERS.name, key, record.value or b"", {**record.headers, **headers})
            await self._log.append([letter])
        except TooLargeError:
            # Too large to stand twice with its reason; the source keeps the bytes, and a key that is no aggregate's.
            headers["deadletter_key"] = record.key[:MAX_KEY]
            await self._log.append([Message(DEAD_LETTERS.name, key, b"", headers)])


def _partition(position: Position) -> TopicPartition:
    return position.topic, position.partition
