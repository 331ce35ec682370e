from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import ab_tests
from domain.ab_tests import ABTest, Vote, counted, evolve, job_id, vote_id
from domain.aggregates import EVENTS
from domain.contract.ab_tests import CLOSED, CREATED, TEST, ready, vote
from domain.contract.jobs import SUBMITTED
from domain.errors import ConflictError, InvalidError, KeyReusedError, NotFoundError
from domain.events import Event, Recorded, Undecodable, UnknownEvent
from domain.events.ab_tests import MAX_PAIRS, ABTestReady, ABVoteCast, Pair
from domain.events.jobs import AdapterSnapshot, JobCompleted, JobDeleted, JobFailed, JobStarted, JobSubmitted
from domain.events.prompts import PromptAttributes
from domain.jobs import Job
from domain.jobs import evolve as evolve_job
from domain.models import KNOWN, NANO, Registry
from domain.outcomes import OUTCOMES
from domain.pairing import ABTestRequest, check, creation, notice
from domain.ports import Position
from domain.prompts import Prompt
from tests.history import at as job_event
from tests.history import sample

STATES: dict[str, list[Event]] = {
    "generating": [],
    "ready": [ready()],
    "ready without pair 1": [ready(1)],
    "ready, pair 1 lost since": [ready(), ready(1)],
    "ready without pairs": [ready(0, 1)],
    "closed": [ready(), CLOSED],
    "closed while generating": [CLOSED],
    "closed, then generated": [CLOSED, ready(1)],
}
PROPOSALS: dict[str, Event] = {
    "create": CREATED,
    "ready": ready(),
    "pair 1 lost": ready(1),
    "no such pair": ready(0, 2),
    "vote on 0": vote(0),
    "vote on 1": vote(1),
    "vote on 2": vote(2),
    "another's vote": replace(vote(0), voter="bob"),
    "close": CLOSED,
}
# What each state makes of each proposal: the status it leads to, "same" for accepted without effect, "-" for refused.
TABLE = """
                          create  ready   pair 1 lost  no such pair  vote on 0  vote on 1  vote on 2  another's vote  close
generating                -       ready   ready        -             -          -          -          -               closed
ready                     -       -       ready        -             same       same       -          -               closed
ready without pair 1      -       -       -            -             same       -          -          -               closed
ready, pair 1 lost since  -       -       -            -             same       -          -          -               closed
ready without pairs       -       -       -            -             -          -          -          -               closed
closed                    -       -       closed       -             -          -          -          -               same
closed while generating   -       closed  closed       -             -          -          -          -               same
closed, then generated    -       -       -            -             -          -          -          -               same
"""  # noqa: E501


def at(offset: int, event: Event | UnknownEvent | Undecodable, event_id: str | None = None) -> Recorded:
    time = f"2026-01-01T00:{offset // 60:02}:{offset % 60:02}.000000Z"
    return Recorded(Position("abtests", 0, offset), TEST, event_id or f"event-{offset}", time, event)


def fold(history: list[Recorded], test: ABTest | None = None) -> ABTest | None:
    for recorded in history:
        test = evolve(test, recorded)
    return test


def recorded(*events: Any) -> list[Recorded]:
    return [at(offset, event) for offset, event in enumerate(events)]


def test_after(*events: Event) -> ABTest:
    test = fold(recorded(CREATED, *events))
    assert test is not None
    return test


test_after.__test__ = False  # type: ignore[attr-defined]


def _table() -> list[tuple[str, str, str]]:
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in TABLE.strip("\n").splitlines()]
    header, *body = rows
    return [
        (state, proposal, result) for state, *results in body for proposal, result in zip(header, results, strict=True)
    ]


def test_the_table_covers_every_state_and_proposal() -> None:
    assert {(state, proposal) for state, proposal, _ in _table()} == {(s, p) for s in STATES for p in PROPOSALS}
    assert {type(event) for event in PROPOSALS.values()} == {e for e in EVENTS.values() if e.topic == "abtests"}


@pytest.mark.parametrize(("state", "proposal", "result"), _table())
def test_transition(state: str, proposal: str, result: str) -> None:
    before = test_after(*STATES[state])
    after = evolve(before, at(100, PROPOSALS[proposal]))
    assert after is not None
    outcome = after.outcome("event-100")
    assert outcome is not None
    unchanged = replace(after, position=before.position, outcomes=before.outcomes) == before
    if result == "-":
        assert outcome.reason
        assert unchanged
    else:
        assert outcome.reason is None
        assert unchanged is (result == "same")
        assert after.status == (before.status if result == "same" else result)


def test_a_test_begins_with_its_creation_and_nothing_else() -> None:
    for name, event in PROPOSALS.items():
        assert (evolve(None, at(0, event)) is None) is (name != "create")


