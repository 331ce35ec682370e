"""The projections' host of a cluster: Faust says which partitions are this process's, and brings their records.

From where a partition is folded, the read store's watermark says and not Faust's commits, which run ahead of the store
whenever an agent is interrupted or the store is replaced.
"""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, TypeAlias, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ChannelT, EventT, StreamT, TransportT
from faust.types.auth import CredentialsT

from domain.errors import Text2SongError, UnavailableError
from domain.journal import until_done
from domain.ports import TICK, Batch, EventLog, Position, ReadStore, Record, TopicPartition
from projections.dead_letters import DeadLetters
from projections.project import FOLDS, REST_SECONDS, SMALL_BATCH, check_views, page_before, project

Adapters: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[EventLog, ReadStore]]]

WHO: Final = "The views' host"
BATCH: Final = 500
# Faust stops asking for what overflows, for a second at least: half of it should keep the agents busy for as long.
BUFFER: Final = 16_384
# A request that waits for the topics that are idle holds up the others of the same broker.
FETCH_WAIT_MS: Final = 100
WATCHES: Final = 6
STOP_SECONDS: Final = 10.0

logger: Final = logging.getLogger(__name__)


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 -- Faust takes no setting for it
        return consumer

    async def on_thread_stop(self) -> None:
        # A fetch that waits to try again, while the broker is away, lets its cancellation out of the consumer's stop:
        # the thread would die of it, and Faust wait for the thread in vain.
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            await self._ensure_consumer()._client.close()  # noqa: SLF001


class _Consumer(driver.Consumer):
    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109 -- as Faust has it
        """Not one by one, which costs broker and host as much as a batch does."""
        number = 0
        async for each in super().getmany(timeout):
            number += 1
            yield each
        if 0 < number < SMALL_BATCH:
            await asyncio.sleep(REST_SECONDS)

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Transport(driver.Transport):
    Consumer = _Consumer


