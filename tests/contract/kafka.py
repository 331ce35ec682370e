import uuid
from pathlib import Path
from typing import Any

from domain.ports import EventLog, Topic
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from tests.servers import servers


class KafkaLogHarness:
    """Each has topics of its own on the one broker."""

    kept = Topic("kept", partitions=4)
    compacted = Topic("compacted", partitions=2, compacted=True)
    max_record_bytes = 100_000

    def __init__(self, _: Path) -> None:
        self.access = KafkaAccess(servers=servers().addresses.kafka)
        self.prefix = f"{uuid.uuid4().hex}."
        self._opened: list[KafkaLog] = []

    async def open(self) -> KafkaLog:
        topics = {topic.name: topic for topic in (self.kept, self.compacted)}
        log = await KafkaLog.open(
            self.access, topics, self.max_record_bytes, prefix=self.prefix, timeout_seconds=20.0, erase_seconds=1.0
        )
        self._opened.append(log)
        return log

    async def break_connection(self, log: EventLog) -> None:
        assert isinstance(log, KafkaLog)
        producers = [log._producer.client] if log._producer else []
        for client in [*producers, *(consumer._client for consumer in log._consumers)]:
            cut(client)

    async def close(self) -> None:
        for log in self._opened:
            await log.close()


def cut(client: Any) -> None:
    """As when the network goes: nothing that is still to be sent is sent."""
    for connection in list(client._conns.values()):
        if connection._writer is not None:
            connection._writer.transport.abort()
