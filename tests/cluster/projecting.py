"""One process of the projections, as the tests start and kill it: `python -m tests.cluster.projecting '{…}'`."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
from msgspec import Struct

from domain.errors import UnavailableError
from domain.ports import Document, Erasure, EventLog, ReadStore, TopicPartition, View
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from infra.storage.sqlite_store import SqliteStore
from projections.hosts.faust import FaustHost, run
from projections.project import VIEWS
from workers.reactions import PROGRESS


class Part(Struct, frozen=True, kw_only=True):
    """`failures` is the share of calls on the store that fail; `fault` is what happens at every save.

    `late_seconds` is how old the log's ends are when they arrive.
    """

    servers: str
    prefix: str
    views: str
    instance: str = "w1"
    failures: float = 0.0
    fault: Literal["bug", "hang"] | None = None
    late_seconds: float = 0.0
    stall_seconds: float = 60.0


class FailingStore(SqliteStore):
    part: Part
    dice = Random()

    async def get(self, view: View[Any], ids: Sequence[str]) -> dict[str, Any]:
        self._fail()
        return await super().get(view, ids)

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        if self.part.fault == "bug":
            raise TypeError("a bug")
        if self.part.fault == "hang":
            await asyncio.Event().wait()
        self._fail()
        await super().save(documents, watermarks, erased)
        self._fail()

    def _fail(self) -> None:
        if self.dice.random() < self.part.failures:
            raise UnavailableError("The store failed on purpose.")


class LateLog(KafkaLog):
    part: Part

    async def ends(self, topic: str) -> dict[int, int]:
        ends = await super().ends(topic)
        await asyncio.sleep(self.part.late_seconds)
        return ends


def host(part: Part) -> FaustHost:
    @contextlib.asynccontextmanager
    async def adapters() -> AsyncIterator[tuple[EventLog, ReadStore]]:
        log = await LateLog.open(KafkaAccess(servers=part.servers), prefix=part.prefix)
        log.part = part
        store = await FailingStore.open(Path(part.views), (*VIEWS, PROGRESS))
        store.part = part
        yield log, store
        await store.close()
        await log.close()

    return FaustHost(
        part.servers,
        adapters,
        instance=part.instance,
        prefix=part.prefix,
        stall_seconds=part.stall_seconds,
    )


async def main(part: Part) -> None:
    running = asyncio.create_task(run(host(part)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Part)))