def test_pairs_lost_since_are_told_from_those_that_had_failed() -> None:
    test = test_after(ready(1), ready(0))
    assert (test.failed, test.left_out) == ((1,), (0, 1))
    assert (test.ready_at, test.closed_at) == ("2026-01-01T00:00:01.000000Z", None)


anything = st.one_of(
    st.sampled_from([*PROPOSALS.values(), SUBMITTED, UnknownEvent("ABTestPraised"), Undecodable("not JSON")]),
    st.builds(vote, st.integers(0, 3), st.sampled_from(["ann", "bob"])),
    st.builds(lambda failed: ready(*failed), st.lists(st.integers(0, 3), max_size=3)),
)
histories = st.lists(anything, max_size=30).map(lambda events: recorded(CREATED, *events))
disorders = st.lists(anything, max_size=20).map(lambda events: recorded(*events))


@given(st.one_of(histories, disorders))
def test_any_events_in_any_order_fold_without_raising(history: list[Recorded]) -> None:
    test = fold(history)
    if test is not None:
        assert test.position == history[-1].position.offset
        assert len(test.outcomes) <= OUTCOMES


@given(histories)
def test_folding_twice_equals_folding_once(history: list[Recorded]) -> None:
    once = fold(history)
    assert fold(history, once) == once
    assert fold([record for record in history for _ in range(2)]) == once


@given(histories)
def test_a_vote_counts_where_the_test_accepts_it(history: list[Recorded]) -> None:
    test: ABTest | None = None
    for record in history:
        found, test = counted(test, record), evolve(test, record)
        outcome = test.outcome(record.id) if test else None
        accepted = isinstance(record.event, ABVoteCast) and outcome is not None and outcome.reason is None
        assert (found is not None) is accepted
        assert found is None or (found.id, found.event) == (found.event.vote_id, record.event)
        assert counted(test, record) is None


def test_an_event_on_another_partition_counts_for_nothing() -> None:
    elsewhere = replace(at(9, vote(0)), position=Position("abtests", 1, 9))
    assert counted(test_after(ready()), elsewhere) is None


@pytest.mark.parametrize("state", STATES)
def test_repeating_a_command_appends_nothing(state: str) -> None:
    test = test_after(*STATES[state])
    assert ab_tests.create(test, CREATED.request_digest, lambda: CREATED) == []
    again = fold([at(100 + n, event) for n, event in enumerate(ab_tests.close(test, TEST))], test)
    assert ab_tests.close(again, TEST) == []


def test_a_second_vote_on_a_trial_is_refused() -> None:
    test = test_after(ready())
    [event] = ab_tests.cast(test, None, vote(0))
    earlier = counted(test, at(5, event))
    assert isinstance(earlier, Vote)
    with pytest.raises(ConflictError, match="There is a vote of this voter on this trial, and the first one counts"):
        ab_tests.cast(test, earlier, replace(vote(0), choice="tie"))


@pytest.mark.parametrize(
    ("state", "pair", "reason"),
    [
        ("generating", 0, "the test is generating"),
        ("closed", 0, "the test is closed"),
        ("ready", 2, "the test has no pair 2"),
        ("ready, pair 1 lost since", 1, "pair 1 is left out"),
    ],
)
def test_a_vote_that_would_not_count_is_refused_with_the_reason(state: str, pair: int, reason: str) -> None:
    with pytest.raises(ConflictError, match=f"The vote does not count: {reason}."):
        ab_tests.cast(test_after(*STATES[state]), None, vote(pair))


def test_commands_on_an_unknown_test_are_not_found() -> None:
    with pytest.raises(NotFoundError, match="There is no A/B test 'test-1'"):
        ab_tests.close(None, TEST)
    with pytest.raises(NotFoundError, match="There is no A/B test 'test-1'"):
        ab_tests.cast(None, None, vote(0))


def test_an_idempotency_key_sent_with_another_request_is_refused() -> None:
    with pytest.raises(KeyReusedError):
        ab_tests.create(test_after(), "another", lambda: CREATED)


def test_the_jobs_of_a_pair_differ_in_nothing_but_the_adapter() -> None:
    jobs = list(ab_tests.submissions(CREATED))
    assert [job.job_id for job in jobs] == [job_id(TEST, pair, arm) for pair in (0, 1) for arm in ab_tests.ARMS]
    assert [job.seeds for job in jobs] == [[7], [7], [8], [8]]
    assert [job.adapter for job in jobs] == [None, CREATED.adapter_b] * 2
    for a, b in (jobs[:2], jobs[2:]):
        assert replace(a, job_id=b.job_id, adapter=b.adapter) == b
    assert {job.ab_test_id for job in jobs} == {TEST}
    assert list(ab_tests.submissions(CREATED)) == jobs


