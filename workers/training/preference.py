"""A small model of what somebody prefers: a clip's log-odds to be preferred, linear in what is heard in it."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from msgspec import Struct
from torch.nn import functional

from domain.lora import CHANCE

FOLDS: Final = 8
INNER_FOLDS: Final = 4
RIDGES: Final = tuple(10.0 ** (-power / 2) for power in range(7))
NEWTON_STEPS: Final = 30


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
    count = len(gram)
    share = weights / weights.sum()
    found = gram.new_zeros(count)

    def cost(of: torch.Tensor) -> torch.Tensor:
        margins = gram @ of
        return (share * functional.softplus(-margins)).sum() + ridge / 2 * of @ margins

    now = cost(found)
    for _ in range(NEWTON_STEPS):
        margins = gram @ found
        slope = torch.sigmoid(-margins)
        bend = share * slope * (1 - slope)
        # Of the cost's derivatives one factor `gram` is left out on both sides.
        system = bend[:, None] * gram + ridge * torch.eye(count, dtype=gram.dtype)
        step = torch.linalg.solve(system, share * slope - ridge * found)
        size = 1.0
        while size > 1e-6 and (new := cost(found + size * step)) > now:
            size /= 2
        found = found + size * step
        if now - new < 1e-9:
            break
        now = new
    return found


def choose_ridge(gram: torch.Tensor, pairs: Pairs, places: Sequence[int], seed: int) -> tuple[float, float]:
    """The ridge under which pairs of left-out prompts are likeliest, and their mean log-likelihood."""
    groups = [pairs.groups[place] for place in places]
    split = folds(groups, INNER_FOLDS, seed)
    best = (RIDGES[0], -math.inf)
    index = torch.tensor(places)
    own, weights = gram[index][:, index], pairs.weights[index]
    scale = float(own.diagonal().mean()) or 1.0
    for ridge in RIDGES:
        likely = gram.new_zeros(len(places))
        for out in split:
            left = sorted(set(range(len(places))) - set(out))
            if not left:
                continue
            found = fit(own[left][:, left], weights[left], ridge * scale)
            likely[out] = functional.logsigmoid(own[out][:, left] @ found)
        mean = float((weights * likely).sum() / weights.sum())
        if mean > best[1]:
            best = (ridge, mean)
    return best[0] * scale, best[1]


def left_out(gram: torch.Tensor, pairs: Pairs, seed: int) -> torch.Tensor:
    """The log-odds `[pairs]` of each pair by a model that has not seen its prompt, not even to choose its ridge."""
    margins = gram.new_zeros(len(gram))
    for out in folds(pairs.groups, FOLDS, seed):
        left = sorted(set(range(len(gram))) - set(out))
        if not left:
            continue
        ridge, _ = choose_ridge(gram, pairs, left, seed + 1)
        found = fit(gram[left][:, left], pairs.weights[left], ridge)
        margins[out] = gram[out][:, left] @ found
    return margins
