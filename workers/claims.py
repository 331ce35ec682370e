"""Who runs what: workers claim by the order of the log.

Every worker reads the whole topic, so it folds each claim, cancellation and result in the order all others do. A claim
is an event like any other: a worker runs a thing only once the fold, at that position, says that the claim is its own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from math import inf
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from domain import attempts
from domain.aggregates import AGGREGATES
from domain.correlation import correlated
from domain.events import MAX_ERROR, Event, Recorded, timestamp
from domain.events.progress import TOPIC as TELEMETRY
from domain.events.progress import WorkerAlive
from domain.frontier import Frontier
from domain.journal import Journal, until_done
from domain.ports import Position, Query, ReadStore, TopicPartition
from workers.line import Line
from workers.peers import Peers
from workers.trade import AttemptError, BrokenError, C, Run, Trade

logger = logging.getLogger(__name__)
PAGE: Final = 500
REMEMBERED: Final = 100_000
HEARTBEAT_SECONDS: Final = 3.0
LONGEST_REST: Final = 60.0
REPAIRS: Final = 6
T = TypeVar("T")


class Claims(Generic[C]):
    """One worker. `lease` is how long a silent worker keeps what it runs, `backoff` the first wait before a retry, in
    seconds. It claims while what it runs, by size, is below `capacity`.

    `turn` says a thing's rank, of which the smallest comes first, and its owner: those of one rank take turns. Of one
    owner `share` things run at once, at most. `longest_rest` bounds the wait before a retry, whatever an event says.
    """

    def __init__(
        self,
        journal: Journal,
        store: ReadStore,
        trade: Trade[C],
        *,
        capacity: int | Callable[[], int] = 1,
        lease: float = 6.0,
        backoff: float = 1.0,
        turn: Callable[[C], tuple[Any, str]] = lambda _: (0, ""),
        share: float = inf,
        longest_rest: float = LONGEST_REST,
    ) -> None:
        self.id = journal.new_id()
        self._journal = journal
        self._store = store
        self._trade = trade
        self._topic = trade.view.name
        self._capacity = capacity
        self._lease = lease
        self._backoff = backoff
        self._turn = turn
        self._share = share
        self._longest_rest = longest_rest
        # The open things: those that wait, and those that an attempt holds or left behind.
        self._queued: dict[str, C] = {}
        self._begun: dict[str, C] = {}
        self._closed: dict[str, None] = {}
        # Those that wait, and those that rest, the soonest first; some are out of date.
        self._line = Line()
        self._resting: list[tuple[float, str]] = []
        self._rested_at: dict[str, float] = {}
        self._runs: dict[str, Run[C]] = {}
        self._cancelling: set[str] = set()
        self._broken = asyncio.Event()
        self._fault: BrokenError | None = None
        self._repairs = 0
        self._checking = asyncio.Lock()
        self._frontier = Frontier()
        self._interval = min(lease / 3, HEARTBEAT_SECONDS)
        self._peers = Peers(self.id)

    async def run(self) -> None:
        """Runs until cancelled, and then gives its attempts back to the queue.

        A worker that is broken gives them back as well and claims nothing; after some tries BrokenError comes out of
        it, in an ExceptionGroup.
        """
        barrier = await self._until_done(lambda: self._journal.log.ends(self._topic))
        await self._until_done(self._load)
        beating = asyncio.create_task(self._heartbeat())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                # It goes on while the attempts are ended: a peer would take over those of a silent worker.
                tasks.create_task(self._outlived_by(beating))
                tasks.create_task(self._mend())
                await self._frontier.reached(Position(self._topic, number, end - 1) for number, end in barrier.items())
                await self._work(tasks)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease):
                    await self._append(self._trade.alive(self.id, "stopped"))

    async def append(self, event: Event) -> None:
        """Returns once the event is folded."""
        await self._frontier.reached(await self._append(event))

    async def _load(self) -> None:
        """The views' open things, and where to read on: closed ones need never be folded again."""
        marks = await self._store.watermarks()
        partitions = range(self._journal.log.topics[self._topic].partitions)
        start: dict[TopicPartition, int] = {(self._topic, at): marks.get((self._topic, at), 0) for at in partitions}
        ends = await self._journal.log.ends(TELEMETRY.name)
        start |= {(TELEMETRY.name, number): end for number, end in ends.items()}
        self._frontier.advance(start)
        # One that is deleted in the meantime is found among the hidden ones, which are read last.
        for hidden in (False, True):
            last, found = None, list[C]()
            while page := await self._store.find(
                self._trade.view, Query(equal={"open": True}, hidden=hidden, after=last, limit=PAGE)
            ):
                found += page
                last = (page[-1].created_at, page[-1].id)
            for thing in sorted(found, key=self._trade.urgency):
                self._take_in(thing, self._journal.now())

    async def _follow(self) -> None:
        async for batch in self._journal.follow(dict(self._frontier.next)):
            for recorded in batch.records:
                self._fold(recorded)
            self._frontier.advance(batch.reached)

    def _fold(self, recorded: Recorded) -> None:
        if isinstance(recorded.event, WorkerAlive):
            self._peers.hear(recorded.event.worker_id)
        if recorded.position.topic != self._topic or recorded.key in self._closed:
            return
        thing: C | None = AGGREGATES[self._topic].apply(self._known(recorded.key), recorded)
        if thing is None:
            return
        self._take_in(thing, recorded.time)
        if run := self._runs.get(thing.id):
            run.current = thing
            if not run.is_held:
                run.stop()

    def _take_in(self, thing: C, now: str) -> None:
        waited = self._queued.pop(thing.id, None)
        before = waited or self._begun.pop(thing.id, None)
        if waited is not None and thing.is_running:
            self._line.pass_on(*self._turn(thing))
        if not thing.is_open:
            self._close(thing)
            return
        (self._begun if thing.is_running or thing.is_stopping else self._queued)[thing.id] = thing
        if thing.worker_id:
            self._peers.meet(thing.worker_id)
        if thing.retry_at is None:
            self._rested_at.pop(thing.id, None)
        elif before is None or before.retry_at != thing.retry_at:
            # The wait is spent by a clock that never jumps.
            self._rested_at[thing.id] = monotonic() + min(attempts.rest(now, thing.retry_at), self._longest_rest)
        # One that rests no longer is lined up too: what it rested for may be hours away.
        if thing.id in self._queued and (before is None or before.is_running or before.retry_at != thing.retry_at):
            self._line_up(thing.id)

    def _close(self, thing: C) -> None:
        self._queued.pop(thing.id, None)
        self._rested_at.pop(thing.id, None)
        self._closed[thing.id] = None
        if len(self._closed) > REMEMBERED:
            del self._closed[next(iter(self._closed))]

    async def _is_closed(self, thing: C) -> bool:
        """Whether it was closed before this worker began to read, and has been asked for once more."""
        stored = await self._until_done(lambda: self._store.get(self._trade.view, [thing.id]))
        return thing.id in stored and not stored[thing.id].is_open

    def _known(self, id_: str) -> C | None:
        return self._queued.get(id_) or self._begun.get(id_)

    async def _heartbeat(self) -> None:
        while True:
            state = "broken" if self._broken.is_set() else "busy" if self._runs else "ready"
            await self._append(self._trade.alive(self.id, state))
            await asyncio.sleep(self._interval)

    async def _outlived_by(self, beating: asyncio.Task[None]) -> None:
        await asyncio.shield(beating)

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            for thing in self._abandoned():
                if thing.is_stopping:
                    self._cancelling.add(thing.id)
                    tasks.create_task(self._cancel(thing))
            size = sum(self._trade.size(run.current) for run in self._runs.values())
            capacity = self._capacity() if callable(self._capacity) else self._capacity
            free = self._next() if size < capacity and not self._broken.is_set() else None
            if free is not None and (not self._runs or self._trade.size(free) < inf):
                with self._about(free):
                    await self._claim(free, tasks)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease / 10):
                        await self._frontier.moved()

    def _abandoned(self) -> list[C]:
        """Things whose attempt nobody runs: their worker is silent, or is this one and lost them to a fault."""
        return [
            thing
            for thing in self._begun.values()
            if thing.id not in self._runs
            and thing.id not in self._cancelling
            and (thing.worker_id == self.id or self._peers.is_silent(thing.worker_id, self._lease / self._interval))
        ]

    def _next(self) -> C | None:
        """The most urgent thing that may be claimed."""
        now = monotonic()
        while self._resting and self._resting[0][0] <= now:
            self._line_up(heappop(self._resting)[1])
        free = [thing for thing in self._abandoned() if thing.is_running]
        if (id_ := self._line.first(partial(self._may_go, now), self._has_share)) is not None:
            free.append(self._queued[id_])
        return min(free, key=self._trade.urgency, default=None)

    def _has_share(self, owner: str) -> bool:
        return sum(self._turn(run.current)[1] == owner for run in self._runs.values()) >= self._share

    def _may_go(self, now: float, id_: str) -> bool:
        rested_at = self._rested_at.get(id_, now)
        if id_ in self._queued and rested_at > now:
            heappush(self._resting, (rested_at, id_))
        return id_ in self._queued and rested_at <= now

    def _line_up(self, id_: str) -> None:
        if (thing := self._queued.get(id_)) is not None and self._trade.is_able(thing):
            self._line.put(*self._turn(thing), self._trade.urgency(thing), id_)

    async def _claim(self, thing: C, tasks: asyncio.TaskGroup) -> None:
        if thing.attempt == 0 and await self._is_closed(thing):
            self._close(thing)
            return
        claiming = asyncio.create_task(self.append(self._trade.start(thing, self.id)))
        try:
            await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # Or else a claim that lands would count as an attempt that was lost.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease):
                    await claiming
                    if claimed := self._claimed(thing.id):
                        await self._give_back(claimed)
            raise
        if (claimed := self._claimed(thing.id)) is None:
            return
        if (end := self._trade.give_up(claimed)) is not None:
            await self._trade.tidy(claimed, claimed.attempt)
            await self.append(end)
        elif not self._trade.is_able(claimed):
            # Those that could run it are gone: back to the queue, for one that comes again.
            await self.append(self._trade.release(claimed, self._journal.now(), "No worker with its model was left."))
        else:
            run = self._runs[claimed.id] = Run(claimed, self.append)
            tasks.create_task(self._run(run))

    def _claimed(self, id_: str) -> C | None:
        """The thing while an attempt of this worker holds it."""
        thing = self._begun.get(id_)
        return thing if thing and thing.is_running and thing.worker_id == self.id else None

    async def _give_back(self, thing: C) -> None:
        await self._append(self._trade.release(thing, self._journal.now(), "The worker was stopped."))

    async def _run(self, run: Run[C]) -> None:
        """Until the attempt is over for any reason; cancelled, the attempt goes back to the queue."""
        claimed, is_stopping = run.claimed, False
        task = run.begin(self._perform(run))
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        except asyncio.CancelledError:
            is_stopping = True
            run.stop()
            await asyncio.wait({task})
            if run.is_held:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease):
                        await self._give_back(claimed)
            raise
        finally:
            del self._runs[claimed.id]
            await self._clear_up(run, None if not is_stopping else self._lease)

    async def _clear_up(self, run: Run[C], seconds: float | None) -> None:
        """Within a lease even when the worker is told to stop: of a thing that is closed, nobody clears up again."""
        tidying = asyncio.create_task(self._trade.tidy(run.current, run.claimed.attempt))
        try:
            await asyncio.wait({tidying}, timeout=seconds)
            if tidying.done():
                tidying.result()
        except asyncio.CancelledError:
            await asyncio.wait({tidying}, timeout=self._lease)
            raise
        finally:
            tidying.cancel()

    async def _perform(self, run: Run[C]) -> None:
        """Ends with the thing completed, failed or back in the queue; cancelled as soon as the claim is over."""
        thing = run.claimed
        logger.info("Attempt %d of %s %s begins.", thing.attempt, self._topic, thing.id)
        with self._journal.span(self._trade.span, "consumer", {"text2song.key": thing.id, "attempt": thing.attempt}):
            try:
                outcome = await self._trade.perform(run)
                self._repairs = 0
            except Exception as error:
                outcome = await self._failed(thing, error)
        logger.info("Attempt %d of %s %s ends with %s.", thing.attempt, self._topic, thing.id, type(outcome).__name__)
        # Before it may close: nobody tidies up after a closed one again.
        await self._trade.tidy(run.current, thing.attempt)
        await self.append(outcome)

    async def _failed(self, thing: C, error: Exception) -> Event:
        """Only what the thing itself causes counts against it, so after anything else the worker checks itself."""
        match error:
            case AttemptError(transient=False):
                self._repairs = 0
                return self._trade.fail(thing, str(error)[: MAX_ERROR // 2], None)
            case AttemptError():
                said = str(error)
            case BrokenError():
                said = str(error)
                self._break(error)
            case _:
                logger.error("Attempt %d of %s %s failed.", thing.attempt, self._topic, thing.id, exc_info=error)
                said = f"{type(error).__name__}: {error}"
        said = said[: MAX_ERROR // 2]
        async with self._checking:
            if not self._broken.is_set():
                try:
                    await self._trade.check()
                except BrokenError as fault:
                    self._break(fault)
        if self._broken.is_set():
            return self._trade.release(thing, self._journal.now(), f"The worker is broken: {said}")
        wait = timedelta(seconds=self._backoff * 2**thing.failures)
        return self._trade.fail(thing, said, timestamp(datetime.fromisoformat(self._journal.now()) + wait))

    def _break(self, fault: BrokenError) -> None:
        logger.error("Worker %s is broken and claims nothing: %s", self.id, fault)
        self._fault = fault
        self._broken.set()

    async def _mend(self) -> None:
        """Checks a broken worker again and again, until it works or there is no hope.

        A check that finds nothing wrong does not count until an attempt has ended without the worker's fault.
        """
        while True:
            await self._broken.wait()
            if self._repairs == REPAIRS:
                raise BrokenError(f"The worker gave up after {REPAIRS} tries to work again: {self._fault}")
            await asyncio.sleep(min(self._backoff * 2**self._repairs, LONGEST_REST))
            self._repairs += 1
            try:
                await self._trade.check()
            except BrokenError as fault:
                self._fault = fault
                logger.warning("Worker %s is still broken: %s", self.id, fault)
            else:
                self._broken.clear()
                logger.warning("Worker %s works again.", self.id)

    async def _cancel(self, thing: C) -> None:
        try:
            with self._about(thing):
                await self.append(await self._trade.cancel(thing, self.id))
        finally:
            self._cancelling.discard(thing.id)

    def _about(self, thing: C) -> AbstractContextManager[None]:
        return correlated(thing.correlation, self._trade.job_id(thing))

    async def _append(self, event: Event) -> list[Position]:
        return await self._until_done(partial(self._journal.append, event, event_id=self._journal.new_id()))

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        return await until_done(call, f"Worker {self.id}")
