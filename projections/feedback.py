"""Feedback, and counters of it for whatever it can be grouped by, folded together from one topic.

The counters are saved before the feedback that they count, so that a save may stop anywhere: each knows up to where it
has counted, and feedback that is still the old one is counted again with the same result. Those that have come to
nothing are erased last, as what erases feedback may leave no name and no tag behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from domain.errors import UnavailableError
from domain.events import Recorded
from domain.feedback import FEEDBACK, SIDES, Feedback
from domain.ports import Changes, Erasure, Query, Reader, View
from projections.documents import fold_documents

EVERYTHING: Final = "all"
DIMENSIONS: Final = (*(name.removesuffix("_id") for name in SIDES), "tag", "user")
LEFT_OVER: Final = 1_000

Group: TypeAlias = tuple[str, str | None]
Counts: TypeAlias = dict[str, int]
Share: TypeAlias = dict[str, Counts]
Move: TypeAlias = tuple[Recorded, Feedback | None, Feedback | None]


class FeedbackStats(Struct, frozen=True, kw_only=True):
    """One partition's share of a group's figures: how many there are of each, without those that there are none of.

    Ratings are counted by themselves (`4.5`), so that taking one out again leaves exactly what was there before.
    `key` is what the group has in common, None for the base model and for listeners without a name. `position` is twice
    the offset of the last record that changed anything, which leaves a higher one for the erasure.
    """

    id: str
    dimension: str
    key: str | None
    partition: int
    position: int = -1
    counts: Mapping[str, int] = {}

    @property
    def created_at(self) -> str:
        """Lists have the largest group first."""
        return f"{self.counts.get('count', 0):012}"


STATS: Final = View(
    "feedback_stats",
    FeedbackStats,
    fields=lambda stats: {"dimension": stats.dimension, "hidden": not stats.counts},
    filters=("dimension",),
)
VIEWS: Final = (FEEDBACK, STATS)


@lru_cache(10_000)
def stats_id(group: Group, partition: int) -> str:
    """It holds no words of anybody, as an erasure keeps the id."""
    dimension, key = group
    return f"{partition}/{dimension}" + ("" if key is None else f"/{sha256(key.encode()).hexdigest()[:32]}")


def groups(feedback: Feedback, *, sample: bool = True, other: bool = True) -> Iterator[tuple[Group, Counts]]:
    """What it adds to the figures of each group, as far as the sample and the one it was compared with count.

    A preference is a win of the one's groups and a loss of the other's; to a listener and a tag it is both.
    """
    compared = feedback.compared_with if other else None
    whole = _figures(feedback, sample=sample, other=other)
    yield (EVERYTHING, None), whole
    yield ("user", feedback.user_id), whole
    for tag in dict.fromkeys(feedback.tags):
        yield ("tag", tag), whole
    for name, dimension in zip(SIDES, DIMENSIONS, strict=False):
        mine, theirs = getattr(feedback.sample, name), getattr(compared, name, None)
        if compared is None or mine == theirs:
            yield (dimension, mine), whole
        else:
            yield (dimension, mine), _figures(feedback, sample=sample, other=False)
            yield (dimension, theirs), _figures(feedback, sample=False, other=other)


def _figures(feedback: Feedback, *, sample: bool, other: bool) -> Counts:
    """None of them is 0."""
    counts = {}
    if sample:
        counts["count"] = 1
        if feedback.rating is not None:
            counts[f"{feedback.rating:g}"] = 1
    if feedback.compared_with is not None:
        if feedback.verdict != "preferred" and (sample or other):
            counts["ties" if feedback.verdict == "tie" else "both_bad"] = 1
        elif feedback.verdict == "preferred":
            counts |= {name: 1 for name, is_meant in (("wins", sample), ("losses", other)) if is_meant}
    return counts


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    moves: list[Move] = []
    # Feedback is read before counters, which are written before feedback: then a save by another host in between
    # miscounts nothing.
    changes = await fold_documents(store, FEEDBACK, batch, lambda *move: moves.append(move))
    tallies = await _counted(store, moves)
    moved = [tally.stats() for tally in tallies.values() if tally.is_moved]
    reached: dict[int, int] = {}
    for recorded in batch:
        reached[recorded.position.partition] = recorded.position.offset
    # A save that broke off may have left some, of records that are folded by now.
    empty = {stats.id: stats for stats in await store.find(STATS, Query(hidden=True, limit=LEFT_OVER))}
    empty |= {stats.id: stats for stats in moved}
    erased = [
        Erasure(STATS, stats.id, stats.position + 1)
        for stats in empty.values()
        if not stats.counts and stats.position <= 2 * reached.get(stats.partition, -1)
    ]
    return Changes([*((STATS, stats) for stats in moved), *changes.saved], [*changes.erased, *erased])


class _Tally:
    """A counter as the batch moves it. What was counted before changes nothing."""

    def __init__(self, stats: FeedbackStats) -> None:
        self._stats = stats
        self.start = self.position = stats.position
        self.counts = dict(stats.counts)

    @property
    def is_moved(self) -> bool:
        return self.position != self.start

    def stats(self) -> FeedbackStats:
        counts = {name: number for name, number in sorted(self.counts.items()) if number}
        return replace(self._stats, counts=counts, position=self.position)


async def _counted(store: Reader, moves: Sequence[Move]) -> dict[str, _Tally]:
    """The counters of all groups that are touched. Raises UnavailableError where another host has gone further."""
    shares: dict[int, Share] = {id(None): {}}
    touched: dict[str, FeedbackStats] = {}
    stored, seen = set[str](), set[str]()
    for recorded, *sides in moves:
        for feedback in sides:
            if feedback is not None and id(feedback) not in shares:
                shares[id(feedback)] = _share(feedback, touched)
        if recorded.key not in seen:
            seen.add(recorded.key)
            stored |= shares[id(sides[0])].keys()
    found = await store.get(STATS, list(touched))
    # Feedback that is stored has been counted, and the counter is erased only after it.
    if not stored <= found.keys():
        raise UnavailableError("Another process has folded the feedback further, so this batch has to be folded again.")
    tallies = {id_: _Tally(found.get(id_, new)) for id_, new in touched.items()}
    for recorded, before, after in moves:
        if before is not after:
            old, new, position = shares[id(before)], shares[id(after)], 2 * recorded.position.offset
            for share, other, times in ((old, new, -1), (new, old, 1)):
                for id_, figures in share.items():
                    tally = tallies[id_]
                    if position > tally.start and figures != other.get(id_):
                        tally.position = position
                        for name, number in figures.items():
                            tally.counts[name] = tally.counts.get(name, 0) + times * number
    return tallies


def _share(feedback: Feedback, touched: dict[str, FeedbackStats]) -> Share:
    """What it adds to each counter, by the counter's id."""
    share: Share = {}
    for (dimension, key), counts in groups(feedback):
        id_ = stats_id((dimension, key), feedback.partition)
        share[id_] = counts
        if id_ not in touched:
            touched[id_] = FeedbackStats(id=id_, dimension=dimension, key=key, partition=feedback.partition)
    return share
