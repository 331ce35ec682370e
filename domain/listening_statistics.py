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
    agreement = NominalAgreement()
    for unit in units:
        agreement.add(unit)
    return agreement.alpha()


class NominalAgreement:
    """Krippendorff's alpha one unit at a time; `units` counts those with two values or more."""

    def __init__(self) -> None:
        self.units = 0
        self._totals: Counter[Hashable] = Counter()
        self._observed = 0.0

    def add(self, values: Sequence[Hashable]) -> None:
        if len(values) > 1:
            self.units += 1
            self._totals.update(values)
            same = sum(n * n for n in Counter(values).values())
            self._observed += (len(values) ** 2 - same) / (len(values) - 1)

    def alpha(self) -> float | None:
        """None where no unit has two values, or all values are the same."""
        count = self._totals.total()
        by_chance = count * count - sum(n * n for n in self._totals.values())
        return 1 - (count - 1) * self._observed / by_chance if by_chance else None


class IntervalAgreement:
    """The same of numbers, by the squares of their differences."""

    def __init__(self) -> None:
        self.units = 0
        self._count = 0
        self._sum = 0.0
        self._squares = 0.0
        self._observed = 0.0

    def add(self, values: Sequence[float]) -> None:
        if (count := len(values)) > 1:
            total, squares = sum(values), sum(value * value for value in values)
            self.units += 1
            self._count += count
            self._sum += total
            self._squares += squares
            self._observed += 2 * (count * squares - total * total) / (count - 1)

    def alpha(self) -> float | None:
        """None where no unit has two values, or all values are the same."""
        by_chance = 2 * (self._count * self._squares - self._sum * self._sum)
        # Of equal values the two differ by rounding alone.
        if by_chance <= 1e-9 * self._count * self._squares:
            return None
        return 1 - (self._count - 1) * self._observed / by_chance
