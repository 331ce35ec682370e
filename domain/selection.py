"""What a dataset is asked for, and which judgements and samples its filters take in."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from domain.errors import Fault, InvalidError, plain
from domain.events import END, MAX_LABEL, NAME, timestamp
from domain.events.datasets import (
    MAX_DESCRIPTION,
    MAX_HELD_OUT,
    MAX_NAME,
    MAX_VALUES,
    DatasetCreated,
    Filters,
    Kind,
    Source,
)
from domain.events.feedback import MAX_TAG, RATINGS
from domain.events.jobs import SEEDS
from domain.prompts import control_faults

IDENTIFIER: Final = re.compile(f"{NAME}{END}")
# What each list may have in it: how long a value is at most, and whether it is an id.
LISTS: Final[Mapping[str, tuple[int, bool]]] = {
    "tags": (MAX_TAG, False),
    "user_ids": (MAX_LABEL, False),
    "expert_ids": (MAX_LABEL, False),
    "adapter_ids": (200, True),
    "model_ids": (1_000, False),
    "campaign_ids": (MAX_LABEL, False),
    "client_ids": (MAX_LABEL, False),
    "collections": (MAX_LABEL, False),
}
SHARES: Final = ("min_agreement", "min_reliability")


class FilterQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Every field narrows; of several values of a field any will do. `adapter_ids` has null for the base model.

    `sources` are what listeners said as feedback, their votes in A/B tests, or both. `min_agreement` is the share of a
    sample's or pair's listeners that go along, `min_votes` how many there have to be. `min_reliability` is of
    listeners, 0.5 for one of whom nothing is known. `expert_ids` and `user_ids` name the listeners that are taken in.
    Dates are ISO 8601, both ends within; a date alone is a whole day in UTC.
    """

    min_rating: Annotated[float | None, Meta(examples=[4])] = None
    max_rating: float | None = None
    tags: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()
    expert_ids: tuple[str, ...] = ()
    adapter_ids: tuple[str | None, ...] = ()
    model_ids: tuple[str, ...] = ()
    campaign_ids: tuple[str, ...] = ()
    client_ids: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    start_date: str | None = None
    end_date: str | None = None
    sources: Source = "both"
    min_agreement: float | None = None
    min_votes: int | None = None
    min_reliability: float | None = None


class DatasetRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`held_out` is the share of the prompts that are kept for tests: which ones, `seed` and the prompt say alone, so
    that a prompt stays where it is while a dataset is made anew.
    """

    name: Annotated[str, Meta(examples=["what we liked in January"])]
    type: Kind
    description: str = ""
    filter_query: FilterQuery = FilterQuery()
    held_out: float = 0.1
    seed: int = 0
    user_id: str | None = None


def creation(request: DatasetRequest, dataset_id: str, digest: str) -> DatasetCreated:
    """Raises InvalidError naming every value out of bounds, its limit and the way out."""
    if faults := [*_faults(request), *_filter_faults(request.filter_query, request.type)]:
        raise InvalidError(faults)
    return DatasetCreated(
        dataset_id=dataset_id,
        dataset_name=request.name.strip(),
        kind=request.type,
        filters=_filters(request.filter_query),
        description=request.description,
        held_out=request.held_out,
        seed=request.seed,
        user_id=request.user_id,
        request_digest=digest,
    )


def takes_listener(filters: Filters, user_id: str | None) -> bool:
    return all(not users or user_id in users for users in (filters.user_ids, filters.expert_ids))


def takes_moment(filters: Filters, moment: str) -> bool:
    return (filters.start_date or "") <= moment and (filters.end_date is None or moment <= filters.end_date)


def takes_samples(filters: Filters, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of them matches; each has adapter_id, model_id, campaign_id, client_id and collection."""
    wanted = {
        "adapter_id": filters.adapter_ids,
        "model_id": filters.model_ids,
        "campaign_id": filters.campaign_ids,
        "client_id": filters.client_ids,
        "collection": filters.collections,
    }
    return any(all(not values or sample[name] in values for name, values in wanted.items()) for sample in samples)


def takes_rating(filters: Filters, rating: float | None) -> bool:
    """Whether a mean rating lies within; without bounds anything does, and with any, nothing unrated."""
    if filters.min_rating is None and filters.max_rating is None:
        return True
    low, high = filters.min_rating or RATINGS[0], filters.max_rating or RATINGS[1]
    return rating is not None and low <= rating <= high


def _filters(query: FilterQuery) -> Filters:
    lists: dict[str, Any] = {
        name: tuple(sorted(set(getattr(query, name)), key=lambda value: value or "")) for name in LISTS
    }
    lists["tags"] = tuple(sorted({tag.strip() for tag in query.tags}))
    numbers: dict[str, Any] = {
        name: None if (value := getattr(query, name)) is None else float(value)
        for name in ("min_rating", "max_rating", *SHARES)
    }
    return Filters(
        **lists,
        **numbers,
        start_date=None if query.start_date is None else _moment(query.start_date),
        end_date=None if query.end_date is None else _moment(query.end_date, end=True),
        sources=query.sources,
        min_votes=query.min_votes,
    )


