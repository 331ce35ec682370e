"""The textbook statistics of a listening test, each of them for one look at a number of votes fixed beforehand."""

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from math import exp, lgamma, log, sqrt
from typing import Final

Z: Final = 1.959963984540054  # of a normal distribution, 95 % within
RESAMPLES: Final = range(200, 1_000)  # fewer of many clusters, whose interval is steadier
DRAWS: Final = 500_000  # of clusters, in all resamples
SEED: Final = 20_000


def wilson(wins: int, of: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 1927); everything where there is no vote."""
    if not of:
        return 0.0, 1.0
    share, spread = wins / of, Z * Z / of
    middle = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    # At the ends the formula is exact, and rounding is not.
    return (0.0 if wins == 0 else middle - half), (1.0 if wins == of else middle + half)


def sign_test(wins: int, of: int) -> float:
    """Exact two-sided p-value of a fair coin."""
    fewer = min(wins, of - wins)
    if 2 * fewer == of:
        return 1.0
    logs = [lgamma(of + 1) - lgamma(k + 1) - lgamma(of - k + 1) - of * log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * sum(map(exp, logs)))


def bootstrap(clusters: Iterable[tuple[float, int]]) -> tuple[float, float] | None:
    """95 % percentile interval of the mean score, whole clusters (score and votes of each) drawn with replacement.

    None of fewer than two clusters. The seed is fixed: the same votes have the same interval.
    """
    known = sorted(cluster for cluster in clusters if cluster[1])
    if len(known) < 2:
        return None
    draw = random.Random(SEED)
    means = []
    for _ in range(max(RESAMPLES.start, min(RESAMPLES.stop, DRAWS // len(known)))):
        scores, votes = zip(*draw.choices(known, k=len(known)), strict=True)
        means.append(sum(scores) / sum(votes))
    means.sort()
    tail = len(means) // 40
    return means[tail], means[-1 - tail]


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Agreement on nominal values within units (Krippendorff, Content Analysis): 1 is perfect, 0 is chance.

    None where no unit has two values, or all values are the same.
    """
    paired = [unit for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = Counter(value for unit in paired for value in unit)
    count = totals.total()
    by_chance = count * count - sum(n * n for n in totals.values())
    if not by_chance:
        return None
    observed = sum((len(unit) ** 2 - sum(n * n for n in Counter(unit).values())) / (len(unit) - 1) for unit in paired)
    return 1 - (count - 1) * observed / by_chance
