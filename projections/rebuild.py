"""Views folded anew from the log's first record while the old ones serve, then put in their place at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import copy
from functools import partial
from hashlib import sha256
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from domain.journal import until_done
from domain.ports import D, Document, EventLog, ReadStore, RebuildableStore, TopicPartition, View
from projections.project import FOLDED_FROM, project

PAGE: Final = 2_000
AT_ONCE: Final = 4
CLOSE: Final = 1_000
SETTLING_TRIES: Final = 20
SETTLING_SECONDS: Final = 0.05
MEETING_SECONDS: Final = 0.05
IDLE_SECONDS: Final = 5.0
COMPARED: Final = 500
EXAMPLES: Final = 10
WHO: Final = "The rebuild"


class Progress(Struct, frozen=True):
    """How many offsets are folded, of those known so far."""

    folded: int
    total: int


class Comparison(Struct, frozen=True, kw_only=True):
    """One view, old against rebuilt. Digests are sums of the documents' SHA-256, so that their order does not matter.

    `documents` were compared, each at one position; `apart` are those of which the two held different positions to the
    end, or one nothing: where no host folds the old views, what it is behind. `examples` are ids of some that differ
    or are apart. The digests are None when this version cannot read the old documents.
    """

    view: str
    documents: int = 0
    old_digest: str | None = None
    new_digest: str | None = None
    differing: int = 0
    apart: int = 0
    examples: tuple[str, ...] = ()


async def rebuild(
    log: EventLog, store: RebuildableStore, topics: Sequence[str], progress: Callable[[Progress], object]
) -> list[Comparison]:
    """Rebuilds the views that are folded from the topics, whether or not a host is folding them; waits out outages.

    Raises ConflictError when another rebuild has begun since, and UnknownVersionError at an event of a newer version;
    the old views then go on serving.
    """
    views = [view for topic in topics for view in FOLDED_FROM[topic]]
    rebuilt = await until_done(partial(store.begin_rebuild, views), WHO)
    folding = _Folding(log, rebuilt, topics, progress)
    await folding.reach(await until_done(folding.ends, WHO))
    await folding.meet(store)
    while folding.behind(live := await until_done(store.watermarks, WHO)) > CLOSE:
        await folding.reach(live)
    drafts = [await until_done(partial(_Draft.of, view, store, rebuilt), WHO) for view in views]
    await folding.reach(await until_done(store.watermarks, WHO))
    tries = SETTLING_TRIES
    while True:
        # Saves that have begun may still end, and `switch` then refuses; with none beginning, this draws level.
        await until_done(store.hold, WHO)
        live = await until_done(store.watermarks, WHO)
        await folding.reach(live)
        settled = [await until_done(partial(draft.settle, store, rebuilt), WHO) for draft in drafts]
        tries -= 1
        if tries > 0 and folding.is_met(live) and any(comparison.apart for comparison in settled):
            await asyncio.sleep(SETTLING_SECONDS)
        elif await until_done(partial(store.switch, rebuilt, live), WHO):
            break
    await until_done(store.drop_unused, WHO)
    return settled


class _Folding:
    def __init__(
        self, log: EventLog, rebuilt: RebuildableStore, topics: Sequence[str], progress: Callable[[Progress], object]
    ) -> None:
        self._log = log
        self._rebuilt = rebuilt
        self._progress = progress
        self._at = {(topic, number): 0 for topic in topics for number in range(log.topics[topic].partitions)}
        self._goal = dict(self._at)

    async def ends(self) -> dict[TopicPartition, int]:
        topics = {topic for topic, _ in self._at}
        return {(topic, number): end for topic in topics for number, end in (await self._log.ends(topic)).items()}

    def behind(self, goal: Mapping[TopicPartition, int]) -> int:
        return sum(max(0, goal.get(partition, 0) - at) for partition, at in self._at.items())

    async def reach(self, goal: Mapping[TopicPartition, int]) -> None:
        """Folds every record before these offsets, a few partitions at a time."""
        turns = asyncio.Semaphore(AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                for partition in self._at:
                    self._goal[partition] = max(self._goal[partition], goal.get(partition, 0))
                    tasks.create_task(self._fold(partition, turns))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def is_met(self, live: Mapping[TopicPartition, int]) -> bool:
        return all(live.get(partition, 0) >= at for partition, at in self._at.items())

    async def meet(self, store: ReadStore) -> None:
        """Waits until the live views have been folded as far, or nobody seems to fold them."""
        before, moved = None, time.monotonic()
        while not self.is_met(live := await until_done(store.watermarks, WHO)):
            if live != before:
                before, moved = live, time.monotonic()
            if time.monotonic() - moved > IDLE_SECONDS:
                return
            await asyncio.sleep(MEETING_SECONDS)

    async def _fold(self, partition: TopicPartition, turns: asyncio.Semaphore) -> None:
        async with turns:
            goal = self._goal[partition]
            while (at := self._at[partition]) < goal:
                page = await until_done(partial(self._log.read, *partition, at, PAGE), WHO)
                if records := [record for record in page if record.position.offset < goal]:
                    await until_done(partial(project, self._log, self._rebuilt, records), WHO)
                    self._at[partition] = records[-1].position.offset + 1
                else:
                    # There are no records left before the goal: their offsets are gaps.
                    await until_done(partial(self._rebuilt.save, [], {partition: goal}), WHO)
                    self._at[partition] = goal
                self._progress(Progress(sum(self._at.values()), sum(self._goal.values())))


class _Draft:
    """A comparison in the making. `apart` are ids of documents at different positions, or in one of the two alone."""

    def __init__(self, view: View[Any]) -> None:
        self._view = view
        self._tally = _Tally()
        self._apart: list[str] = []
        self._readable = True

    @classmethod
    async def of(cls, view: View[Any], old: ReadStore, new: ReadStore) -> Self:
        self = cls(view)
        try:
            async for one, other in _pairs(old.scan(view), new.scan(view)):
                if not self._tally.add(one, other):
                    self._apart += [each.id for each in (one or other,) if each]
        except msgspec.ValidationError:
            self._readable = False
        return self

    async def settle(self, old: ReadStore, new: ReadStore) -> Comparison:
        """Looks at those apart once more."""
        if not self._readable:
            return Comparison(view=self._view.name)
        tally, apart = copy(self._tally), list[str]()
        for first in range(0, len(self._apart), COMPARED):
            ids = self._apart[first : first + COMPARED]
            ones, others = await old.get(self._view, ids), await new.get(self._view, ids)
            apart += [id_ for id_ in ids if not tally.add(ones.get(id_), others.get(id_))]
        return Comparison(
            view=self._view.name,
            documents=tally.documents,
            old_digest=f"{tally.old % 2**256:064x}",
            new_digest=f"{tally.new % 2**256:064x}",
            differing=tally.differing,
            apart=len(apart),
            examples=(*tally.examples, *apart)[:EXAMPLES],
        )


class _Tally:
    documents = old = new = differing = 0
    examples: tuple[str, ...] = ()

    def add(self, one: Document | None, other: Document | None) -> bool:
        """Whether the two are at one position, and so were compared."""
        if one is None or other is None or one.position != other.position:
            return False
        digests = [int.from_bytes(sha256(msgspec.json.encode(each, order="sorted")).digest()) for each in (one, other)]
        self.documents += 1
        self.old += digests[0]
        self.new += digests[1]
        if digests[0] != digests[1]:
            self.differing += 1
            self.examples = (*self.examples, one.id)[:EXAMPLES]
        return True


async def _pairs(old: AsyncIterator[D], new: AsyncIterator[D]) -> AsyncIterator[tuple[D | None, D | None]]:
    """Both, ordered by id, side by side; None where one has no such document."""
    one, other = await anext(old, None), await anext(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.id < other.id):
            yield one, None
            one = await anext(old, None)
        elif one is None or other.id < one.id:
            yield None, other
            other = await anext(new, None)
        else:
            yield one, other
            one, other = await anext(old, None), await anext(new, None)
