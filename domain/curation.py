"""The items of a dataset: samples, or pairs of samples, with what listeners said of them, and without their names.

A listener counts once an item: ratings of one sample are averaged, and of answers about one pair the more frequent one
counts, or a tie.
Each item that is left out has a reason. The order of the judgements does not change the items.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from domain.events.datasets import Filters, Reason
from domain.selection import takes_rating

Split: TypeAlias = Literal["train", "test"]
Choice: TypeAlias = Literal["first", "second", "tie", "both_bad"]
NEAR: Final = 1.0  # stars: ratings no farther apart agree
SAME: Final = 0.5  # stars: a listener who rates again so near has said the same
DIGITS: Final = 6


class Listed(Struct, frozen=True, kw_only=True):
    """A sample. `duration` is in seconds; `seed`, model and adapter are what it was made with."""

    sample_id: str
    job_id: str
    model_id: str
    adapter_id: str | None
    seed: int
    duration: float
    sample_rate: int
    size: int
    sha256: str
    pcm_sha256: str | None
    storage_path: str


class Rated(Struct, frozen=True, kw_only=True):
    """One judgement, by its feedback's id; `by` numbers the listeners of the item."""

    id: str
    by: int
    rating: float | None = None
    tags: tuple[str, ...] = ()


class Compared(Struct, frozen=True, kw_only=True):
    """One judgement of a pair, by its feedback's or its vote's id; `by` numbers the listeners of the item."""

    id: str
    by: int
    choice: Choice
    tags: tuple[str, ...] = ()
    is_vote: bool = False


class Item(Struct, frozen=True, kw_only=True, tag_field="kind"):
    split: Split
    prompt_id: str
    prompt: str
    model_prompt: str


class SampleItem(Item, frozen=True, kw_only=True, tag="sample"):
    """`rating_mean` is the mean of each listener's own mean, `n_ratings` the number of listeners."""

    sample: Listed
    rating_mean: float
    n_ratings: int
    tags: tuple[str, ...]
    judgements: tuple[Rated, ...]


class PairItem(Item, frozen=True, kw_only=True, tag="pair"):
    """`first` was preferred. `weight` is how many more of the `n_votes` listeners preferred it than `second`."""

    first: Listed
    second: Listed
    weight: int
    n_votes: int
    tags: tuple[str, ...]
    judgements: tuple[Compared, ...]


class BadItem(Item, frozen=True, kw_only=True, tag="both_bad"):
    """More than half of the listeners found both of the samples bad."""

    first: Listed
    second: Listed
    n_votes: int
    tags: tuple[str, ...]
    judgements: tuple[Compared, ...]


AnyItem: TypeAlias = SampleItem | PairItem | BadItem


def split(prompt: str, seed: int, held_out: float) -> Split:
    """Drawn from the prompt's words, not its id: the same words may have two ids, and must not be in both splits."""
    words = " ".join(prompt.lower().split())
    drawn = int.from_bytes(sha256(f"{seed}:{words}".encode()).digest()[:8])
    return "test" if drawn < held_out * 2**64 else "train"


def numbered(users: Sequence[str | None]) -> list[int]:
    """A number for each listener, by first mention; listeners without a name are all different."""
    known: dict[str | int, int] = {}
    return [known.setdefault(index if user is None else user, len(known)) for index, user in enumerate(users)]


def rate(base: Item, sample: Listed, judgements: Sequence[Rated], filters: Filters) -> SampleItem | Reason:
    """The sample's item, or why it is left out."""
    means = own_means(judgements)
    if not means:
        return "unrated"
    mean = round(sum(means.values()) / len(means), DIGITS)
    near = sum(abs(own - mean) <= NEAR for own in means.values())
    if reason := _refusal(filters, len(means), near, _tags(judgements)):
        return reason
    if not takes_rating(filters, mean):
        return "rating"
    return SampleItem(
        split=base.split,
        prompt_id=base.prompt_id,
        prompt=base.prompt,
        model_prompt=base.model_prompt,
        sample=sample,
        rating_mean=mean,
        n_ratings=len(means),
        tags=_tags(judgements),
        judgements=tuple(sorted(judgements, key=lambda judged: judged.id)),
    )


