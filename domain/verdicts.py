"""The results of a blind A/B test, from its votes alone. The verdict and what it rests on: domain/evidence.py."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from domain.events.ab_tests import Arm, Choice, Side
from domain.evidence import MARGIN, THRESHOLD, Evidence, Verdict, finite
from domain.listening_statistics import bootstrap, krippendorff_alpha, sign_test, wilson

Reason: TypeAlias = Literal["catch_trial", "failed_attention", "little_listening", "repeated"]
Method: TypeAlias = Literal["wilson", "bootstrap_pairs", "bootstrap_voters"]
Scope: TypeAlias = Literal["one_listener", "these_listeners", "listeners"]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
MIN_SECONDS: Final = 2.0  # to hear of each side; of a clip under twice that, half of it
MIN_FAILURES: Final = 2  # catch trials; and more than half of those a voter was asked
TIMELINE_POINTS: Final = 100
COLUMNS: Final = (
    "number", "time", "voter", "pair", "choice", "left_arm", "right_arm", "chosen_arm", "heard_first", "seconds_left",
    "seconds_right", "catch_arm", "counts", "excluded_because",
)  # fmt: skip


class Vote(Struct, frozen=True, kw_only=True):
    """In a catch trial both sides are of the arm `catch`. Seconds are those a side was heard, None where not told."""

    voter: str
    pair: int
    choice: Choice
    left: Arm
    catch: Arm | None = None
    heard_first: Side | None = None
    seconds_left: float | None = None
    seconds_right: float | None = None
    time: str

    @property
    def arm(self) -> Arm | None:
        """The one preferred; None for a tie and for both bad."""
        if self.choice in {"tie", "both_bad"}:
            return None
        return self.left if self.choice == "left" else _other(self.left)


class Wins(Struct, frozen=True, kw_only=True):
    A: int
    B: int


class Excluded(Struct, frozen=True, kw_only=True):
    reason: Reason
    count: int


class Estimate(Struct, frozen=True, kw_only=True):
    """`value` is None where nothing was counted."""

    value: float | None
    low: float
    high: float


class Interval(Struct, frozen=True, kw_only=True):
    method: Method
    low: float
    high: float


class WinRate(Struct, frozen=True, kw_only=True):
    """A's share of the votes that preferred an arm, with the widest of the 95 % `intervals`; `method` says which."""

    value: float | None
    low: float
    high: float
    method: Method
    intervals: tuple[Interval, ...]


class Bias(Struct, frozen=True, kw_only=True):
    """How often the side was chosen, of the votes that preferred one; `p` is of the exact sign test."""

    chosen: int
    of: int
    share: float | None
    low: float
    high: float
    p: float


class PositionBias(Struct, frozen=True, kw_only=True):
    """`first` is the side heard first, of the votes that say so."""

    left: Bias
    first: Bias


class CatchTrials(Struct, frozen=True, kw_only=True):
    """Trials of identical sides. One is failed by preferring a side; `voters_failed` fail the check as a whole."""

    asked: int
    failed: int
    voters_failed: int


class Listening(Struct, frozen=True, kw_only=True):
    """`told` counts the votes that say how long both sides were heard, `median_seconds` is of both together."""

    told: int
    median_seconds: float | None
    min_seconds: float


class Point(Struct, frozen=True, kw_only=True):
    """After so many votes that count. `win_rate` has ties as half; `low` and `high` are valid at every look."""

    votes: int
    e_value: float
    win_rate: float
    low: float
    high: float


