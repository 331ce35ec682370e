"""The event log on Kafka: one idempotent producer, and readers that keep their own positions, without groups."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Final, Self, TypeAlias, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from domain.aggregates import TOPICS
from domain.errors import TooLargeError, UnavailableError, UncertainError
from domain.ports import TICK, Batch, Message, Position, Record, Topic, TopicPartition
from infra.storage.kafka import KafkaAccess, claim_topics, diagnose, segment_seconds

T = TypeVar("T")
Row: TypeAlias = tuple[TopicPartition, bytes, bytes | None, list[tuple[str, bytes]]]

BATCH: Final = 500
BATCH_BYTES: Final = 262_144
READERS: Final = 4
POLL_MS: Final = 1_000
# A request that waits for the partitions that are idle holds up the others of the same broker.
FETCH_WAIT_MS: Final = 100
RETRY_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0
CLOSED: Final = "The event log is closed."
REFUSALS: Final = (OutOfOrderSequenceNumber, MessageSizeTooLargeError, TopicAuthorizationFailedError)

logger: Final = logging.getLogger(__name__)


class KafkaLog:
    def __init__(
        self,
        access: KafkaAccess,
        topics: Mapping[str, Topic],
        max_record_bytes: int,
        prefix: str,
        timeout_seconds: float,
    ) -> None:
        self.topics = topics
        self._access = access
        self._max_record_bytes = max_record_bytes
        self._prefix = prefix
        self._timeout_seconds = timeout_seconds
        self._partitioner = DefaultPartitioner()
        self._producer: AIOKafkaProducer | None = None
        self._producing = asyncio.Lock()
        self._unanswered: dict[TopicPartition, asyncio.Future[Any]] = {}
        self._consumers: set[AIOKafkaConsumer] = set()
        self._idle: list[AIOKafkaConsumer] = []
        self._reading = asyncio.Semaphore(READERS)
        self._ticking: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(
        cls,
        access: KafkaAccess,
        topics: Mapping[str, Topic] = TOPICS,
        max_record_bytes: int = 1_000_000,
        *,
        prefix: str = "text2song.",
        replicas: int = 1,
        timeout_seconds: float = 30.0,
        erase_seconds: float = 86_400.0,
    ) -> Self:
        """Creates the topics that are missing, each with `replicas` copies.

        A call waits `timeout_seconds` for the broker, which should be more than an outage that nobody is to notice.
        What a tombstone erases is gone from the broker's files after about `erase_seconds`.

        Raises UnavailableError when no broker takes the connection, and ConflictError for a topic that is not as it
        must be.
        """
        self = cls(access, topics, max_record_bytes, prefix, timeout_seconds)
        try:
            async with self._refusals():
                await claim_topics(
                    access,
                    topics.values(),
                    prefix=prefix,
                    replicas=replicas,
                    erase_seconds=erase_seconds,
                    max_record_bytes=max_record_bytes,
                )
            await self._started_producer()
        except BaseException:
            await self.close()
            raise
        self._ticking = asyncio.create_task(self._tick(segment_seconds(erase_seconds)))
        return self

    async def append(self, messages: Sequence[Message]) -> list[Position]:
        return await self._append([self._row(message) for message in messages])

    async def read(self, topic: str, partition: int, offset: int, limit: int = BATCH) -> list[Record]:
        self._known({(topic, partition): offset})
        at = KafkaPartition(self._prefix + topic, partition)
        async with self._reader() as consumer:
            if offset < (end := (await consumer.end_offsets([at]))[at]):
                await self._seek(consumer, {(topic, partition): offset})
                while await consumer.position(at) < end:
                    batch = await consumer.getmany(at, timeout_ms=POLL_MS, max_records=limit)
                    if records := self._records(batch):
                        return records
        return []

    async def follow(self, start: Mapping[TopicPartition, int]) -> AsyncIterator[Batch[Record]]:
        at = dict(self._known(start))
        while not self._closed:
            try:
                consumer = await self._started_consumer()
                try:
                    async with asyncio.timeout(self._timeout_seconds):
                        await self._seek(consumer, at)
                    looked = 0.0
                    while True:
                        batch = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH)
                        # The positions pass over ticks, and over offsets left by compaction and by transactions. To
                        # ask for all of them costs more than a batch of a few records does.
                        now = time.monotonic()
                        everywhere = not batch or now - looked > POLL_MS / 1000
                        looked = now if everywhere else looked
                        asked = consumer.assignment() if everywhere else batch
                        passed = {self._ours(each): await consumer.position(each) for each in asked}
                        if reached := {each: offset for each, offset in passed.items() if offset > at[each]}:
                            at |= reached
                            yield Batch(self._records(batch), reached)
                finally:
                    await self._stop_consumer(consumer)
            except ConsumerStoppedError:
                return
            except (KafkaError, OSError, TimeoutError) as error:
                logger.warning("A follower of the event log connects again: %r", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def ends(self, topic: str) -> dict[int, int]:
        self._known({(topic, 0): 0})
        partitions = [KafkaPartition(self._prefix + topic, number) for number in range(self.topics[topic].partitions)]
        async with self._reader() as consumer:
            return {at.partition: end for at, end in (await consumer.end_offsets(partitions)).items()}

    async def close(self) -> None:
        """Finishes the appends already made, unless the broker keeps them waiting; followers end."""
        self._closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        async with self._producing:
            if self._producer is not None:
                await _stop(self._producer)
        await asyncio.gather(*self._stopping, *map(_end, self._consumers))

    def _known(self, partitions: Mapping[TopicPartition, T]) -> Mapping[TopicPartition, T]:
        for topic, partition in partitions:
            if topic not in self.topics or partition not in range(self.topics[topic].partitions):
                raise ValueError(f"The event log has no partition {partition} of a topic {topic!r}.")
        return partitions

    def _row(self, message: Message) -> Row:
        if (topic := self.topics.get(message.topic)) is None:
            raise ValueError(f"The event log has no topic {message.topic!r}.")
        if message.value is None and not topic.compacted:
            raise ValueError(f"The topic {topic.name!r} erases nothing, so it takes no tombstone of {message.key!r}.")
        key, headers = message.key.encode(), [(name, content.encode()) for name, content in message.headers.items()]
        size = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, message.value, headers)
        if size > self._max_record_bytes:  # the broker's refusal would end the producer, and all that it still sends
            raise TooLargeError(
                f"A record of {size:,} bytes on {topic.name!r} is over the limit of {self._max_record_bytes:,} bytes; "
                "nothing was appended."
            )
        every = range(topic.partitions)
        place = self._partitioner((message.partition_key or message.key).encode(), every, every)
        return (topic.name, place), key, message.value, headers

    async def _append(self, rows: Sequence[Row]) -> list[Position]:
        if self._closed:
            raise UnavailableError(CLOSED)
        if silent := [at for at, *_ in rows if at in self._unanswered and not self._unanswered[at].done()]:
            raise UnavailableError(
                f"Kafka has not answered for partition {silent[0][1]} of {silent[0][0]!r} since an append before this "
                "one. Nothing was appended."
            )
        if not rows:
            return []
        producer = self._producer or await self._started_producer()
        sent: list[asyncio.Future[Any]] = []
        errors: list[BaseException] = []
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for (topic, partition), key, value, headers in rows:
                    future = await producer.send(self._prefix + topic, value, key, partition, headers=headers)
                    future.add_done_callback(_retrieve)
                    sent.append(future)
                await asyncio.wait(sent)
        except (TimeoutError, KafkaError) as error:
            errors.append(error)
        errors += [failed for future in sent if future.done() and (failed := future.exception())]
        if errors:
            raise self._failure(producer, rows, sent, errors)
        offsets = [future.result().offset for future in sent]
        if min(offsets) < 0:
            raise UncertainError("Kafka already had the record and no longer knows where. It may be appended again.")
        return [Position(*at, offset) for (at, *_), offset in zip(rows, offsets, strict=True)]

    def _failure(
        self,
        producer: AIOKafkaProducer,
        rows: Sequence[Row],
        sent: "Sequence[asyncio.Future[Any]]",
        errors: Sequence[BaseException],
    ) -> UnavailableError | UncertainError:
        if any(isinstance(error, KafkaError) for error in errors):
            self._drop(producer)
        elif producer is self._producer:
            self._unanswered |= {at: future for (at, *_), future in zip(rows, sent, strict=False) if not future.done()}
        trouble = next((repr(error) for error in errors if str(error)), f"no answer in {self._timeout_seconds:g} s")
        if all(future.done() and isinstance(future.exception(), REFUSALS) for future in sent):
            return UnavailableError(f"Kafka did not take the append: {trouble}. Nothing was appended.")
        return UncertainError(f"Kafka may not have taken the append: {trouble}. It may be appended again.")

    async def _started_producer(self) -> AIOKafkaProducer:
        async with self._producing, self._refusals():
            if self._closed:
                raise UnavailableError(CLOSED)
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._access.servers,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=BATCH_BYTES,
                    max_request_size=self._max_record_bytes,
                    **self._access.connection(),
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def _drop(self, producer: AIOKafkaProducer) -> None:
        """After an error from the broker, every later record of the same producer may be out of order for it."""
        if producer is self._producer:
            logger.warning("The event log goes on with another producer.")
            self._producer = None
            self._unanswered = {}
            task = asyncio.create_task(_stop(producer))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _started_consumer(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._access.servers,
            auto_offset_reset="none",
            enable_auto_commit=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            **self._access.connection(),
        )
        self._consumers.add(consumer)
        try:
            await _whole(consumer.start())
        except BaseException:
            await self._stop_consumer(consumer)
            raise
        if self._closed:
            await self._stop_consumer(consumer)
        return consumer

    async def _stop_consumer(self, consumer: AIOKafkaConsumer) -> None:
        self._consumers.discard(consumer)
        await _end(consumer)

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        """One of a few consumers that stay connected between reads."""
        async with self._reading, self._refusals():
            if self._closed:
                raise ConsumerStoppedError
            consumer = self._idle.pop() if self._idle else await self._started_consumer()
            try:
                yield consumer
                consumer.assign([])
            except BaseException:
                await self._stop_consumer(consumer)
                raise
            self._idle.append(consumer)

    @contextlib.asynccontextmanager
    async def _refusals(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                yield
        except ConsumerStoppedError:
            raise UnavailableError(CLOSED) from None
        except (KafkaError, OSError, TimeoutError) as error:
            raise await diagnose(self._access, error) from error

    async def _seek(self, consumer: AIOKafkaConsumer, start: Mapping[TopicPartition, int]) -> None:
        """To the offsets, or to the first that is left where those before it have been deleted."""
        offsets = {KafkaPartition(self._prefix + topic, number): offset for (topic, number), offset in start.items()}
        first = await consumer.beginning_offsets(list(offsets))
        consumer.assign(list(offsets))
        for at, offset in offsets.items():
            consumer.seek(at, max(offset, first[at]))

    def _ours(self, at: KafkaPartition) -> TopicPartition:
        return at.topic.removeprefix(self._prefix), at.partition

    def _records(self, batch: Mapping[KafkaPartition, Sequence[ConsumerRecord]]) -> list[Record]:
        return [
            Record.from_bytes(Position(*self._ours(at), found.offset), found.key, found.value, found.headers)
            for at, records in batch.items()
            for found in records
            if found.key != TICK
        ]

    async def _tick(self, seconds: float) -> None:
        """Kafka erases nothing from the segment it writes to, and begins another only for a new record."""
        partitions = [(topic.name, number) for topic in self.topics.values() for number in range(topic.partitions)]
        rows: list[Row] = [(at, TICK, None, []) for at in partitions if self.topics[at[0]].compacted]
        while rows:
            await asyncio.sleep(seconds)
            try:
                await self._append(rows)
            except (UnavailableError, UncertainError) as error:
                logger.warning("What was erased stays in Kafka's files a while longer: %s", error)


async def _whole(starting: Coroutine[Any, Any, None]) -> None:
    """Cancelled in the middle, a client would leave a connection that nobody closes."""
    task = asyncio.create_task(starting)
    task.add_done_callback(_retrieve)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=STOP_SECONDS)
        task.cancel()
        raise


async def _end(consumer: AIOKafkaConsumer) -> None:
    """Stops it in a task of its own: while the broker is away, stop() cancels a fetch that waits to try again, and
    raises CancelledError in whoever called it, before the connections are closed.
    """
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait({stopping})
    if stopping.cancelled():
        await consumer._client.close()  # noqa: SLF001
    else:
        stopping.result()


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Callers may have gone: asyncio reports an exception that nobody has looked at."""
    if not future.cancelled():
        future.exception()


async def _stop(producer: AIOKafkaProducer) -> None:
    """Sends the records it still holds, or drops them if the broker keeps it waiting."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
    except (TimeoutError, KafkaError) as error:
        # stop() itself would leave the sender at work, which sends as soon as the broker is back.
        sender = producer._sender.sender_task  # noqa: SLF001
        sender.cancel()
        await asyncio.wait({sender}, timeout=STOP_SECONDS)
        _give_up(producer._message_accumulator, KafkaError(f"given up: {error!r}"))  # noqa: SLF001
        await producer.client.close()


def _give_up(accumulator: Any, error: KafkaError) -> None:
    """A batch that was to be sent again counts as pending, or aiokafka trips over it; nobody waits for its place."""
    held = [batch for batches in accumulator._batches.values() for batch in batches]  # noqa: SLF001
    accumulator._pending_batches.update(held)  # noqa: SLF001
    accumulator.fail_all(error)
    for batch in held:
        _retrieve(batch._drain_waiter)  # noqa: SLF001
