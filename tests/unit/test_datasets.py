"""The life of a dataset, and what its filters, its items and its figures of listeners follow from."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import datasets
from domain.attempts import MAX_FAILURES
from domain.contract.datasets import (
    BUILT,
    CREATED,
    FAILED,
    attempt_failed,
    erased,
    export_failed,
    exported,
    requested,
    started,
)
from domain.curation import (
    BadItem,
    Choice,
    Compared,
    Item,
    Listed,
    PairItem,
    Rated,
    SampleItem,
    compare,
    numbered,
    rate,
    split,
    without,
)
from domain.datasets import Dataset, evolve
from domain.errors import ConflictError, InvalidError, KeyReusedError, NotFoundError
from domain.events import Recorded
from domain.events.datasets import Filters
from domain.listening_statistics import IntervalAgreement, krippendorff_alpha
from domain.ports import Position
from domain.raters import Rater, Raters
from domain.selection import DatasetRequest, FilterQuery, creation, takes_rating

BASE = Item(split="train", prompt_id="p", prompt="rain", model_prompt="rain")


def listed(name: str) -> Listed:
    return Listed(
        sample_id=name,
        job_id=f"job of {name}",
        model_id="m",
        adapter_id=None,
        seed=1,
        duration=1.0,
        sample_rate=8_000,
        size=1,
        sha256=f"{1:064}",
        pcm_sha256=None,
        storage_path=f"samples/{name}.flac",
    )


def after(*events: Any) -> Dataset:
    dataset: Dataset | None = None
    for offset, event in enumerate(events):
        time = f"2026-01-31T12:00:{offset:02}.000000Z"
        recorded = Recorded(Position("datasets", 0, offset), "dataset-1", f"event-{offset}", time, event)
        dataset = evolve(dataset, recorded)
    assert dataset is not None
    return dataset


DONE = (CREATED, started(1), BUILT)


@pytest.mark.parametrize(
    ("events", "status", "refused"),
    [
        ((CREATED,), "queued", None),
        ((CREATED, started(1)), "building", None),
        ((CREATED, started(2)), "queued", "not the next one"),
        (DONE, "built", None),
        ((CREATED, BUILT), "queued", "is queued"),
        ((CREATED, started(1), FAILED), "failed", None),
        ((CREATED, started(1), FAILED, started(2)), "failed", "is failed"),
        ((CREATED, started(1), attempt_failed(released=True)), "queued", None),
        ((CREATED, started(1), started(2), BUILT), "building", "attempt 1 is over"),
        ((CREATED, CREATED), "queued", "created before"),
        ((*DONE, requested("supervised")), "built", "has no supervised export"),
        ((*DONE, requested("preference"), requested("preference")), "built", "export is requested"),
        ((*DONE, exported("preference")), "built", "no such export"),
        ((*DONE, requested("preference"), exported("preference", erasures=1)), "built", "there were 0"),
        ((*DONE, erased(1, "f"), erased(1, "g")), "built", "not the next one"),
        ((CREATED, erased(1, "f")), "queued", "is queued"),
    ],
)
def test_events_are_accepted_in_their_order_and_refused_with_a_reason(
    events: Sequence[Any], status: str, refused: str | None
) -> None:
    dataset = after(*events)
    assert dataset.status == status
    reason = dataset.outcomes[-1].reason
    assert (reason is None) if refused is None else (refused in (reason or ""))


def test_an_erasure_outdates_exports_and_one_that_is_asked_for_again_knows_of_it() -> None:
    dataset = after(*DONE, requested("preference"), exported("preference"), erased(1, "f2", "f1", jobs=("j",)))
    assert (dataset.erased_feedback, dataset.erased_jobs, dataset.erased) == (("f1", "f2"), ("j",), 3)
    assert dataset.sample_count == 8
    export = dataset.export("preference")
    assert export is not None
    assert export.status == "outdated"
    [event] = datasets.export(dataset, "dataset-1", "preference", "request-9")
    again = after(
        *DONE, requested("preference"), exported("preference"), erased(1, "f2"), event,
        exported("preference", "request-9", erasures=1),
    )  # fmt: skip
    export = again.export("preference")
    assert export is not None
    assert export.status == "exported"


def test_a_repeated_command_appends_nothing() -> None:
    dataset = after(*DONE, requested("preference"))
    assert datasets.create(dataset, "digest-1", lambda: CREATED) == []
    assert datasets.export(dataset, "dataset-1", "preference", "r") == []
    with pytest.raises(KeyReusedError):
        datasets.create(dataset, "digest-2", lambda: CREATED)
    with pytest.raises(NotFoundError):
        datasets.export(None, "nobody", "preference", "r")
    with pytest.raises(InvalidError, match="preference or unpaired"):
        datasets.export(dataset, "dataset-1", "supervised", "r")
    with pytest.raises(ConflictError, match="create another"):
        datasets.export(after(CREATED, started(1), FAILED), "dataset-1", "preference", "r")
    failed = after(*DONE, requested("preference"), export_failed("preference"))
    assert len(datasets.export(failed, "dataset-1", "preference", "r")) == 1


def test_the_last_failure_ends_it() -> None:
    dataset = after(CREATED, started(1))
    assert isinstance(datasets.report_failure(dataset, "x", "later"), type(attempt_failed(released=False)))
    tired = replace(dataset, failures=MAX_FAILURES - 1)
    assert datasets.report_failure(tired, "x", "later").error == "x (tried 3 times)"
    assert isinstance(datasets.report_failure(dataset, "x", None), type(FAILED))


def judged(*choices: tuple[str | None, Choice]) -> list[Compared]:
    numbers = numbered([user for user, _ in choices])
    return [
        Compared(id=f"f{at}", by=by, choice=choice)
        for at, (by, (_, choice)) in enumerate(zip(numbers, choices, strict=True))
    ]


@pytest.mark.parametrize(
    ("choices", "kind", "weight", "votes"),
    [
        ([("ann", "first")], "first", 1, 1),
        ([("ann", "second"), ("bob", "second"), ("cid", "first")], "second", 1, 3),
        ([("ann", "first"), ("bob", "second")], "tied", 0, 2),
        ([("ann", "first"), ("ann", "first"), ("ann", "first"), ("bob", "second")], "tied", 0, 2),
        ([("ann", "first"), ("ann", "second"), ("bob", "second")], "second", 1, 2),
        ([(None, "first"), (None, "first"), (None, "second")], "first", 1, 3),
        ([("ann", "tie")], "tied", 0, 1),
        ([("ann", "both_bad"), ("bob", "both_bad"), ("cid", "first")], "bad", 0, 3),
        ([("ann", "both_bad"), ("bob", "first")], "first", 1, 2),
    ],
)
def test_net_votes_of_listeners_settle_a_pair(
    choices: list[tuple[str | None, Choice]], kind: str, weight: int, votes: int
) -> None:
    item = compare(BASE, listed("a"), listed("b"), judged(*choices), Filters())
    match item:
        case PairItem():
            assert item.first.sample_id == {"first": "a", "second": "b"}[kind]
            assert (item.weight, item.n_votes) == (weight, votes)
        case BadItem():
            assert (kind, item.n_votes) == ("bad", votes)
        case reason:
            assert reason == kind


CHOICES = st.sampled_from(["first", "second", "tie", "both_bad"])
USERS = st.sampled_from(["ann", "bob", "cid", None])


@given(st.lists(st.tuples(USERS, CHOICES), min_size=1, max_size=12))
def test_whoever_is_named_first_a_pair_comes_out_the_same(choices: list[tuple[str | None, Choice]]) -> None:
    one, other = listed("a"), listed("b")
    turn: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}
    straight = compare(BASE, one, other, judged(*choices), Filters())
    turned = compare(BASE, other, one, judged(*((user, turn[choice]) for user, choice in choices)), Filters())
    if isinstance(straight, BadItem):
        assert isinstance(turned, BadItem)
    else:
        assert straight == turned
    if not isinstance(straight, str):
        assert compare(straight, straight.first, straight.second, straight.judgements, Filters()) == straight


def test_erased_judgements_may_turn_a_pair_around_or_leave_nothing() -> None:
    votes = judged(("ann", "first"), ("bob", "first"), ("cid", "second"), ("dan", "second"), ("eve", "first"))
    item = compare(BASE, listed("a"), listed("b"), votes, Filters())
    assert isinstance(item, PairItem)
    turned = without(item, {"f0", "f1"}, set(), Filters())
    assert isinstance(turned, PairItem)
    assert (turned.first.sample_id, turned.weight, turned.n_votes) == ("b", 1, 3)
    assert without(item, {"f0"}, set(), Filters()) == "tied"
    assert without(item, {f"f{at}" for at in range(5)}, set(), Filters()) == "erased"
    assert without(item, set(), {"job of b"}, Filters()) == "deleted"
    assert without(item, {"f9"}, {"another"}, Filters()) is item
    assert without(item, {"f0", "f1"}, set(), Filters(min_votes=4)) == "few_votes"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 4.0),
        ({"min_rating": 4.0}, 4.0),
        ({"min_rating": 4.5}, "rating"),
        ({"max_rating": 3.5}, "rating"),
        ({"min_votes": 3}, "few_votes"),
        ({"min_agreement": 1.0}, 4.0),
        ({"tags": ("warm", "dry")}, 4.0),
        ({"tags": ("dry",)}, "filtered"),
    ],
)
def test_ratings_are_means_of_listeners_means(filters: dict[str, Any], found: float | str) -> None:
    ratings = [
        Rated(id="f1", by=0, rating=5.0, tags=("warm",)), Rated(id="f2", by=0, rating=4.0),
        Rated(id="f3", by=1, rating=3.5), Rated(id="f4", by=2, tags=("late",)),
    ]  # fmt: skip
    item = rate(BASE, listed("a"), ratings, Filters(**filters))
    assert (item.rating_mean if isinstance(item, SampleItem) else item) == found
    if isinstance(item, SampleItem):
        assert (item.n_ratings, item.tags) == (2, ("late", "warm"))
    assert rate(BASE, listed("a"), ratings[3:], Filters()) == "unrated"


def test_takes_rating_at_the_bounds() -> None:
    assert takes_rating(Filters(), None)
    assert not takes_rating(Filters(min_rating=1.0), None)
    assert takes_rating(Filters(min_rating=4.0, max_rating=4.0), 4.0)


@given(st.text(min_size=1), st.integers(0, 2**32 - 1), st.floats(0, 0.9))
def test_a_prompt_stays_on_its_side_however_it_is_typed_and_while_more_is_held_out(
    prompt: str, seed: int, held_out: float
) -> None:
    side = split(prompt, seed, held_out)
    assert split(f"  {prompt} \n", seed, held_out) == side
    assert split(prompt, seed, 0.0) == "train"
    if side == "test":
        assert split(prompt, seed, 0.9) == "test"


def test_about_so_many_prompts_are_held_out() -> None:
    sides = [split(f"prompt {number}", 7, 0.25) for number in range(2_000)]
    assert 0.2 < sides.count("test") / len(sides) < 0.3


def test_listeners_are_checked_against_others_and_against_themselves() -> None:
    raters = Raters()
    for _ in range(4):
        choices = judged(("ann", "first"), ("bob", "first"), ("cid", "second"), ("ann", "first"), ("cid", "first"))
        raters.compared(["ann", "bob", "cid", "ann", "cid"], choices)
    raters.caught("ann", passed=True)
    raters.caught("cid", passed=False)
    ann, cid = raters.known["ann"], raters.known["cid"]
    assert (ann.repeated, ann.consistent, ann.caught, ann.passed) == (4, 4, 1, 1)
    assert (cid.repeated, cid.consistent, cid.caught, cid.passed) == (4, 0, 1, 0)
    assert raters.reliability("ann") > 0.6
    assert raters.reliability("cid") < 0.5
    assert raters.reliability(None) == raters.reliability("nobody") == Rater().reliability == 0.5
    told = raters.agreement()
    assert (told.listeners, told.repeated, told.consistent, told.caught, told.passed) == (3, 8, 4, 2, 1)
    assert told.compared == 4


def test_alpha_of_ratings_is_one_where_all_agree_and_about_zero_by_chance() -> None:
    agreeing = IntervalAgreement()
    for number in range(8):
        agreeing.add([1.0 + number / 2] * 3)
    assert agreeing.alpha() == pytest.approx(1.0)
    same = IntervalAgreement()
    same.add([0.1, 0.1, 0.1])
    assert same.alpha() is None
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example C: nominal 0.743, interval 0.849.
    table = [
        [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
        [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
    ]  # fmt: skip
    measured = IntervalAgreement()
    for unit in table:
        measured.add([float(value) for value in unit])
    assert measured.alpha() == pytest.approx(0.849, abs=0.0005)
    assert krippendorff_alpha(table) == pytest.approx(0.743, abs=0.0005)


def test_values_of_a_filter_are_kept_once_and_in_order() -> None:
    query = FilterQuery(tags=("b", " a ", "b"), adapter_ids=("x", None), start_date="2026-01-31", end_date="2026-01-31")
    filters = creation(DatasetRequest(name=" n ", type="supervised", filter_query=query), "d", "digest").filters
    assert (filters.tags, filters.adapter_ids) == (("a", "b"), (None, "x"))
    assert filters.start_date == "2026-01-31T00:00:00.000000Z"
    assert filters.end_date == "2026-01-31T23:59:59.999999Z"