class Results(Struct, frozen=True, kw_only=True):
    """`cast` are all votes, `votes` those that count: wins, ties and both bad. The others are kept, and `excluded`.

    `e_value` decides: from `threshold` on, the verdict is an arm. It is the smallest with any one voter left out;
    `e_value_all` leaves nobody out. `e_value_voters` is against voters who lean by tastes of their own: from the
    threshold on, the verdict speaks of listeners in general (`scope`), below it of these ones. `ties_as_half` is
    the win rate with every vote without preference as half, in an interval valid at every look: within `margin` of
    1/2 the arms are equivalent.
    `timeline` takes the votes in the order given, at `TIMELINE_POINTS` looks at most.
    """

    cast: int
    votes: int
    voters: int
    pairs: int
    wins: Wins
    ties: int
    both_bad: int
    excluded: tuple[Excluded, ...]
    win_rate: WinRate
    ties_as_half: Estimate
    sign_test_p: float
    e_value: float
    e_value_all: float
    e_value_voters: float
    threshold: float
    margin: float
    verdict: Verdict
    scope: Scope
    position_bias: PositionBias
    agreement_alpha: float | None
    catch_trials: CatchTrials
    listening: Listening
    timeline: tuple[Point, ...]


def results(votes: Sequence[Vote], *, duration: float) -> Results:
    """Of all votes of a test in the order of the log; `duration` is the clips', in seconds.

    Takes about half a second for 10,000 votes of 100 voters, two seconds of 1,000.
    """
    reasons = exclusions(votes, duration=duration)
    counted = [vote for vote, reason in zip(votes, reasons, strict=True) if reason is None]
    evidence, timeline = _follow(counted)
    low, high = evidence.interval()
    choices = Counter(vote.choice for vote in counted)
    wins, decisive = evidence.wins, evidence.wins["A"] + evidence.wins["B"]
    voters = len({vote.voter for vote in counted})
    e_value_voters = finite(evidence.log_e_of_voters())
    return Results(
        cast=len(votes),
        votes=len(counted),
        voters=voters,
        pairs=len({vote.pair for vote in counted}),
        wins=Wins(**wins),
        ties=choices["tie"],
        both_bad=choices["both_bad"],
        excluded=tuple(Excluded(reason=name, count=reasons.count(name)) for name in REASONS if name in reasons),
        win_rate=_win_rate(counted, wins["A"], decisive),
        ties_as_half=Estimate(value=_half_ties(evidence) if counted else None, low=low, high=high),
        sign_test_p=sign_test(wins["A"], decisive),
        e_value=finite(evidence.log_e_value()),
        e_value_all=finite(evidence.log_e_of_all()),
        e_value_voters=e_value_voters,
        threshold=THRESHOLD,
        margin=MARGIN,
        verdict=evidence.verdict(),
        scope="one_listener" if voters < 2 else "listeners" if e_value_voters >= THRESHOLD else "these_listeners",
        position_bias=_position_bias(counted),
        agreement_alpha=_agreement(counted),
        catch_trials=_catch_trials(votes),
        listening=_listening(counted, duration),
        timeline=timeline,
    )


def exclusions(votes: Sequence[Vote], *, duration: float) -> list[Reason | None]:
    """Of each vote, why it does not count. No reason looks at the arms, so leaving votes out favours neither."""
    inattentive = _inattentive(votes)
    enough = _enough(duration)
    seen: set[tuple[str, int]] = set()
    reasons: list[Reason | None] = []
    for vote in votes:
        heard = [seconds for seconds in (vote.seconds_left, vote.seconds_right) if seconds is not None]
        trial = (vote.voter, vote.pair)
        if vote.catch is not None:
            reasons.append("catch_trial")
        elif trial in seen:
            reasons.append("repeated")
        elif vote.voter in inattentive:
            reasons.append("failed_attention")
        elif heard and min(heard) < enough:
            reasons.append("little_listening")
        else:
            reasons.append(None)
        if vote.catch is None:
            seen.add(trial)
    return reasons


def rows(votes: Sequence[Vote], *, duration: float) -> list[tuple[Any, ...]]:
    """One a vote under `COLUMNS`, also those that do not count; None where nothing is known."""
    return [
        (
            number, vote.time, vote.voter, vote.pair, vote.choice, vote.left,
            vote.catch or _other(vote.left), None if vote.catch else vote.arm, vote.heard_first, vote.seconds_left,
            vote.seconds_right, vote.catch, reason is None, reason,
        )
        for number, (vote, reason) in enumerate(zip(votes, exclusions(votes, duration=duration), strict=True), 1)
    ]  # fmt: skip