class FaustHost(faust.App):
    """Processes share the partitions; each has its own `instance`, which it keeps when it starts again.

    `servers` are Kafka's, as host:port with commas between. `adapters` opens the log and the store, and may be called
    again while it raises UnavailableError. A process whose views stay behind the log for `stall_seconds`, though log
    and store answer, ends with status 70 for a supervisor to start it again; so does one that meets a bug or an event
    of a newer version, in front of which it stops without acknowledging.
    """

    def __init__(
        self,
        servers: str,
        adapters: Adapters,
        *,
        instance: str,
        prefix: str = "text2song.",
        credentials: CredentialsT | None = None,
        stall_seconds: float = 60.0,
    ) -> None:
        group = f"{prefix}projections"
        super().__init__(
            group,
            broker=f"kafka://{servers.replace(',', ';')}",
            broker_credentials=credentials,
            consumer_group_instance_id=f"{group}-{instance}",
            store="memory://",
            autodiscover=False,
            key_serializer="raw",
            value_serializer="raw",
            processing_guarantee="at_least_once",
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            consumer_auto_offset_reset="earliest",
            stream_wait_empty=True,
            stream_buffer_maxsize=BUFFER,
            broker_max_poll_records=BATCH,
            broker_commit_interval=1.0,
            broker_session_timeout=45,
            broker_heartbeat_interval=3,
            broker_rebalance_timeout=60,
            broker_request_timeout=90,
            web_enabled=False,
            worker_redirect_stdouts=False,
        )
        self._adapters = adapters
        self._prefix = prefix
        self._stall_seconds = stall_seconds
        self._events: EventLog
        self._views: ReadStore
        self._dead_letters: DeadLetters
        self._mine: set[TopicPartition] = set()
        self._folding: defaultdict[TopicPartition, asyncio.Lock] = defaultdict(asyncio.Lock)
        for topic in FOLDS:
            self.agent(self.topic(prefix + topic, allow_empty=True), name=topic)(self._agent(topic))
        self.task(self._watch)
        self.on_partitions_assigned.connect(self._assigned)

    def _new_transport(self) -> TransportT:
        return _Transport(self.conf.broker_consumer, self)

    async def on_first_start(self) -> None:
        """Faust's own would make folders for tables, of which there are none."""

    async def on_start(self) -> None:
        self._events, self._views = await until_done(lambda: self.add_async_context(self._adapters()), WHO)
        self._dead_letters = DeadLetters(self._events)
        await super().on_start()

    def _agent(self, topic: str) -> Callable[[StreamT[Any]], Awaitable[None]]:
        async def agent(stream: StreamT[Any]) -> None:
            stream.enable_acks = False
            queue = cast("ChannelT[bytes]", stream.channel).queue
            batch: list[EventT[bytes]] = []
            async for event in cast("faust.Stream[bytes]", stream).events():
                batch.append(event)
                if len(batch) < BATCH and not queue.empty():
                    continue
                number = len(batch)
                try:
                    await _or_die(self._fold(topic, [event.message for event in batch]))
                finally:
                    # What an interruption left unfolded is folded from the watermark; unacknowledged, it would hold up
                    # the stop.
                    for folded in batch:
                        await stream.ack(folded)
                    batch.clear()
                if number < SMALL_BATCH:
                    await asyncio.sleep(REST_SECONDS)

        return agent

    async def _fold(self, topic: str, messages: Sequence[Any]) -> None:
        """Folds the records that the store lacks, and before them those that Faust has skipped."""
        starts = {(topic, each.partition): each.offset for each in reversed(messages)}
        reached = {(topic, each.partition): each.offset + 1 for each in messages}
        folded = await self._folded()
        if behind := {at: first for at, first in starts.items() if folded.get(at, 0) < first}:
            for partition, first in behind.items():
                await self._fold_up_to(partition, first)
            folded = await self._folded()
        if any(folded.get(at, 0) < end for at, end in reached.items()):
            records = _records(topic, messages)
            new = [record for record in records if record.position.offset >= folded.get(_partition(record), 0)]
            await self._project(Batch(new, reached))

    async def _fold_up_to(self, partition: TopicPartition, end: int) -> None:
        async with self._folding[partition]:
            start = (await self._folded()).get(partition, 0)
            while start < end:
                page = await until_done(partial(self._events.read, *partition, start), WHO)
                batch = page_before(page, partition, end)
                await self._project(batch)
                start = batch.reached[partition]

    async def _project(self, batch: Batch[Record]) -> None:
        fold = partial(project, self._events, self._views, batch.records, batch.reached, self._dead_letters)
        await until_done(fold, WHO)

    async def _folded(self) -> dict[TopicPartition, int]:
        return await until_done(self._views.watermarks, WHO)

    async def _assigned(self, *arguments: Any, **_: object) -> None:
        """Folds what may never be delivered: Faust goes on behind the last acknowledged record, folded or not."""
        assigned: set[TP] = arguments[-1]
        self._mine = {(topic.removeprefix(self._prefix), number) for topic, number in assigned}
        for partition in self._mine:
            self.add_future(_or_die(self._catch_up(partition)))

    async def _catch_up(self, partition: TopicPartition) -> None:
        topic, number = partition
        folded = await self._folded()
        end = (await until_done(partial(self._events.ends, topic), WHO))[number]
        check_views({partition: end}, folded)
        await self._fold_up_to(partition, end)

    async def _watch(self) -> None:
        await _or_die(self._notice_stalls())

    async def _notice_stalls(self) -> None:
        seen: dict[TopicPartition, tuple[int, int]] = {}
        while not self.should_stop:
            await self.sleep(self._stall_seconds / WATCHES)
            try:
                behind = await self._behind()
            except UnavailableError:
                behind = {}
            seen = {at: (start, _times(seen.get(at), start) + 1) for at, start in behind.items()}
            for (topic, number), (start, times) in seen.items():
                if times > WATCHES:
                    raise StalledError(
                        f"Partition {number} of {topic!r} has waited at offset {start} for {self._stall_seconds:g} s, "
                        "though the log and the read store answer."
                    )

    async def _behind(self) -> dict[TopicPartition, int]:
        """Where folding goes on, for each partition of this process that holds more.

        Offsets without a record are never delivered, so it passes over them where they are the last.
        """
        # Partitions may be assigned while the log and the store are asked.
        mine = self._mine
        ends = {topic: await self._events.ends(topic) for topic in {topic for topic, _ in mine}}
        folded = await self._views.watermarks()
        behind = {}
        for at in mine:
            start, end = folded.get(at, 0), ends[at[0]][at[1]]
            if start < end and await self._events.read(*at, start, limit=1):
                behind[at] = start
            elif start < end:
                await self._fold_up_to(at, end)
        return behind


async def run(host: FaustHost) -> None:
    """Until cancelled, or until Faust gives up. Raises the error that made it give up."""
    try:
        await host.start()
        await host.wait_until_stopped()
    finally:
        await _stop(host)
    if host.crash_reason is not None:
        raise host.crash_reason


async def _stop(host: FaustHost) -> None:
    """Faust waits until all that it holds is folded, which nothing can be while the log or the store is away."""
    stopping = asyncio.create_task(host.stop())
    await asyncio.wait({stopping}, timeout=STOP_SECONDS)
    if not stopping.done():
        logger.warning("%s stops with records in hand, and acknowledges none of them.", WHO)
        logging.shutdown()
        os._exit(os.EX_OK if host.crash_reason is None else os.EX_SOFTWARE)
    stopping.result()


class StalledError(Text2SongError):
    """The views lag behind the log for no known reason."""


async def _or_die(work: Awaitable[None]) -> None:
    """An error that left an agent would acknowledge its whole batch, so the process ends with it."""
    try:
        await work
    except Text2SongError as error:
        logger.critical("%s stops and acknowledges nothing: %s", WHO, error)
    except Exception:
        logger.critical("%s stops and acknowledges nothing", WHO, exc_info=True)
    else:
        return
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


def _times(seen: tuple[int, int] | None, start: int) -> int:
    return seen[1] if seen and seen[0] == start else 0


def _records(topic: str, messages: Iterable[Any]) -> list[Record]:
    return [
        Record.from_bytes(Position(topic, at.partition, at.offset), at.key, at.value, at.headers)
        for at in messages
        if at.key != TICK
    ]


def _partition(record: Record) -> TopicPartition:
    return record.position.topic, record.position.partition
