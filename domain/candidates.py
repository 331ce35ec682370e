"""Best of n: a sample is the best of several candidates, each with a seed of its own, as the model finds."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from domain.errors import Fault
from domain.events.jobs import MAX_SAMPLES, AdapterSnapshot, Basis, SampleGenerated
from domain.models import Model

# A score is what the codes' probabilities give, which models of other families do not tell.
FAMILIES: Final = frozenset({"musicgen"})


class Made(Protocol):
    @property
    def event(self) -> SampleGenerated: ...


M = TypeVar("M", bound=Made)


def groups(samples: Sequence[M], count: int, best_of: int) -> Iterator[list[M]]:
    """The candidates of each sample, once all are made; of `count` in all, each `best_of` in a row are one sample's."""
    for first in range(0, count, best_of):
        wanted = range(first, min(first + best_of, count))
        found = [sample for sample in samples if sample.event.index in wanted]
        if len(found) == len(wanted):
            yield found


def best(group: Sequence[M], by: Basis | None) -> M:
    """The one with the highest score, of equal ones the first. One without a score comes last."""

    def score(sample: M) -> float:
        found = sample.event.preference if by == "preference" else sample.event.likelihood
        return float("-inf") if found is None else found

    return max(group, key=score)


def basis(best_of: int, asked: Basis | None, adapter: AdapterSnapshot | None) -> Basis | None:
    """What candidates are picked by, None where there is one a sample."""
    if best_of == 1:
        return None
    return asked or ("preference" if adapter is not None and adapter.has_preference else "likelihood")


class Request(Protocol):
    @property
    def best_of(self) -> int | None: ...
    @property
    def best_of_by(self) -> Basis | None: ...
    @property
    def num_samples(self) -> int | None: ...
    @property
    def seeds(self) -> Sequence[int] | None: ...


def faults(request: Request, model: Model, known: Sequence[Model], adapter: AdapterSnapshot | None) -> Iterator[Fault]:
    best_of, by, num_samples, seeds = request.best_of, request.best_of_by, request.num_samples, request.seeds
    yield from _adapter_faults(by, adapter)
    if best_of is None:
        if by is not None:
            yield Fault("/best_of_by", f"best_of_by is {by}, but there is no best_of; give both or neither.")
        return
    if not 2 <= best_of <= MAX_SAMPLES:
        yield Fault("/best_of", f"best_of is {best_of:,}; ask for 2 to {MAX_SAMPLES}, or leave it out.")
        return
    if model.family not in FAMILIES:
        names = ", ".join(other.id for other in known if other.family in FAMILIES)
        detail = f"best_of is {best_of}, but {model.id} does not say how likely its audio is. Leave best_of out"
        yield Fault("/best_of", f"{detail}, or use one that does: {names}." if names else f"{detail}.")
    if seeds is not None and len(seeds) != (num_samples or max(1, len(seeds) // best_of)) * best_of:
        wanted = f"{num_samples or 1} times best_of {best_of}"
        detail = f"seeds has {len(seeds):,} entries; each candidate has its own: give {wanted}, or one seed instead."
        yield Fault("/seeds", detail)
    if num_samples is not None and 1 <= num_samples <= MAX_SAMPLES < num_samples * best_of:
        detail = f"num_samples {num_samples} times best_of {best_of} is {num_samples * best_of} candidates"
        yield Fault("/best_of", f"{detail}; a job makes up to {MAX_SAMPLES}. Ask for fewer, or in several jobs.")


def _adapter_faults(by: Basis | None, adapter: AdapterSnapshot | None) -> Iterator[Fault]:
    if by != "preference" or (adapter is not None and adapter.has_preference):
        return
    if adapter is None:
        detail = "best_of_by is preference, but there is no adapter_id, whose preference model would pick"
    else:
        detail = (
            f"best_of_by is preference, but adapter {adapter.name} {adapter.version} has no preference model that "
            "tells held-out pairs apart better than chance"
        )
    yield Fault("/best_of_by", f"{detail}. Name an adapter that the method taste trained, or send likelihood.")
