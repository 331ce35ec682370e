"""What votes prove about two arms, at every look. Pure Python, a few microseconds a vote.

**The e-value.** Its unit has a lead: the votes for A less those for B. If the arms do not differ, a lead is as likely
as its opposite. Then the factor 2 / (1 + ((1 - p) / p) ** lead) has the mean 1 for any p (it is a conditional
likelihood ratio), and so has the product over units whose signs are independent. `log_e` averages that product over a
fixed grid of p on both sides of 1/2. Where each unit is one vote, it is the mixture of (2p)^a (2(1-p))^b: Ville's
test martingale.

The headline is the smallest over two units, the vote and the pair, and over all voters and every single voter left
out:

* Unit vote: a non-negative martingale if each vote is for A with probability 1/2 given the votes before it. By
  Ville's inequality (1939) it ever reaches 20 with probability 1/20 at most, whoever looks, and stops whenever they
  like.
* Unit pair: an e-value whatever the voters do (they may favour a side, repeat themselves, copy each other, or all
  hear that one sample of a pair is better), if nobody can tell the arms apart and a fair coin of its own decides
  which sample of a pair is A's. With one vote a pair it is the martingale above. With more, its mean is 1 after any
  number of votes that was fixed beforehand, but between votes of one pair it is no martingale: they change a stake
  whose coin has been seen. That looks after every vote keep to 5 % there is measured, not proved
  (tests/bench/verdict.py).
* One voter left out: if one voter leans to an arm by taste, the smallest is no larger than the e-value of the others,
  and 1 at most where those prefer the other arm, so no voter causes a verdict alone. While there is one voter only, the
  e-value speaks of that voter.

It does not hold if several voters lean by tastes of their own; `log_e` of the voters' leads does, and is told beside
it.

**Equivalence.** `interval` is an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
Annals of Statistics 2024) of the win rate with ties as half. Its variance is the largest of four: independent votes,
clusters of pairs, clusters of voters, and both at once. It is approximate, so equivalence needs at least `MIN_PAIRS`
pairs.

Sources: Ramdas, Grünwald, Vovk and Shafer, Statistical Science 2023 (e-values); de la Peña, Annals of Probability
1999 (sums of symmetric variables); Cameron, Gelbach and Miller, JBES 2011 (clusters two ways).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from math import exp, inf, log, log1p, sqrt
from operator import add
from typing import Final, Literal, TypeAlias

from domain.events.ab_tests import Arm

Verdict: TypeAlias = Literal["A", "B", "equivalent", "inconclusive"]

ALPHA: Final = 0.05
THRESHOLD: Final = 1 / ALPHA
LOG_THRESHOLD: Final = log(THRESHOLD)
MARGIN: Final = 0.05  # of the win rate, on both sides of 1/2
MIN_PAIRS: Final = 10
TUNED_FOR: Final = 1_000  # votes at which the interval is narrowest
MAX_LOG: Final = 700.0  # e to this power is still a float
NODES: Final = tuple(0.5 + (number + 0.5) / 16 for number in range(8))
SIGNS: Final[dict[Arm | None, int]] = {"A": 1, "B": -1, None: 0}

_RHO_SQUARED: Final = (-2 * log(ALPHA) + log(1 - 2 * log(ALPHA))) / TUNED_FOR
Vector: TypeAlias = Sequence[float]


@cache
def _log_factors(lead: int) -> tuple[float, ...]:
    """Of each p above 1/2, then of each below."""
    powers = [lead * log((1 - p) / p) for p in NODES]
    return tuple(log(2) - (log1p(exp(power)) if power < 30 else power) for power in powers) + tuple(
        log(2) - (log1p(exp(-power)) if power > -30 else -power) for power in powers
    )


@cache
def _log_changes(lead: int, step: int) -> tuple[float, ...]:
    """Of the factors, when a lead takes a step."""
    return tuple(b - a for a, b in zip(_log_factors(lead), _log_factors(lead + step), strict=True))


def _log_mean_exp(logs: Vector) -> float:
    top = max(logs)
    return top + log(sum([exp(value - top) for value in logs]) / len(logs))


def log_e(leads: Iterable[int]) -> float:
    """The logarithm of the e-value of units with these leads, against "each lead is as likely as its opposite"."""
    total: Vector = [0.0] * (2 * len(NODES))
    for lead in leads:
        total = [a + b for a, b in zip(total, _log_factors(lead), strict=True)]
    return _log_mean_exp(total)


@lru_cache(maxsize=10_000)
def _log_e_of_votes(wins: int, losses: int) -> float:
    return _log_mean_exp([wins * a + losses * b for a, b in zip(_log_factors(1), _log_factors(-1), strict=True)])


class _Clusters:
    """Sums over clusters that give the variance of a mean: of scores and votes, squared and multiplied."""

    __slots__ = ("count", "mixed", "scores", "votes")

    def __init__(self, count: int = 0, scores: float = 0.0, mixed: float = 0.0, votes: float = 0.0) -> None:
        self.count, self.scores, self.mixed, self.votes = count, scores, mixed, votes

    def replace(self, before: tuple[float, int], after: tuple[float, int]) -> None:
        """A cluster's score and votes before and after; no votes is no cluster."""
        self.count += (after[1] > 0) - (before[1] > 0)
        self.scores += after[0] * after[0] - before[0] * before[0]
        self.mixed += after[0] * after[1] - before[0] * before[1]
        self.votes += after[1] * after[1] - before[1] * before[1]

    def copy(self) -> "_Clusters":
        return _Clusters(self.count, self.scores, self.mixed, self.votes)

    def variance(self, mean: float, votes: int) -> float:
        """0 of a single cluster, which says nothing about others."""
        if self.count < 2:
            return 0.0
        squares = self.scores - 2 * mean * self.mixed + mean * mean * self.votes
        return max(0.0, squares) / votes**2 * self.count / (self.count - 1)