def test_ids_of_trials_differ_by_test_pair_voter_and_kind() -> None:
    ids = [
        vote_id(test, pair, voter, catch)
        for test in ("t1", "t2")
        for pair in (0, 1)
        for voter in ("ann", "bob")
        for catch in (None, "A")
    ]
    assert len(set(ids)) == len(ids)


def jobs_of(*fates: tuple[str, str]) -> dict[str, Job]:
    """The jobs of a test's first pairs by their arms' fates."""
    lives: dict[str, list[Event]] = {
        "queued": [],
        "running": [JobStarted(job_id="job", attempt=1, worker_id="w1")],
        "completed": [
            JobStarted(job_id="job", attempt=1, worker_id="w1"),
            sample(0),
            JobCompleted(job_id="job", attempt=1),
        ],
    }
    lives["failed"] = [*lives["running"], JobFailed(job_id="job", attempt=1, error="no")]
    lives["deleted"] = [*lives["completed"], JobDeleted(job_id="job")]
    lives["stopping"] = [*lives["running"], JobDeleted(job_id="job")]
    submitted = JobSubmitted(
        job_id="job", prompt_id="p", prompt="rain", model_id="m", seeds=[7], duration=2.0, ab_test_id=TEST
    )
    found = {}
    for pair, both in enumerate(fates):
        for arm, fate in zip(ab_tests.ARMS, both, strict=True):
            job: Job | None = None
            for offset, event in enumerate([submitted, *lives[fate]]):
                job = evolve_job(job, job_event(offset, event))
            assert job is not None
            found[job_id(TEST, pair, arm)] = job
    return found


@pytest.mark.parametrize(
    ("fates", "statuses", "failed"),
    [
        ([("completed", "completed"), ("completed", "queued")], ["generated", "generating"], None),
        ([("completed", "completed"), ("completed", "completed")], ["generated", "generated"], ()),
        ([("completed", "failed"), ("completed", "completed")], ["failed", "generated"], (0,)),
        ([("completed", "completed"), ("deleted", "completed")], ["generated", "failed"], (1,)),
        ([("failed", "running"), ("completed", "completed")], ["failed", "generated"], None),
        ([("completed", "completed"), ("stopping", "completed")], ["generated", "failed"], None),
        ([("completed", "completed")], ["generated", "generating"], None),
    ],
)
def test_a_test_is_ready_once_all_its_jobs_have_ended(
    fates: list[tuple[str, str]], statuses: list[str], failed: tuple[int, ...] | None
) -> None:
    test, jobs = test_after(), jobs_of(*fates)
    assert ab_tests.pair_statuses(test, jobs) == statuses
    found = ab_tests.readiness(test, jobs)
    assert found == ([] if failed is None else [ABTestReady(ab_test_id=TEST, failed=failed)])
    again = fold([at(100, event) for event in found], test)
    assert again is not None
    if found:
        assert ab_tests.readiness(again, jobs) == ab_tests.losses(again, jobs) == []


def test_a_pair_whose_job_is_deleted_later_is_lost() -> None:
    test = test_after(ready(1))
    jobs = jobs_of(("deleted", "completed"), ("completed", "failed"))
    assert ab_tests.losses(test, jobs) == [ready(0)]
    assert ab_tests.pair_statuses(test, jobs) == ["failed", "failed"]
    assert ab_tests.pair_statuses(test, {}) == ["generated", "failed"]
    assert ab_tests.losses(test_after(), jobs) == []


REGISTRY = Registry(NANO, KNOWN)
ADAPTER = AdapterSnapshot(id="a1", name="jazz", version="1", base_model=NANO.id, storage_path="adapters/a1")


def make(*, stored: dict[str, Prompt] | None = None, adapters: tuple[Any, Any] = (None, None), **fields: Any) -> Any:
    request = ABTestRequest(**{"name": "duel", **({} if "prompt_ids" in fields else {"prompts": ["rain"]}), **fields})
    check(request)
    return creation(
        request, ab_test_id=TEST, stored=stored or {}, registry=REGISTRY, adapters=adapters, digest="digest"
    )


def prompt(ident: str, **attributes: Any) -> Prompt:
    return Prompt(
        id=ident,
        text=f"text of {ident}",
        attributes=PromptAttributes(**attributes),
        user_id=None,
        created_at="",
        partition=0,
        position=0,
    )


def test_every_prompt_makes_pairs_each_with_a_seed_of_its_own() -> None:
    made = make(prompts=["rain", "snow"], pairs_per_prompt=2, seed=2**32 - 2)
    assert [(pair.prompt, pair.seed) for pair in made.pairs] == [
        ("rain", 2**32 - 2),
        ("rain", 2**32 - 1),
        ("snow", 0),
        ("snow", 1),
    ]
    assert [event.text for event in ab_tests.own_prompts(made)] == ["rain", "snow"]
    assert {event.prompt_id for event in ab_tests.own_prompts(made)} == {pair.prompt_id for pair in made.pairs}
    assert make().pairs == make().pairs