def _other(arm: Arm) -> Arm:
    return "B" if arm == "A" else "A"


def _enough(duration: float) -> float:
    return min(MIN_SECONDS, duration / 2)


def _failed(vote: Vote) -> bool:
    return vote.choice in {"left", "right"}


def _inattentive(votes: Iterable[Vote]) -> set[str]:
    asked = Counter(vote.voter for vote in votes if vote.catch is not None)
    failed = Counter(vote.voter for vote in votes if vote.catch is not None and _failed(vote))
    return {voter for voter, count in failed.items() if count >= MIN_FAILURES and 2 * count > asked[voter]}


def _catch_trials(votes: Iterable[Vote]) -> CatchTrials:
    caught = [vote for vote in votes if vote.catch is not None]
    return CatchTrials(asked=len(caught), failed=sum(map(_failed, caught)), voters_failed=len(_inattentive(caught)))


def _follow(counted: Sequence[Vote]) -> tuple[Evidence, tuple[Point, ...]]:
    points = min(TIMELINE_POINTS, len(counted))
    looks = {round(len(counted) * number / points) for number in range(1, points + 1)}
    evidence, timeline = Evidence(), []
    for number, vote in enumerate(counted, 1):
        evidence.add(vote.voter, vote.pair, vote.arm)
        if number in looks:
            low, high = evidence.interval()
            e_value = finite(evidence.log_e_value())
            timeline.append(Point(votes=number, e_value=e_value, win_rate=_half_ties(evidence), low=low, high=high))
    return evidence, tuple(timeline)


def _half_ties(evidence: Evidence) -> float:
    return 0.5 + (evidence.wins["A"] - evidence.wins["B"]) / (2 * evidence.votes)


def _win_rate(counted: Iterable[Vote], wins: int, decisive: int) -> WinRate:
    by_pair: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    by_voter: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for vote in counted:
        if vote.arm is not None:
            for cluster in (by_pair[vote.pair], by_voter[vote.voter]):
                cluster[0] += vote.arm == "A"
                cluster[1] += 1
    found: dict[Method, tuple[float, float] | None] = {
        "wilson": wilson(wins, decisive),
        "bootstrap_pairs": bootstrap((won, of) for won, of in by_pair.values()),
        "bootstrap_voters": bootstrap((won, of) for won, of in by_voter.values()),
    }
    intervals = tuple(Interval(method=name, low=pair[0], high=pair[1]) for name, pair in found.items() if pair)
    widest = max(intervals, key=lambda interval: interval.high - interval.low)
    value = wins / decisive if decisive else None
    return WinRate(value=value, low=widest.low, high=widest.high, method=widest.method, intervals=intervals)


def _position_bias(counted: Iterable[Vote]) -> PositionBias:
    decisive = [vote for vote in counted if vote.arm is not None]
    told = [vote for vote in decisive if vote.heard_first is not None]
    return PositionBias(
        left=_bias(sum(vote.choice == "left" for vote in decisive), len(decisive)),
        first=_bias(sum(vote.choice == vote.heard_first for vote in told), len(told)),
    )


def _bias(chosen: int, of: int) -> Bias:
    low, high = wilson(chosen, of)
    share = chosen / of if of else None
    return Bias(chosen=chosen, of=of, share=share, low=low, high=high, p=sign_test(chosen, of))


def _agreement(counted: Iterable[Vote]) -> float | None:
    by_pair: dict[int, list[str]] = defaultdict(list)
    for vote in counted:
        by_pair[vote.pair].append(vote.arm or vote.choice)
    return krippendorff_alpha(by_pair.values())


def _listening(counted: Iterable[Vote], duration: float) -> Listening:
    told = [
        vote.seconds_left + vote.seconds_right
        for vote in counted
        if vote.seconds_left is not None and vote.seconds_right is not None
    ]
    return Listening(told=len(told), median_seconds=median(told) if told else None, min_seconds=_enough(duration))
