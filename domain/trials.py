"""Blind trials: which pairs a voter compares, in which order, and which arm is on which side.

Nothing of it is stored. It follows from the test, the voter and a key that voters do not know.
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import msgspec
from msgspec import Struct

from domain.events.ab_tests import CATCH_SHARE, Arm, Side
from domain.ports import SECRETS

SECRET: Final = f"{SECRETS}trials"  # the object whose bytes hide trials from voters
PAIRS_A_CATCH: Final = round(1 / CATCH_SHARE) - 1


class Trial(Struct, frozen=True, kw_only=True):
    """Two sides that one voter is to compare. `left` is the arm on the left, and the right one is the other.

    In a catch trial both sides are of the arm `catch`. `number` tells a voter's catch trials apart: 1, 2 and so on, and
    0 for any other trial.
    """

    ab_test_id: str
    pair: int
    voter: str
    left: Arm
    catch: Arm | None = None
    number: int = 0

    def arm(self, side: Side) -> Arm:
        if self.catch:
            return self.catch
        return self.left if side == "left" else other(self.left)


def other(arm: Arm) -> Arm:
    return "B" if arm == "A" else "A"


def trials(
    ab_test_id: str,
    voter: str,
    pairs: Sequence[int],
    catch_trials: int,
    *,
    left_out: Collection[int] = (),
    key: bytes = b"",
) -> list[Trial]:
    """The voter's trials in order: every pair once, with catch trials between, one in ten trials at most, never first.

    `pairs` are those that the test had when it became ready. Pairs that were lost since are `left_out`, and the order
    and sides of the others stay as they were.

    Over `pairs`, A is on the left as often as B, or once more or less. The sides are drawn from one bag, not in blocks
    of two, because a voter is told the arms after each vote and could tell a block's second trial from its first. For
    each pair A is on the left for half of all possible voters, each drawn independently: among n voters the count
    strays from n/2 by about √n/2, and without knowing who has voted before it cannot be held closer.
    """
    draw = partial(_draw, key, ab_test_id, voter)
    order = sorted(pairs, key=lambda pair: draw("order", pair))
    bag = sorted(order, key=lambda pair: draw("side", pair))
    # Of an odd number, the arm that is on the left once more is drawn as well.
    left_is_a = set(bag[: (len(bag) + draw("odd", 0) % 2) // 2])
    catches = _catches(ab_test_id, voter, order, min(catch_trials, len(order) // PAIRS_A_CATCH), draw)
    found: list[Trial] = []
    for place, pair in enumerate(order):
        left: Arm = "A" if pair in left_is_a else "B"
        found.append(Trial(ab_test_id=ab_test_id, pair=pair, voter=voter, left=left))
        if place in catches:
            found.append(catches[place])
    return _without(found, frozenset(left_out))


def _catches(ab_test_id: str, voter: str, order: Sequence[int], count: int, draw: "partial[int]") -> dict[int, Trial]:
    """Catch trials by the place in the order after which they come, one in each of as many stretches of the order.

    Each repeats one side of a pair from far away in the order, because next to that pair it would be recognised.
    """
    found = {}
    for number in range(1, count + 1):
        first, end = len(order) * (number - 1) // count, len(order) * number // count
        place = first + draw("catch", number) % (end - first)
        pair = order[(place + len(order) // 2) % len(order)]
        arm: Arm = "A" if draw("arm", number) % 2 else "B"
        found[place] = Trial(ab_test_id=ab_test_id, pair=pair, voter=voter, left=arm, catch=arm, number=number)
    return found


def _without(found: Sequence[Trial], left_out: Collection[int]) -> list[Trial]:
    """Without the trials of those pairs, and without catch trials that come first or are too many for what is left."""
    left = [trial for trial in found if trial.pair not in left_out]
    allowed = sum(not trial.catch for trial in left) // PAIRS_A_CATCH
    kept: list[Trial] = []
    for trial in left:
        if not trial.catch:
            kept.append(trial)
        elif kept and allowed:
            allowed -= 1
            kept.append(trial)
    return kept


def _draw(key: bytes, ab_test_id: str, voter: str, purpose: str, number: int) -> int:
    """A number of 128 random bits that is always the same for the same arguments."""
    drawn = msgspec.json.encode((ab_test_id, voter, purpose, number))
    return int.from_bytes(hashlib.blake2b(drawn, digest_size=16, key=key).digest())
