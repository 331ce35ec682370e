"""Views folded anew from the log's first record while the old ones serve, then put in their place at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import copy
from functools import partial
from hashlib import sha256
from typing import Any, Final, Self, TypeAlias

import msgspec
from msgspec import Struct

from domain.journal import until_done
from domain.ports import D, Document, EventLog, ReadStore, RebuildableStore, TopicPartition, View
from projections.dead_letters import DeadLetters
from projections.project import FOLDED_FROM, page_before, project

PAGE: Final = 2_000
AT_ONCE: Final = 4
CLOSE: Final = 1_000
SETTLING_TRIES: Final = 20
FEW: Final = 500
SETTLING_SECONDS: Final = 0.2
MEETING_SECONDS: Final = 0.05
IDLE_SECONDS: Final = 5.0
COMPARED: Final = 500
EXAMPLES: Final = 10
WHO: Final = "The rebuild"

_Apart: TypeAlias = tuple[int | None, int | None]


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
    is_met = await folding.meet(store)
    while folding.behind(live := await until_done(store.watermarks, WHO)) > CLOSE:
        await folding.reach(live)
    drafts = [await until_done(partial(_Draft.of, view, store, rebuilt), WHO) for view in views]
    for _ in range(SETTLING_TRIES):
        await folding.reach(await until_done(folding.ends, WHO))
        is_met = is_met and await folding.meet(store)
        apart = await _look(drafts, store, rebuilt, lasting=True)
        if sum(map(len, apart)) <= FEW or not is_met:
            break
    while True:
        # Saves that have begun may still end, and `switch` then refuses; with none beginning, this draws level. A hold
        # is short, so under it only the few are looked at that events have touched meanwhile.
        await until_done(store.hold, WHO)
        live = await folding.settle(store)
        await folding.reach(live)
        last, apart = apart, await _look(drafts, store, rebuilt) if folding.is_met(live) else []
        if any(apart) and apart != last:
            await asyncio.sleep(SETTLING_SECONDS)
        elif await until_done(partial(store.switch, rebuilt, live), WHO):
            break
    await until_done(store.drop_unused, WHO)
    return [draft.comparison() for draft in drafts]


async def _look(
    drafts: "Sequence[_Draft]", old: ReadStore, new: ReadStore, *, lasting: bool = False
) -> list[dict[str, _Apart]]:
    """The documents of each that are still apart and may yet meet."""
    for draft in drafts:
        await until_done(partial(draft.look, old, new, lasting=lasting), WHO)
    return [draft.apart for draft in drafts]


class _Folding:
    def __init__(
        self, log: EventLog, rebuilt: RebuildableStore, topics: Sequence[str], progress: Callable[[Progress], object]
    ) -> None:
        self._log = log
        self._rebuilt = rebuilt
        self._progress = progress
        self._dead_letters = DeadLetters(log)
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
        return _has_reached(live, self._at)

    async def meet(self, store: ReadStore) -> bool:
        """Waits until the live views have been folded as far; False when nobody seems to fold them."""
        return self.is_met(await _watched(store, self._at, IDLE_SECONDS))

    async def settle(self, store: ReadStore) -> dict[TopicPartition, int]:
        """How far the live views are folded, once the saves that had begun have ended, while none begins.

        A save shows its documents before it says how far it has come: to switch in between would take them back.
        """
        return await _watched(store, await until_done(self.ends, WHO), SETTLING_SECONDS)

    async def _fold(self, partition: TopicPartition, turns: asyncio.Semaphore) -> None:
        async with turns:
            goal = self._goal[partition]
            while (at := self._at[partition]) < goal:
                page = await until_done(partial(self._log.read, *partition, at, PAGE), WHO)
                batch = page_before(page, partition, goal)
                fold = partial(project, self._log, self._rebuilt, batch.records, batch.reached, self._dead_letters)
                await until_done(fold, WHO)
                self._at |= batch.reached
                self._progress(Progress(sum(self._at.values()), sum(self._goal.values())))


async def _watched(store: ReadStore, goal: Mapping[TopicPartition, int], patience: float) -> dict[TopicPartition, int]:
    """How far the views are folded, once that is the goal, or they have stood still for so many seconds."""
    live, moved = None, time.monotonic()
    while True:
        found = await until_done(store.watermarks, WHO)
        if found != live:
            live, moved = found, time.monotonic()
        if _has_reached(found, goal) or time.monotonic() - moved > patience:
            return found
        await asyncio.sleep(MEETING_SECONDS)


def _has_reached(live: Mapping[TopicPartition, int], goal: Mapping[TopicPartition, int]) -> bool:
    return all(live.get(partition, 0) >= end for partition, end in goal.items())


class _Draft:
    """A comparison in the making. `apart` are the positions of documents that differ in them, in old and new, by id."""

    def __init__(self, view: View[Any]) -> None:
        self.apart: dict[str, _Apart] = {}
        self._view = view
        self._tally = _Tally()
        self._lasting: list[str] = []
        self._readable = True

    @classmethod
    async def of(cls, view: View[Any], old: ReadStore, new: ReadStore) -> Self:
        self = cls(view)
        try:
            async for id_, one, other in _pairs(old.scan(view), new.scan(view)):
                if (apart := self._tally.compare(one, other)) is not None:
                    self.apart[id_] = apart
        except msgspec.ValidationError:
            self._readable = False
            self.apart.clear()
        return self

    async def look(self, old: ReadStore, new: ReadStore, *, lasting: bool) -> None:
        """Looks at those apart once more.

        `lasting` says that both have since folded all that was on the log at the last look: positions that are the same
        as then stay apart for good.
        """
        tally, apart, settled = copy(self._tally), dict[str, _Apart](), list[str]()
        every = list(self.apart)
        for first in range(0, len(every), COMPARED):
            ids = every[first : first + COMPARED]
            ones, others = await old.get(self._view, ids), await new.get(self._view, ids)
            for id_ in ids:
                if (found := tally.compare(ones.get(id_), others.get(id_))) is None:
                    continue
                if lasting and found == self.apart[id_]:
                    settled.append(id_)
                else:
                    apart[id_] = found
        self._tally, self.apart, self._lasting = tally, apart, [*self._lasting, *settled]

    def comparison(self) -> Comparison:
        if not self._readable:
            return Comparison(view=self._view.name)
        tally, apart = self._tally, [*self._lasting, *self.apart]
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

    def compare(self, one: Document | None, other: Document | None) -> _Apart | None:
        """The positions, unless they are the same.

        Documents that differ in nothing else count as the same: the record that moved the old one on may be erased.
        """
        if one is None or other is None:
            return None if one is other else (one.position if one else None, other.position if other else None)
        if one.position != other.position:
            if _without_position(one) != _without_position(other):
                return one.position, other.position
            other = one
        digests = [int.from_bytes(sha256(msgspec.json.encode(each, order="sorted")).digest()) for each in (one, other)]
        self.documents += 1
        self.old += digests[0]
        self.new += digests[1]
        if digests[0] != digests[1]:
            self.differing += 1
            self.examples = (*self.examples, one.id)[:EXAMPLES]
        return None


def _without_position(document: Document) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(document).items() if name != "position"}


async def _pairs(old: AsyncIterator[D], new: AsyncIterator[D]) -> AsyncIterator[tuple[str, D | None, D | None]]:
    """Both, ordered by id, side by side; None where one has no such document."""
    one, other = await anext(old, None), await anext(new, None)
    while present := [each.id for each in (one, other) if each is not None]:
        id_ = min(present)
        first = one if one is not None and one.id == id_ else None
        second = other if other is not None and other.id == id_ else None
        yield id_, first, second
        one = one if first is None else await anext(old, None)
        other = other if second is None else await anext(new, None)