def test_stored_prompts_are_worded_with_their_attributes_and_are_not_made_again() -> None:
    made = make(prompt_ids=["p1"], stored={"p1": prompt("p1", mood="calm")})
    assert made.pairs == (
        Pair(prompt_id="p1", prompt="text of p1", model_prompt="text of p1, calm", seed=made.pairs[0].seed),
    )
    assert list(ab_tests.own_prompts(made)) == []


@pytest.mark.parametrize(
    ("durations", "asked", "expected"),
    [((4.0, 4.0), None, 4.0), ((4.0, 5.0), None, 8.0), ((4.0, None), None, 8.0), ((4.0, 4.0), 2.0, 2.0)],
)
def test_all_pairs_have_one_duration(durations: tuple[float | None, ...], asked: float | None, expected: float) -> None:
    stored = {f"p{n}": prompt(f"p{n}", duration=duration) for n, duration in enumerate(durations)}
    assert make(prompt_ids=list(stored), stored=stored, duration=asked).duration == expected


def test_a_test_of_equal_arms_says_that_it_is_an_aa_test() -> None:
    assert "Both arms are the base model: this is an A/A test" in (notice(make()) or "")
    assert "Both arms are the adapter jazz 1: this is an A/A test" in (notice(make(adapters=(ADAPTER, ADAPTER))) or "")
    assert notice(make(adapters=(None, ADAPTER))) is None


@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        ({"name": " "}, "/name", "The name is empty; say what the test is to find out."),
        ({"name": "x" * 201}, "/name", "name has 201 characters; it must have 1 to 200."),
        ({"name": "a\x1b[2J"}, "/name", "Character 2 of the name is U+001B, which is no text; take it out."),
        ({"prompts": None}, "/prompts", "Give either prompt_ids or prompts: stored prompts, or the texts of new ones."),
        ({"prompts": ["x"], "prompt_ids": ["p"]}, "/prompts", "Give either prompt_ids or prompts"),
        ({"prompts": []}, "/prompts", "prompts has 0 entries; give 1 to 500."),
        ({"prompt_ids": []}, "/prompt_ids", "prompt_ids has 0 entries; give 1 to 500."),
        ({"prompts": ["x"] * 501}, "/prompts", "prompts has 501 entries; give 1 to 500."),
        ({"prompts": ["x", " "]}, "/prompts/1", "The prompt is empty; say what you want to hear."),
        ({"prompts": ["x" * 4001]}, "/prompts/0", "The prompt has 4,001 characters; the limit is 4,000."),
        ({"pairs_per_prompt": 0}, "/pairs_per_prompt", "pairs_per_prompt is 0; ask for 1 to 500."),
        (
            {"prompts": ["x"] * 6, "pairs_per_prompt": 100},
            "/pairs_per_prompt",
            "6 prompts with 100 pairs each make 600 pairs; a test has at most 500.",
        ),
        (
            {"prompts": ["x"] * 30, "catch_trials": 4},
            "/catch_trials",
            "catch_trials is 4; with 30 pairs it goes from 0 to 3, one in ten of a voter's trials.",
        ),
        ({"catch_trials": -1}, "/catch_trials", "catch_trials is -1; with 1 pair it goes from 0 to 0"),
        (
            {"duration": 301},
            "/duration",
            "The requested duration is 301 s; text2song/musicgen-nano makes from 0.5 s to",
        ),
        ({"temperature": 9.5}, "/temperature", "temperature is 9.5; it must be from 0 to 5."),
        ({"top_p": 0}, "/top_p", "top_p is 0, which would leave no token to draw"),
        ({"seed": -1}, "/seed", "seed is -1; a seed is from 0 to 4294967295."),
        ({"user_id": ""}, "/user_id", "user_id has 0 characters; it must have 1 to 200."),
        ({"model_id": "nobody/knows"}, "/model_id", "Model nobody/knows is unknown"),
        (
            {"adapters": (None, replace(ADAPTER, base_model="facebook/musicgen-small"))},
            "/adapter_b",
            "Adapter requires facebook/musicgen-small but current model is text2song/musicgen-nano",
        ),
    ],
)
def test_bad_requests_are_told_the_value_and_its_limit(fields: dict[str, Any], pointer: str, detail: str) -> None:
    with pytest.raises(InvalidError) as raised:
        make(**fields)
    [fault] = raised.value.faults
    assert fault.pointer == pointer
    assert fault.detail.startswith(detail)


def test_limits_themselves_are_taken() -> None:
    assert len(make(prompts=["x"] * 5, pairs_per_prompt=100).pairs) == MAX_PAIRS
    assert make(prompts=["x"] * 9, catch_trials=1).catch_trials == 1
