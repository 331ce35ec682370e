"""How well listeners agree with each other and with themselves, added up one sample or pair at a time."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from domain.curation import NEAR, SAME, Choice, Compared, Rated, own_choices, own_means
from domain.events.datasets import Agreement
from domain.listening_statistics import IntervalAgreement, NominalAgreement

NOTHING_KNOWN: Final = 0.5  # the reliability of a listener of whom nothing is known


class Rater(Struct, kw_only=True):
    """`compared` counts the listener's samples or pairs that others judged too and agreed on, `agreed` those where the
    listener said the same. `repeated` judgements were given again, `consistent` ones said the same as the first;
    `caught` are trials of identical sides, `passed` those in which the listener preferred neither.
    """

    judgements: int = 0
    compared: int = 0
    agreed: int = 0
    repeated: int = 0
    consistent: int = 0
    caught: int = 0
    passed: int = 0

    @property
    def reliability(self) -> float:
        """The share of all these checks that went well, as if two more had come out even."""
        good, all_ = self.agreed + self.consistent + self.passed, self.compared + self.repeated + self.caught
        return (good + 2 * NOTHING_KNOWN) / (all_ + 2)


class Raters:
    """Judgements are to come in the order in which they were given, of each sample or pair at once."""

    def __init__(self) -> None:
        self.known: dict[str, Rater] = {}
        self.unnamed = 0
        self._nominal = NominalAgreement()
        self._interval = IntervalAgreement()

    def reliability(self, user: str | None) -> float:
        return self.known[user].reliability if user in self.known else NOTHING_KNOWN

    def caught(self, user: str, *, passed: bool) -> None:
        rater = self._rater(user)
        rater.caught += 1
        rater.passed += passed

    def rated(self, users: Sequence[str | None], judgements: Sequence[Rated]) -> None:
        """Of one sample; the users are those of the judgements."""
        means = own_means(judgements)
        self._interval.add([*means.values()])
        names = self._told(users, judgements)
        for by, own in means.items():
            if by in names and len(means) > 1:
                others = (sum(means.values()) - own) / (len(means) - 1)
                names[by].compared += 1
                names[by].agreed += abs(own - others) <= NEAR
        first: dict[int, float] = {}
        for judged in judgements:
            if judged.rating is None or judged.by not in names:
                continue
            if judged.by in first:
                names[judged.by].repeated += 1
                names[judged.by].consistent += abs(judged.rating - first[judged.by]) <= SAME
            first.setdefault(judged.by, judged.rating)

    def compared(self, users: Sequence[str | None], judgements: Sequence[Compared]) -> None:
        """Of one pair; the users are those of the judgements."""
        verdicts = own_choices(judgements)
        self._nominal.add([*verdicts.values()])
        names = self._told(users, judgements)
        counts = Counter(verdicts.values())
        for by, own in verdicts.items():
            if by in names and (others := _most(counts - Counter([own]))) is not None:
                names[by].compared += 1
                names[by].agreed += own == others
        first: dict[int, Choice] = {}
        for judged in judgements:
            if judged.by in first and judged.by in names:
                names[judged.by].repeated += 1
                names[judged.by].consistent += judged.choice == first[judged.by]
            first.setdefault(judged.by, judged.choice)

    def agreement(self) -> Agreement:
        figures = {
            name: sum(getattr(rater, name) for rater in self.known.values())
            for name in ("repeated", "consistent", "caught", "passed")
        }
        measured = self._nominal if self._nominal.units else self._interval
        return Agreement(
            alpha=measured.alpha(), compared=measured.units, listeners=len(self.known) + self.unnamed, **figures
        )

    def _told(self, users: Sequence[str | None], judgements: Sequence[Rated | Compared]) -> dict[int, Rater]:
        """The listeners that have names, by their numbers."""
        found: dict[int, Rater] = {}
        for user, judged in zip(users, judgements, strict=True):
            if user is None:
                self.unnamed += 1
            else:
                found[judged.by] = self._rater(user)
                found[judged.by].judgements += 1
        return found

    def _rater(self, user: str) -> Rater:
        return self.known.setdefault(user, Rater())


def _most(counts: "Counter[Choice]") -> Choice | None:
    """What most say, None where two things are said as often."""
    ranked = counts.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
