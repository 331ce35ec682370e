"""Who runs what: workers claim by the order of the log.

Every worker reads the whole topic, so it folds each claim, cancellation and result in the order all others do. A claim
is an event like any other: a worker runs a thing only once the fold, at that position, says that the claim is its own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Any, Final, Generic, TypeVar

from domain.aggregates import AGGREGATES
from domain.events import MAX_ERROR, Event, Recorded, timestamp
from domain.events.progress import TOPIC as TELEMETRY
from domain.events.progress import WorkerAlive
from domain.frontier import Frontier
from domain.journal import Journal, until_done
from domain.ports import Position, Query, ReadStore, TopicPartition
from workers.line import Line
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

    `turn` says a thing's rank, of which the smallest comes first, and its owner: those of one rank take turns.
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
        self._checking = asyncio.Lock()
        self._frontier = Frontier()
        # Silence is counted in heartbeats of one's own that came back: while the log is away, nobody is silent.
        self._interval = min(lease / 3, HEARTBEAT_SECONDS)
        self._beats = 0
        self._heard: dict[str, int] = {}

    async def run(self) -> None:
        """Runs until cancelled, and then gives its attempts back to the queue.

        A worker that is broken gives them back as well and claims nothing; after some tries BrokenError comes out of
        it, in an ExceptionGroup.
        """
        barrier = await self._until_done(lambda: self._journal.log.ends(self._topic))
        await self._until_done(self._load)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._heartbeat())
                tasks.create_task(self._mend())
                await self._frontier.reached(Position(self._topic, number, end - 1) for number, end in barrier.items())
                await self._work(tasks)
        finally:
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
        for number, end in (await self._journal.log.ends(TELEMETRY.name)).items():
            start[TELEMETRY.name, number] = end
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
            self._beats += recorded.event.worker_id == self.id
            self._hear(recorded.event.worker_id)
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

    def _hear(self, worker_id: str) -> None:
        self._heard.pop(worker_id, None)
        self._heard[worker_id] = self._beats
        if len(self._heard) > REMEMBERED:
            del self._heard[next(iter(self._heard))]

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
            self._heard.setdefault(thing.worker_id, self._beats)
        if thing.retry_at is None:
            self._rested_at.pop(thing.id, None)
        elif before is None or before.retry_at != thing.retry_at:
            # The wait is spent by a clock that never jumps.
            self._rested_at[thing.id] = _monotonic() + min(_seconds(now, thing.retry_at), LONGEST_REST)
        if thing.id in self._queued and (before is None or before.is_running):
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

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            for thing in self._abandoned():
                if thing.is_stopping:
                    self._cancelling.add(thing.id)
                    tasks.create_task(self._cancel(thing))
            size = sum(self._trade.size(run.current) for run in self._runs.values())
            capacity = self._capacity() if callable(self._capacity) else self._capacity
            may_claim = size < capacity and not self._broken.is_set()
            free = self._next() if may_claim else None
            if free is not None and (not self._runs or self._trade.size(free) < inf):
                await self._claim(free, tasks)
            else:
                await self._wait_for_change(self._lease / 10)

    async def _wait_for_change(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._frontier.moved()

    def _abandoned(self) -> list[C]:
        """Things whose attempt nobody runs: their worker is silent, or is this one and lost them to a fault."""
        silent = self._beats - self._lease / self._interval
        return [
            thing
            for thing in self._begun.values()
            if thing.id not in self._runs
            and thing.id not in self._cancelling
            and (thing.worker_id == self.id or self._heard.get(thing.worker_id or "", 0) < silent)
        ]

    def _next(self) -> C | None:
        """The most urgent thing that may be claimed."""
        now = _monotonic()
        while self._resting and self._resting[0][0] <= now:
            self._line_up(heappop(self._resting)[1])
        free = [thing for thing in self._abandoned() if thing.is_running]
        if (id_ := self._line.first(partial(self._may_go, now))) is not None:
            free.append(self._queued[id_])
        return min(free, key=self._trade.urgency, default=None)

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
        claimed = run.claimed
        task = run.task = asyncio.create_task(self._perform(run))
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        except asyncio.CancelledError:
            run.stop()
            await asyncio.wait({task})
            if run.is_held:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease):
                        await self._give_back(claimed)
            raise
        finally:
            del self._runs[claimed.id]
            await self._clear_up(run)

    async def _clear_up(self, run: Run[C]) -> None:
        """Within a lease even when the worker is told to stop: of a thing that is closed, nobody clears up again."""
        tidying = asyncio.create_task(self._trade.tidy(run.current, run.claimed.attempt))
        try:
            await asyncio.shield(tidying)
        except asyncio.CancelledError:
            await asyncio.wait({tidying}, timeout=self._lease)
            tidying.cancel()
            raise

    async def _perform(self, run: Run[C]) -> None:
        """Ends with the thing completed, failed or back in the queue; cancelled as soon as the claim is over."""
        try:
            outcome = await self._trade.perform(run)
        except Exception as error:
            outcome = await self._failed(run.claimed, error)
        # Before it may close: nobody tidies up after a closed one again.
        await self._trade.tidy(run.current, run.claimed.attempt)
        await self.append(outcome)

    async def _failed(self, thing: C, error: Exception) -> Event:
        """Only what the thing itself causes counts against it, so after anything else the worker checks itself."""
        match error:
            case AttemptError(transient=False):
                return self._trade.fail(thing, str(error)[: MAX_ERROR // 2], None)
            case AttemptError():
                said = str(error)
            case _:
                logger.error("Attempt %d of %s %s failed.", thing.attempt, self._topic, thing.id, exc_info=error)
                said = f"{type(error).__name__}: {error}"
        said = said[: MAX_ERROR // 2]
        async with self._checking:
            if not self._broken.is_set():
                try:
                    await self._trade.check()
                except BrokenError as fault:
                    logger.error("Worker %s is broken and claims nothing: %s", self.id, fault)  # noqa: TRY400
                    self._broken.set()
        if self._broken.is_set():
            return self._trade.release(thing, self._journal.now(), f"The worker is broken: {said}")
        wait = timedelta(seconds=self._backoff * 2**thing.failures)
        return self._trade.fail(thing, said, timestamp(datetime.fromisoformat(self._journal.now()) + wait))

    async def _mend(self) -> None:
        """Checks a broken worker again and again, until it works or there is no hope."""
        while True:
            await self._broken.wait()
            for tries in range(REPAIRS):
                await asyncio.sleep(min(self._backoff * 2**tries, LONGEST_REST))
                try:
                    await self._trade.check()
                except BrokenError as fault:
                    said = str(fault)
                    logger.warning("Worker %s is still broken: %s", self.id, fault)
                else:
                    break
            else:
                raise BrokenError(f"The worker gave up after {REPAIRS} tries to work again: {said}")
            self._broken.clear()
            logger.warning("Worker %s works again.", self.id)

    async def _cancel(self, thing: C) -> None:
        try:
            await self.append(await self._trade.cancel(thing, self.id))
        finally:
            self._cancelling.discard(thing.id)

    async def _append(self, event: Event) -> list[Position]:
        event_id = self._journal.new_id()
        return await self._until_done(lambda: self._journal.append(event, event_id=event_id))

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        return await until_done(call, f"Worker {self.id}")


def _seconds(start: str, end: str) -> float:
    """0 for a day that its month does not have, which no pattern can tell."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return 0.0


def _monotonic() -> float:
    return asyncio.get_running_loop().time()
