"""How often a blind test without a difference names a better arm, and how many votes one with a difference needs.

`TESTS` simulated tests of 300 votes, looked at after every vote, through the project's own evidence.
"""

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Final, NamedTuple, TypeAlias

from scipy.stats import binom

from domain.events.ab_tests import Arm
from domain.evidence import ALPHA, Evidence

TESTS: Final = int(os.environ.get("TESTS", "10_000"))
POWER_TESTS: Final = max(TESTS // 10, 1)
PROCESSES: Final = int(os.environ.get("PROCESSES", "2"))
# Whether a voter (by number) prefers A of a pair (by number), whose left sample is A's or not.
Listener: TypeAlias = Callable[[int, int, bool], bool]
Audience: TypeAlias = Callable[[random.Random, int, int], Listener]
Outcome: TypeAlias = tuple[int | None, bool]  # after how many votes an arm was named, and whether they were equivalent


def share(draw: random.Random, _voters: int, _pairs: int, *, p: float = 0.5) -> Listener:
    """Every vote on its own."""
    return lambda _voter, _pair, _left: draw.random() < p


def position(draw: random.Random, voters: int, _pairs: int) -> Listener:
    """Every voter favours a side, each as much as they do."""
    left = [draw.uniform(0.05, 0.95) for _ in range(voters)]
    return lambda voter, _pair, left_is_a: (draw.random() < left[voter]) is left_is_a


def first_side(draw: random.Random, _voters: int, _pairs: int) -> Listener:
    return lambda _voter, _pair, left_is_a: (draw.random() < 0.75) is left_is_a


def sticky(draw: random.Random, voters: int, _pairs: int, *, who: int | None = None, side: bool = True) -> Listener:
    """Nine times in ten the same answer as before: the side, or the arm (of one voter by number, or of all)."""
    last = [draw.random() < 0.5 for _ in range(voters)]

    def choose(voter: int, _pair: int, left_is_a: bool) -> bool:
        if who is not None and voter != who:
            return draw.random() < 0.5
        last[voter] = last[voter] if draw.random() < 0.9 else not last[voter]
        return last[voter] is left_is_a if side else last[voter]

    return choose


def fan(draw: random.Random, voters: int, _pairs: int, *, p: float = 1.0) -> Listener:
    """One voter leans to A, the others hear no difference."""
    leaning = draw.randrange(voters)
    return lambda voter, _pair, _left: draw.random() < (p if voter == leaning else 0.5)


def pairs_alike(draw: random.Random, _voters: int, pairs: int, *, spread: float, p: float = 0.5) -> Listener:
    """One sample of each pair is better by chance; the smaller the spread, the more voters agree which."""
    better = [
        draw.betavariate(2 * spread * p, 2 * spread * (1 - p)) if spread else float(draw.random() < p)
        for _ in range(pairs)
    ]
    return lambda _voter, pair, _left: draw.random() < better[pair]


def tastes(draw: random.Random, voters: int, _pairs: int, *, spread: float) -> Listener:
    """Every voter leans to an arm by a taste of their own."""
    taste = [draw.betavariate(spread, spread) for _ in range(voters)]
    return lambda voter, _pair, _left: draw.random() < taste[voter]


def sides(draw: random.Random, count: int) -> list[bool]:
    """Whether A is on the left: balanced within every four trials."""
    return [side for _ in range(-(-count // 4)) for side in draw.sample([True, True, False, False], 4)][:count]


def trials(draw: random.Random, voters: int, pairs: int, order: str) -> Iterator[tuple[int, int, bool]]:
    """Voters take turns at random, each hearing every pair once; or everybody hears the pairs in the same order."""
    turns = [voter for voter in range(voters) for _ in range(pairs)]
    if order == "turns":
        draw.shuffle(turns)
    own = {
        voter: iter(
            zip(
                draw.sample(range(pairs), pairs) if order != "rounds" else range(pairs), sides(draw, pairs), strict=True
            )
        )
        for voter in range(voters)
    }
    if order == "rounds":
        turns = [voter for _ in range(pairs) for voter in range(voters)]
    for voter in turns:
        yield voter, *next(own[voter])


class Plan(NamedTuple):
    """A test: who listens, and how it is run. `order` is as in `trials`."""

    name: str
    audience: Audience
    voters: int = 10
    pairs: int = 30
    order: str = "turns"
    looks: int = 300


def simulate(plan: Plan, seed: int) -> Outcome:
    draw, evidence, equivalent = random.Random(seed), Evidence(), False
    choose = plan.audience(draw, plan.voters, plan.pairs)
    for number, (voter, pair, left_is_a) in enumerate(trials(draw, plan.voters, plan.pairs, plan.order), 1):
        arm: Arm = "A" if choose(voter, pair, left_is_a) else "B"
        evidence.add(str(voter), pair, arm)
        verdict = evidence.verdict()
        if verdict in {"A", "B"}:
            return number, equivalent
        equivalent = equivalent or verdict == "equivalent"
        if number == plan.looks:
            break
    return None, equivalent


NULLS: Final = (
    Plan("no difference, 10 voters", share),
    Plan("no difference, 1 voter", share, 1, 300),
    Plan("each voter favours a side, differently", position),
    Plan("all favour the first side, 3 in 4", first_side),
    Plan("1 voter who favours a side", first_side, 1, 300),
    Plan("all repeat the side they chose, 9 in 10", sticky),
    Plan("1 voter of 10 repeats the arm, 9 in 10", partial(sticky, who=0, side=False)),
    Plan("1 voter of 10 prefers A always", fan),
    Plan("1 voter of 2 prefers A always", fan, 2, 150),
    Plan("all agree on every pair", partial(pairs_alike, spread=0)),
    Plan("all agree on every pair, pair by pair", partial(pairs_alike, spread=0), order="rounds"),
    Plan("all agree on every pair, voter by voter", partial(pairs_alike, spread=0), order="voters"),
    Plan("samples differ much", partial(pairs_alike, spread=1)),
    Plan("samples differ much, voter by voter", partial(pairs_alike, spread=1), order="voters"),
    Plan("samples differ much, 30 voters", partial(pairs_alike, spread=1), 30, 10),
    Plan("not covered: all voters lean a little", partial(tastes, spread=5)),
    Plan("not covered: all voters lean much", partial(tastes, spread=1)),
    Plan("not covered: all repeat the arm, 9 in 10", partial(sticky, side=False)),
)


def fixed_size(p: float, power: float) -> int:
    """Votes of a two-sided exact binomial test that is looked at once, from where on it has this power."""
    for votes in range(5, 2_000):
        enough = int(binom.isf(ALPHA / 2, votes, 0.5)) + 1
        if (
            all(binom.sf(int(binom.isf(ALPHA / 2, n, 0.5)), n, p) >= power for n in range(votes, votes + 10))
            and enough <= votes
        ):
            return votes
    raise AssertionError(f"no size up to 2,000 has the power {power} at {p}")


def main() -> None:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:

        def outcomes(plan: Plan, count: int) -> list[Outcome]:
            return list(pool.map(partial(simulate, plan), range(count), chunksize=50))

        print(f"{TESTS:,} tests, 300 votes each, looked at after every vote: an arm was named in")
        for plan in NULLS:
            named = sum(number is not None for number, _ in outcomes(plan, TESTS))
            print(f"  {100 * named / TESTS:6.2f} %  {plan.name}", flush=True)
        print(f"\nA is preferred 55 times in 100, {POWER_TESTS:,} tests of 3,000 votes: called equivalent in")
        for name, audience in (
            ("every vote on its own", share),
            ("samples differ much", partial(pairs_alike, spread=1)),
        ):
            found = outcomes(Plan(name, partial(audience, p=0.55), pairs=300, looks=3_000), POWER_TESTS)
            print(f"  {100 * sum(equivalent for _, equivalent in found) / len(found):6.2f} %  {name}", flush=True)
        print(f"\nvotes until the better arm is named, median of {POWER_TESTS:,} tests (in brackets: named within 300)")
        print(
            "  prefer A   1 voter        10 voters, 30 pairs    samples differ too     looked at once: power 80 %, 90 %"
        )
        for p in (0.6, 0.7, 0.8):
            alone = Plan("", partial(share, p=p), 1, 500, looks=500)
            together, differing = Plan("", partial(share, p=p)), Plan("", partial(pairs_alike, p=p, spread=3))
            sizes = f"{fixed_size(p, 0.8)}, {fixed_size(p, 0.9)}"
            cells = [
                _cell([number for number, _ in outcomes(plan, POWER_TESTS)]) for plan in (alone, together, differing)
            ]
            print(f"  {p:.0%}        {cells[0]:<14} {cells[1]:<22} {cells[2]:<22} {sizes}")


def _cell(numbers: list[int | None]) -> str:
    sorted_numbers = sorted(number if number is not None else 10**6 for number in numbers)
    middle = sorted_numbers[len(numbers) // 2]
    within = 100 * sum(number <= 300 for number in sorted_numbers) / len(numbers)
    return f"{middle if middle < 10**6 else 'never'} ({within:.0f} %)"
