"""The results of a blind A/B test in plain words, for the terminal and for the report."""

from math import floor
from typing import Final

from msgspec import Struct

from domain.events.ab_tests import Arm
from domain.verdicts import Reason, Results

EXCLUDED: Final[dict[Reason, str]] = {
    "catch_trial": "trials of two identical sides, which check attention and say nothing about the arms",
    "failed_attention": "votes of voters who preferred a side in most of their trials of identical sides",
    "little_listening": "votes cast before both sides had been heard for {min_seconds:g} s",
    "repeated": "second votes of a voter on a pair",
}
METHODS: Final = {
    "wilson": "Wilson's, for independent votes",
    "bootstrap_pairs": "a bootstrap over pairs, as votes on one pair are alike",
    "bootstrap_voters": "a bootstrap over voters, as votes of one voter are alike",
}
ANY_TIME: Final = (
    "The evidence is counted like the money of somebody who bets that the arms differ, and who began with 1. If the "
    "arms do not differ, no way of betting makes 20 out of it in more than one test of twenty, however often anybody "
    "looks. So you may look after every vote and stop as soon as the line is crossed. Where several voters hear one "
    "pair, 10,000 simulated tests confirm this limit."
)


class Pair(Struct, frozen=True):
    prompt: str
    status: str


class Asked(Struct, frozen=True):
    """A test as the studio tells it. An arm without an adapter is the base model."""

    id: str
    name: str
    status: str
    progress: str
    pairs: list[Pair]
    model_id: str
    adapter_a: str | None = None
    adapter_b: str | None = None
    created_at: str | None = None
    closed_at: str | None = None

    def arm(self, arm: Arm) -> str:
        adapter = self.adapter_a if arm == "A" else self.adapter_b
        return f"{arm} (the base model)" if adapter is None else f"{arm} (adapter {adapter})"


def headline(asked: Asked, found: Results) -> str:
    if found.verdict == "equivalent":
        return f"{asked.arm('A')} and {asked.arm('B')} are equivalent."
    if found.verdict == "inconclusive":
        return "There is no verdict yet." if asked.status != "closed" else "The test ended without a verdict."
    better: Arm = found.verdict
    worse: Arm = "B" if better == "A" else "A"
    return f"{asked.arm(better)} is better than {asked.arm(worse)}."


def reasons(found: Results) -> list[str]:
    """Why this verdict, and whom it speaks of."""
    said = []
    if not found.votes:
        return ["No vote counts so far."]
    if found.verdict in {"A", "B"}:
        said.append(f"The evidence that the arms differ is {amount(found.e_value)}; {found.threshold:g} is enough.")
    elif found.verdict == "equivalent":
        said.append(
            f"With ties as half, the win rate lies within {found.margin:.0%} of one half: "
            f"{percent(found.ties_as_half.low)} to {percent(found.ties_as_half.high)}."
        )
    elif found.e_value_all >= found.threshold:
        said.append(
            f"All votes together would be enough ({amount(found.e_value_all)} of {found.threshold:g}), but without one "
            f"of the voters the evidence is {amount(found.e_value)}. A verdict must not hang on a single voter: "
            "more votes by others help."
        )
    else:
        said.append(
            f"The evidence that the arms differ is {amount(found.e_value)}, and {found.threshold:g} is needed; nor is "
            "the win rate known closely enough to call them equivalent. More votes may settle it."
        )
    if found.scope == "one_listener":
        said.append("One person voted, so this is about what that person prefers.")
    elif found.verdict in {"A", "B"} and found.scope == "these_listeners":
        said.append(
            f"It is about these {found.voters} listeners, and holds without any one of them. They are too few, or "
            "differ too much, to speak for listeners in general."
        )
    elif found.verdict in {"A", "B"}:
        said.append(f"The {found.voters} listeners agree enough to speak for listeners in general.")
    return said


def exclusions(found: Results) -> list[str]:
    """What does not count and why, and how many."""
    return [
        f"{EXCLUDED[each.reason].format(min_seconds=found.listening.min_seconds)}: {each.count:,}"
        for each in found.excluded
    ]


def facts(found: Results) -> list[tuple[str, str, str]]:
    """Name, value, and a remark."""
    rate, left, first = found.win_rate, found.position_bias.left, found.position_bias.first
    caught = found.catch_trials
    listened = found.listening.median_seconds
    agreement = "—" if found.agreement_alpha is None else f"{found.agreement_alpha:.2f}"
    failed = f"a side preferred in {caught.failed:,}; voters left out: {caught.voters_failed:,}"
    half = found.ties_as_half
    return [
        ("Votes that count", f"{found.votes:,}", f"of {found.cast:,} cast"),
        ("Voters, pairs", f"{found.voters:,}, {found.pairs:,}", ""),
        ("A preferred", f"{found.wins.A:,}", ""),
        ("B preferred", f"{found.wins.B:,}", ""),
        ("Ties, both bad", f"{found.ties:,}, {found.both_bad:,}", ""),
        ("A's win rate", share(rate.value, rate.low, rate.high), f"95 % interval: {METHODS[rate.method]}"),
        ("… with ties as half", share(half.value, half.low, half.high), "interval valid at every look"),
        ("Evidence (e-value)", amount(found.e_value), f"a verdict from {found.threshold:g} on"),
        ("Sign test", f"p = {found.sign_test_p:.3g}", "for a single look at a number of votes fixed beforehand"),
        ("Left side chosen", share(left.share, left.low, left.high), _bias(left.p, left.of)),
        ("Side heard first chosen", share(first.share, first.low, first.high), _bias(first.p, first.of)),
        ("Agreement (alpha)", agreement, "1 is perfect, 0 is chance"),
        ("Trials of identical sides", f"{caught.asked:,}", failed if caught.asked else ""),
        ("Listening per vote", "—" if listened is None else f"{listened:.1f} s", "median of both sides together"),
    ]


def amount(e_value: float) -> str:
    """Rounded down, so that no evidence looks like more than it is."""
    if e_value >= 1_000_000:
        return "over a million"
    return (
        f"{floor(e_value):,}"
        if e_value >= 100
        else f"{floor(10 * e_value) / 10:g}"
        if e_value >= 1
        else f"{e_value:.1g}"
    )


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def share(value: float | None, low: float, high: float) -> str:
    return "—" if value is None else f"{percent(value)} ({percent(low)} to {percent(high)})"


def _bias(p: float, of: int) -> str:
    if not of:
        return "not told"
    return (
        f"no sign of a bias (p = {p:.2g})" if p >= 0.05 else f"voters favour a side (p = {p:.2g}); sides are balanced"
    )
