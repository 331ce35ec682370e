"""A small model of what somebody prefers: a clip's log-odds to be preferred, linear in what is heard in it."""

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from msgspec import Struct
from torch.nn import functional

from domain.lora import CHANCE

FOLDS: Final = 8
INNER_FOLDS: Final = 4
RIDGES: Final = tuple(10.0 ** (-power / 2) for power in range(7))
NEWTON_STEPS: Final = 30

Combined: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Pairs(Struct, frozen=True):
    """`differences` are the heard of the chosen less that of the rejected, `[pairs, numbers]` in float64; `weights`
    `[pairs]` say how sure a pair is, `groups` of which prompt.
    """

    differences: torch.Tensor
    weights: torch.Tensor
    groups: Sequence[str]


class Hearing(Struct, frozen=True, kw_only=True):
    """How many pairs that it had not learnt from a model judged as people did, of how many, and `low` and `high`, the
    95 % interval of that share by Wilson. `chance` is how probable such log-odds are by guessing: by Wilcoxon's signed
    ranks, in which a judgement counts by how sure it was.
    """

    right: float
    pairs: int
    low: float
    high: float
    chance: float

    @property
    def share(self) -> float:
        return self.right / self.pairs if self.pairs else 0.5

    @property
    def is_heard(self) -> bool:
        return self.chance < CHANCE

    @classmethod
    def of(cls, margins: torch.Tensor) -> "Hearing":
        """Of log-odds for the side that was chosen; exactly none is half right."""
        right = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
        low, high = _interval(right, len(margins))
        return cls(right=right, pairs=len(margins), low=low, high=high, chance=_chance(margins))


def _chance(margins: torch.Tensor) -> float:
    count = len(margins)
    if not count:
        return 1.0
    ranks = margins.abs().argsort().argsort() + 1
    positive = float(ranks[margins > 0].sum() + 0.5 * ranks[margins == 0].sum())
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    return 0.5 * math.erfc((positive - 0.5 - count * (count + 1) / 4) / spread / math.sqrt(2))


def _interval(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    if not count:
        return 0.0, 1.0
    share, squared = right / count, z * z
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    spread = z / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count * count))
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))


def folds(groups: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """Places in `groups`, each prompt in one fold."""
    order = sorted(set(groups))
    dice = torch.Generator().manual_seed(seed)
    turn = {order[place]: number % count for number, place in enumerate(torch.randperm(len(order), generator=dice))}
    found: list[list[int]] = [[] for _ in range(count)]
    for place, group in enumerate(groups):
        found[turn[group]].append(place)
    return [fold for fold in found if fold]


def fit(gram: torch.Tensor, weights: torch.Tensor, ridge: float) -> torch.Tensor:
    """The coefficients `[pairs]` of a Bradley-Terry model in the span of its pairs.

    `gram` are their inner products. It minimises the weighted mean of log(1 + exp(-margin)) and `ridge` times half the
    model's squared length, by Newton's method with a step that is halved until it helps.
    """
    share, one = weights / weights.sum(), torch.eye(len(gram), dtype=gram.dtype)

    def step(found: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        bend = share * slope * (1 - slope)
        # Of the cost's derivatives one factor `gram` is left out on both sides.
        solved: torch.Tensor = torch.linalg.solve(bend[:, None] * gram + ridge * one, share * slope - ridge * found)
        return solved

    return _descended(gram, share, lambda of, margins: ridge / 2 * of @ margins, step)


def fit_numbers(differences: torch.Tensor, weights: torch.Tensor, ridge: float) -> torch.Tensor:
    """The coefficients `[numbers]` of the same model, which are quicker found where there are more pairs."""
    share, one = weights / weights.sum(), torch.eye(differences.shape[1], dtype=differences.dtype)

    def step(found: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        bend = share * slope * (1 - slope)
        system = differences.T @ (bend[:, None] * differences) + ridge * one
        solved: torch.Tensor = torch.linalg.solve(system, differences.T @ (share * slope) - ridge * found)
        return solved

    return _descended(differences, share, lambda of, _: ridge / 2 * of @ of, step)


def _descended(matrix: torch.Tensor, share: torch.Tensor, penalty: Combined, step: Combined) -> torch.Tensor:
    """`matrix` makes margins of coefficients; `step` takes coefficients and how far each pair is from being sure."""
    found = matrix.new_zeros(matrix.shape[1])

    def cost(of: torch.Tensor) -> torch.Tensor:
        margins = matrix @ of
        return (share * functional.softplus(-margins)).sum() + penalty(of, margins)

    now = cost(found)
    for _ in range(NEWTON_STEPS):
        change = step(found, torch.sigmoid(-(matrix @ found)))
        size = 1.0
        while size > 1e-6 and (new := cost(found + size * change)) > now:
            size /= 2
        found = found + size * change
        if now - new < 1e-9:
            break
        now = new
    return found


def slopes(gram: torch.Tensor, pairs: Pairs, ridge: float) -> torch.Tensor:
    """`[numbers]`, of the model of all pairs."""
    if _are_few(pairs, len(gram)):
        return pairs.differences.T @ fit(gram, pairs.weights, ridge)
    return fit_numbers(pairs.differences, pairs.weights, ridge)


def _judged(gram: torch.Tensor, pairs: Pairs, out: Sequence[int], left: Sequence[int], ridge: float) -> torch.Tensor:
    """The log-odds of the pairs `out` by a model of the pairs `left`."""
    weights = pairs.weights[left]
    if _are_few(pairs, len(left)):
        return gram[out][:, left] @ fit(gram[left][:, left], weights, ridge)
    return pairs.differences[out] @ fit_numbers(pairs.differences[left], weights, ridge)


def _are_few(pairs: Pairs, count: int) -> bool:
    return count <= pairs.differences.shape[1]


def choose_ridge(
    gram: torch.Tensor, pairs: Pairs, places: Sequence[int], seed: int, on_fit: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """The ridge under which pairs of left-out prompts are likeliest, and their mean log-likelihood.

    `on_fit` is called before each of the fits, and may raise.
    """
    groups = [pairs.groups[place] for place in places]
    split = folds(groups, INNER_FOLDS, seed)
    best = (RIDGES[0], -math.inf)
    index = torch.tensor(places)
    weights = pairs.weights[index]
    scale = float(gram.diagonal()[index].mean()) or 1.0
    for ridge in RIDGES:
        likely = gram.new_zeros(len(places))
        for out in split:
            on_fit()
            left = sorted(set(range(len(places))) - set(out))
            if not left:
                continue
            margins = _judged(gram, pairs, index[out].tolist(), index[left].tolist(), ridge * scale)
            likely[out] = functional.logsigmoid(margins)
        mean = float((weights * likely).sum() / weights.sum())
        if mean > best[1]:
            best = (ridge, mean)
    return best[0] * scale, best[1]


def left_out(gram: torch.Tensor, pairs: Pairs, seed: int, on_fit: Callable[[], None] = lambda: None) -> torch.Tensor:
    """The log-odds `[pairs]` of each pair by a model that has not seen its prompt, not even to choose its ridge."""
    margins = gram.new_zeros(len(gram))
    for out in folds(pairs.groups, FOLDS, seed):
        left = sorted(set(range(len(gram))) - set(out))
        if not left:
            continue
        ridge, _ = choose_ridge(gram, pairs, left, seed + 1, on_fit)
        margins[out] = _judged(gram, pairs, out, left, ridge)
    return margins