def _faults(request: DatasetRequest) -> Iterator[Fault]:
    name = request.name.strip()
    if not 1 <= len(name) <= MAX_NAME:
        yield Fault("/name", f"name has {len(name):,} characters; it must have 1 to {MAX_NAME}.")
    yield from control_faults(request.name, "/name")
    if len(request.description) > MAX_DESCRIPTION:
        detail = f"description has {len(request.description):,} characters; the limit is {MAX_DESCRIPTION:,}."
        yield Fault("/description", detail)
    yield from control_faults(request.description, "/description")
    if not 0 <= request.held_out <= MAX_HELD_OUT:
        detail = f"held_out is {plain(request.held_out)}; give a share of the prompts from 0 to {MAX_HELD_OUT}."
        yield Fault("/held_out", detail)
    if not 0 <= request.seed < SEEDS:
        yield Fault("/seed", f"seed is {request.seed}; it goes from 0 to {SEEDS - 1}.")
    if request.user_id is not None and not 1 <= len(request.user_id) <= MAX_LABEL:
        yield Fault("/user_id", f"user_id has {len(request.user_id):,} characters; it must have 1 to {MAX_LABEL}.")


def _filter_faults(query: FilterQuery, kind: Kind) -> Iterator[Fault]:
    low, high = RATINGS
    for name in ("min_rating", "max_rating"):
        rating = getattr(query, name)
        if rating is not None and not (low <= rating <= high and rating % 0.5 == 0):
            detail = f"{name} is {plain(rating)}; give {plain(low)} to {plain(high)} in steps of a half, such as 3.5."
            yield Fault(f"/filter_query/{name}", detail)
    if query.min_rating is not None and query.max_rating is not None and query.min_rating > query.max_rating:
        detail = f"min_rating is {plain(query.min_rating)}, above max_rating, which is {plain(query.max_rating)}."
        yield Fault("/filter_query/min_rating", f"{detail} Exchange them, or leave one out.")
    for name in LISTS:
        yield from _list_faults(name, getattr(query, name))
    for name in SHARES:
        share = getattr(query, name)
        if share is not None and not 0 <= share <= 1:
            yield Fault(f"/filter_query/{name}", f"{name} is {plain(share)}; give a share from 0 to 1, such as 0.7.")
    if query.min_votes is not None and not 1 <= query.min_votes <= 1_000_000:
        detail = f"min_votes is {query.min_votes}; give 1 to 1,000,000, or leave it out."
        yield Fault("/filter_query/min_votes", detail)
    if kind == "supervised" and query.sources == "votes":
        detail = "sources is votes, which rate nothing; a supervised dataset is made of feedback. Leave sources out."
        yield Fault("/filter_query/sources", detail)
    yield from _date_faults(query)


def _list_faults(name: str, values: Sequence[str | None]) -> Iterator[Fault]:
    longest, is_id = LISTS[name]
    if len(values) > MAX_VALUES:
        detail = f"{name} has {len(values):,} values; the limit is {MAX_VALUES:,}. Make several datasets of them."
        yield Fault(f"/filter_query/{name}", detail)
        return
    for index, value in enumerate(values):
        pointer = f"/filter_query/{name}/{index}"
        length = len((value or "").strip() if name == "tags" else value or "")
        if value is not None and not 1 <= length <= longest:
            detail = f"{name}[{index}] has {length:,} characters; it must have 1 to {longest:,}."
            yield Fault(pointer, detail)
        elif value is not None and is_id and not IDENTIFIER.fullmatch(value):
            yield Fault(pointer, f"{name}[{index}] is {value!r}, which no id is; give an adapter's id, or null.")


def _date_faults(query: FilterQuery) -> Iterator[Fault]:
    found = []
    for name, text in (("start_date", query.start_date), ("end_date", query.end_date)):
        if text is None:
            continue
        try:
            found.append(_moment(text, end=name == "end_date"))
        except (ValueError, OverflowError):
            detail = f"{name} is {text!r}; write a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z."
            yield Fault(f"/filter_query/{name}", detail)
    if len(found) == 2 and found[0] > found[1]:
        detail = f"start_date is {query.start_date}, after end_date, which is {query.end_date}. Exchange them."
        yield Fault("/filter_query/start_date", detail)


def _moment(text: str, *, end: bool = False) -> str:
    """As the log writes times. Raises ValueError or OverflowError."""
    parsed = datetime.fromisoformat(text.upper())
    if len(text) <= len("2026-01-31"):
        parsed = datetime.combine(parsed.date(), time.max if end else time.min)
    return timestamp(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