def compare(
    base: Item, first: Listed, second: Listed, judgements: Sequence[Compared], filters: Filters
) -> PairItem | BadItem | Reason:
    """The pair's item, or why it is left out. The preferred sample becomes `first`."""
    verdicts = Counter(own_choices(judgements).values())
    votes, lead = verdicts.total(), verdicts["first"] - verdicts["second"]
    is_bad = 2 * verdicts["both_bad"] > votes
    if not is_bad and not lead:
        return "tied"
    along = verdicts["both_bad"] if is_bad else max(verdicts["first"], verdicts["second"])
    if reason := _refusal(filters, votes, along, _tags(judgements)):
        return reason
    turned = not is_bad and lead < 0
    if turned:
        first, second = second, first
        judgements = [replace(judged, choice=OPPOSITE[judged.choice]) for judged in judgements]
    fields: dict[str, Any] = {
        "split": base.split,
        "prompt_id": base.prompt_id,
        "prompt": base.prompt,
        "model_prompt": base.model_prompt,
        "first": first,
        "second": second,
        "n_votes": votes,
        "tags": _tags(judgements),
        "judgements": tuple(sorted(judgements, key=lambda judged: judged.id)),
    }
    return BadItem(**fields) if is_bad else PairItem(weight=abs(lead), **fields)


def without(item: AnyItem, feedback: Collection[str], jobs: Collection[str], filters: Filters) -> AnyItem | Reason:
    """The item as it is once those records are erased and those jobs deleted."""
    if any(sample.job_id in jobs for sample in samples(item)):
        return "deleted"
    left = [judged for judged in item.judgements if judged.id not in feedback]
    if len(left) == len(item.judgements):
        return item
    if not left:
        return "erased"
    match item:
        case SampleItem():
            return rate(item, item.sample, [each for each in left if isinstance(each, Rated)], filters)
        case _:
            told = [each for each in left if isinstance(each, Compared)]
            return compare(item, item.first, item.second, told, filters)


def samples(item: AnyItem) -> tuple[Listed, ...]:
    return (item.sample,) if isinstance(item, SampleItem) else (item.first, item.second)


OPPOSITE: Final[dict[Choice, Choice]] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}


def own_means(judgements: Iterable[Rated]) -> dict[int, float]:
    """Each listener's mean rating, of those who rated."""
    own: dict[int, list[float]] = {}
    for judged in judgements:
        if judged.rating is not None:
            own.setdefault(judged.by, []).append(judged.rating)
    return {by: sum(sorted(ratings)) / len(ratings) for by, ratings in sorted(own.items())}


def own_choices(judgements: Iterable[Compared]) -> dict[int, Choice]:
    """What each listener says of the pair, all told."""
    own: dict[int, Counter[Choice]] = {}
    for judged in judgements:
        own.setdefault(judged.by, Counter())[judged.choice] += 1
    return {by: _decided(said) for by, said in sorted(own.items())}


def _decided(said: "Counter[Choice]") -> Choice:
    if said["both_bad"] > said.total() / 2:
        return "both_bad"
    if said["first"] != said["second"]:
        return "first" if said["first"] > said["second"] else "second"
    return "tie"


def _tags(judgements: Iterable[Rated | Compared]) -> tuple[str, ...]:
    return tuple(sorted({tag for judged in judgements for tag in judged.tags}))


def _refusal(filters: Filters, votes: int, along: int, tags: Collection[str]) -> Reason | None:
    if filters.tags and not set(filters.tags).intersection(tags):
        return "filtered"
    if votes < (filters.min_votes or 1):
        return "few_votes"
    return "low_agreement" if along < (filters.min_agreement or 0) * votes else None
