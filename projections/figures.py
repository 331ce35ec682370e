"""Figures of feedback as they are asked for: from counters where they can tell, and else from the feedback itself."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, TypeAlias

from msgspec.structs import replace

from domain.errors import Fault, InvalidError
from domain.feedback import FEEDBACK, SIDES, Feedback
from domain.jobs import Job
from domain.ports import Query, Reader
from projections.feedback import EVERYTHING, STATS, FeedbackStats, Group, groups, stats_id

Grouped: TypeAlias = list[tuple[str | None, Counter[str]]]

STEPS: Final = tuple(half / 2 for half in range(2, 11))
PAGE: Final = 500
MAX_READ: Final = 100_000
CANDIDATES: Final = 1_000


def only(query: Query) -> Group | None:
    """The one group that has all that the query finds, None where it asks for more than that."""
    if query.start or query.end or query.among or len(query.equal) > 1:
        return None
    for name, value in query.equal.items():
        return name.removesuffix("_id"), str(value)
    return EVERYTHING, None


async def total(views: Reader, query: Query, partitions: int) -> int:
    """How many there are of what a list shows: counting a long history at every page would not scale."""
    group = only(replace(query, among={}))
    if group is None:
        return await views.count(FEEDBACK, query)
    (counts,) = await of_groups(views, [group], partitions)
    if not query.among:
        return counts["count"]
    return sum(counts[f"{rating:g}"] for rating in query.among["rating"])


async def of_groups(views: Reader, wanted: Sequence[Group], partitions: int) -> list[Counter[str]]:
    ids = [[stats_id(group, number) for number in range(partitions)] for group in wanted]
    found = await views.get(STATS, list(chain.from_iterable(ids)))
    return [_sum(found[id_] for id_ in each if id_ in found) for each in ids]


async def of_jobs(views: Reader, jobs: Sequence[Job], partitions: Mapping[str, int]) -> list[Counter[str]]:
    """What has been said of each job's samples, by one look at the store. `partitions` is by topic.

    Feedback is partitioned by its job: where both topics have as many partitions, it stands on that of the job.
    """
    count = partitions["feedback"]
    is_same = partitions["jobs"] == count
    ids = [
        [stats_id(("job", job.id), number) for number in ([job.partition] if is_same else range(count))] for job in jobs
    ]
    found = await views.get(STATS, list(chain.from_iterable(ids)))
    return [_sum(found[id_] for id_ in each if id_ in found) for each in ids]


async def judged(views: Reader) -> list[str]:
    """The ids of the jobs that have feedback. Raises InvalidError where they are too many to look among."""
    # Groups are listed by how much there is of each: one that is but the other side of comparisons has none.
    found = await views.find(STATS, Query(equal={"dimension": "job"}, start=f"{1:012}", limit=MAX_READ + 1))
    if len(found) > MAX_READ:
        detail = f"Over {MAX_READ:,} jobs have feedback, which are too many to look among. GET /feedback lists it."
        raise InvalidError([Fault("/has_feedback", detail)])
    return list(dict.fromkeys(stats.key for stats in found if stats.key is not None))


def mean(counts: Mapping[str, int]) -> float | None:
    """Of the ratings."""
    rated = {step: counts.get(f"{step:g}", 0) for step in STEPS}
    number = sum(rated.values())
    return sum(step * times for step, times in rated.items()) / number if number else None


async def largest(views: Reader, dimension: str, limit: int, partitions: int) -> Grouped:
    """The groups with the most feedback, the largest first."""
    leading = await views.find(STATS, Query(equal={"dimension": dimension}, limit=max(CANDIDATES, limit)))
    counts: Counter[str | None] = Counter()
    for stats in leading:
        counts[stats.key] += stats.counts.get("count", 0)
    keys = sorted(counts, key=lambda key: (-counts[key], key or ""))[:limit]
    found = await of_groups(views, [(dimension, key) for key in keys], partitions)
    return _ranked(zip(keys, found, strict=True), limit)


async def counted(
    views: Reader, query: Query, dimension: str | None, limit: int, *, most: int = MAX_READ
) -> tuple[Counter[str], Grouped]:
    """The figures of what the query finds, and of each group of it, by reading it all.

    A filter by sample, job, adapter or model takes the side that it fits: a preference is then the win of one side, or
    the loss of the other. Raises InvalidError where that would be too much to read.
    """
    whole, by_key = Counter[str](), dict[str | None, Counter[str]]()
    async for feedback, sample, other in _read(views, query, most):
        for (name, key), counts in groups(feedback, sample=sample, other=other):
            if name == EVERYTHING:
                whole.update(counts)
            elif name == dimension and counts:
                by_key.setdefault(key, Counter()).update(counts)
    return whole, _ranked(by_key.items(), limit)


async def _read(views: Reader, query: Query, most: int) -> AsyncIterator[tuple[Feedback, bool, bool]]:
    """With each, whether its sample is meant, and whether the one that it was compared with is."""
    sides = {name: value for name, value in query.equal.items() if name in SIDES}
    rest = {name: value for name, value in query.equal.items() if name not in SIDES}
    ways = [sides, {f"other_{name}": value for name, value in sides.items()}] if sides else [{}]
    read = 0
    for number, way in enumerate(ways):
        asked = replace(query, equal={**rest, **way}, limit=PAGE)
        while page := await views.find(FEEDBACK, asked):
            if (read := read + len(page)) > most:
                detail = (
                    f"There is feedback to read for these figures beyond the limit of {most:,}. Narrow the dates, or "
                    "give a single filter without dates and ratings, which is answered from counters."
                )
                raise InvalidError([Fault("", detail)])
            for feedback in page:
                mine, theirs = (
                    part is not None and all(getattr(part, name) == value for name, value in sides.items())
                    for part in (feedback.sample, feedback.compared_with)
                )
                if number == 0 or not mine:
                    yield feedback, mine, theirs
            asked = replace(asked, after=(page[-1].created_at, page[-1].id))


def _sum(parts: Iterable[FeedbackStats]) -> Counter[str]:
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    return counts


def _ranked(found: Iterable[tuple[str | None, Counter[str]]], limit: int) -> Grouped:
    return sorted(found, key=lambda each: (-each[1]["count"], each[0] or ""))[:limit]