def _extended(sums: _Clusters, cluster: tuple[float, int], score: float) -> tuple[float, int]:
    longer = (cluster[0] + score, cluster[1] + 1)
    sums.replace(cluster, longer)
    return longer


class Evidence:
    """Votes as they come in, at most one of a voter and pair; an arm of None is no preference."""

    def __init__(self) -> None:
        self.votes = 0
        self.wins = {"A": 0, "B": 0}
        self._logs: list[float] = [0.0] * (2 * len(NODES))
        self._leads: dict[int, int] = {}
        self._pairs: dict[int, tuple[float, int]] = {}  # score and votes
        self._voters: dict[str, tuple[float, int]] = {}
        self._signs: dict[str, dict[int, int]] = {}  # of each voter's votes, by pair
        self._by_pair, self._by_voter = _Clusters(), _Clusters()

    def add(self, voter: str, pair: int, arm: Arm | None) -> None:
        sign = SIGNS[arm]
        self._signs.setdefault(voter, {})[pair] = sign
        self.votes += 1
        score = (1 + sign) / 2
        self._pairs[pair] = _extended(self._by_pair, self._pairs.get(pair, (0.0, 0)), score)
        self._voters[voter] = _extended(self._by_voter, self._voters.get(voter, (0.0, 0)), score)
        if arm is not None:
            self.wins[arm] += 1
            lead = self._leads.get(pair, 0)
            self._leads[pair] = lead + sign
            self._logs = list(map(add, self._logs, _log_changes(lead, sign)))

    def log_e_value(self) -> float:
        """Of the headline."""
        return min((self.log_e_of_all(), *self._logs_without(self._signs)))

    def log_e_of_all(self) -> float:
        """No voter left out."""
        return min(_log_mean_exp(self._logs), _log_e_of_votes(self.wins["A"], self.wins["B"]))

    def log_e_of_voters(self) -> float:
        """Against "each voter leans by a taste of their own, to either arm alike"."""
        return log_e(sum(signs.values()) for signs in self._signs.values())

    def verdict(self) -> Verdict:
        """What may be said now. Cheaper than `log_e_value`: it leaves voters out only where all together suffice."""
        # A mean is no more than the largest of its values.
        if max(self._logs) >= LOG_THRESHOLD and self.log_e_of_all() >= LOG_THRESHOLD:
            leader: Arm = "A" if self.wins["A"] > self.wins["B"] else "B"
            most = sorted(self._signs, key=lambda voter: -SIGNS[leader] * sum(self._signs[voter].values()))
            if all(value >= LOG_THRESHOLD for value in self._logs_without(most)):
                return leader
        return "equivalent" if self._is_equivalent() else "inconclusive"

    def interval(self) -> tuple[float, float]:
        """Of the win rate with ties as half, valid at every look."""
        return _interval(self.votes, self._by_pair, self._by_voter, self._scores())

    def _scores(self) -> tuple[float, float]:
        """The sum of all scores (1 for A, 0 for B, a half for neither), and of their squares."""
        neither = self.votes - self.wins["A"] - self.wins["B"]
        return self.wins["A"] + neither / 2, self.wins["A"] + neither / 4

    def _logs_without(self, voters: Iterable[str]) -> Iterator[float]:
        """The e-value without each of these voters; nothing where there is one voter only."""
        if len(self._signs) < 2:
            return
        for voter in voters:
            signs = self._signs[voter]
            changes = [_log_changes(self._leads[pair], -sign) for pair, sign in signs.items() if sign]
            logs = list(map(sum, zip(self._logs, *changes, strict=True)))
            lead = sum(signs.values())
            wins, losses = self.wins["A"] - (len(changes) + lead) // 2, self.wins["B"] - (len(changes) - lead) // 2
            value = min(_log_mean_exp(logs), _log_e_of_votes(wins, losses))
            # However much the others prove, it is nothing for the arm that is ahead where they prefer the other one.
            is_same = (wins - losses) * (self.wins["A"] - self.wins["B"]) > 0
            yield value if is_same else min(0.0, value)

    def _is_equivalent(self) -> bool:
        if len(self._pairs) < MIN_PAIRS or abs(self.wins["A"] - self.wins["B"]) > 2 * MARGIN * self.votes:
            return False
        if not _is_within(self.interval()):
            return False
        return len(self._voters) < 2 or all(_is_within(self._interval_without(voter)) for voter in self._voters)

    def _interval_without(self, voter: str) -> tuple[float, float]:
        by_pair, by_voter = self._by_pair.copy(), self._by_voter.copy()
        by_voter.replace(self._voters[voter], (0.0, 0))
        total, squares = self._scores()
        for pair, sign in self._signs[voter].items():
            score, votes = self._pairs[pair]
            own = (1 + sign) / 2
            by_pair.replace((score, votes), (score - own, votes - 1))
            total, squares = total - own, squares - own * own
        return _interval(self.votes - self._voters[voter][1], by_pair, by_voter, (total, squares))


def _interval(votes: int, by_pair: _Clusters, by_voter: _Clusters, scores: tuple[float, float]) -> tuple[float, float]:
    if not votes:
        return 0.0, 1.0
    mean = scores[0] / votes
    # One vote for each arm is supposed, so that votes which are all alike leave something open.
    alone = (scores[1] - votes * mean * mean + 0.5) / votes**2
    pairs, voters = by_pair.variance(mean, votes), by_voter.variance(mean, votes)
    variance = max(alone, pairs, voters, pairs + voters - alone)
    time = _RHO_SQUARED * 0.25 / variance
    half = sqrt(2 * (time + 1) / time * log(sqrt(time + 1) / ALPHA) * variance)
    return max(0.0, mean - half), min(1.0, mean + half)


def _is_within(interval: tuple[float, float]) -> bool:
    return interval[0] >= 0.5 - MARGIN and interval[1] <= 0.5 + MARGIN


def finite(logarithm: float) -> float:
    """Its exponential, as large as JSON's readers can hold."""
    return exp(min(logarithm, MAX_LOG)) if logarithm > -inf else 0.0
