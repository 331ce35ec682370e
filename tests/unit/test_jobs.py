from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import jobs
from domain.aggregates import EVENTS
from domain.attempts import MAX_FAILURES
from domain.errors import ConflictError, KeyReusedError, NotFoundError
from domain.events import Event, Recorded, Undecodable, UnknownEvent
from domain.events.jobs import (
    JobAttemptFailed,
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobPurged,
    JobStarted,
)
from domain.events.progress import JobProgressed, WorkerAlive
from domain.events.prompts import PromptCreated
from domain.jobs import Job
from domain.outcomes import OUTCOMES
from tests.history import SUBMITTED, at, fold, job_after, recorded, sample

LATER = "2026-01-02T00:00:00.000000Z"
STARTED = JobStarted(job_id="job", attempt=1, worker_id="w1")
FAILED = JobFailed(job_id="job", attempt=1, error="no such key")
REQUEUED = JobAttemptFailed(job_id="job", attempt=1, error="out of memory", retry_at=LATER)
COMPLETED = JobCompleted(job_id="job", attempt=1)
CANCEL = JobCancelRequested(job_id="job")
CANCELLED = JobCancelled(job_id="job", worker_id="w1")
DELETED = JobDeleted(job_id="job")
PURGED = JobPurged(job_id="job")

STATES: dict[str, list[Any]] = {
    "queued": [],
    "requeued": [STARTED, REQUEUED],
    "processing": [STARTED],
    "one sample made": [STARTED, sample(0)],
    "all samples made": [STARTED, sample(0), sample(1)],
    "completed": [STARTED, sample(0), sample(1), COMPLETED],
    "failed": [STARTED, FAILED],
    "cancelling": [STARTED, CANCEL],
    "cancelled": [CANCEL],
    "deleted while queued": [DELETED],
    "deleted while processing": [STARTED, DELETED],
    "deleted when completed": [STARTED, sample(0), sample(1), COMPLETED, DELETED],
    "purged": [STARTED, sample(0), sample(1), COMPLETED, PURGED],
    "deleted and purged": [STARTED, sample(0), sample(1), COMPLETED, DELETED, PURGED],
}
PROPOSALS: dict[str, Any] = {
    "submit": SUBMITTED,
    "start 1": STARTED,
    "start 2": JobStarted(job_id="job", attempt=2, worker_id="w2"),
    "sample 1": sample(1),
    "sample of attempt 2": sample(1, attempt=2),
    "complete": COMPLETED,
    "attempt failed": REQUEUED,
    "fail": FAILED,
    "cancel": CANCEL,
    "cancelled": CANCELLED,
    "delete": DELETED,
    "purge": PURGED,
}
# What each state makes of each proposal: the status it leads to, "same" for accepted without effect, "-" for refused.
TABLE = """
                          submit  start 1     start 2     sample 1    sample of attempt 2  complete   attempt failed  fail    cancel      cancelled  delete      purge
queued                    -       processing  -           -           -                    -          -               -       cancelled   -          cancelled   -
requeued                  -       -           processing  -           -                    -          -               -       cancelling  -          cancelling  -
processing                -       -           processing  processing  -                    -          queued          failed  cancelling  -          cancelling  -
one sample made           -       -           processing  processing  -                    -          queued          failed  cancelling  -          cancelling  -
all samples made          -       -           processing  -           -                    completed  queued          failed  cancelling  -          cancelling  -
completed                 -       -           -           -           -                    -          -               -       -           -          completed   completed
failed                    -       -           -           -           -                    -          -               -       -           -          failed      failed
cancelling                -       -           -           -           -                    -          -               -       same        cancelled  cancelling  -
cancelled                 -       -           -           -           -                    -          -               -       same        same       cancelled   cancelled
deleted while queued      -       -           -           -           -                    -          -               -       same        same       same        cancelled
deleted while processing  -       -           -           -           -                    -          -               -       same        cancelled  same        -
deleted when completed    -       -           -           -           -                    -          -               -       -           -          same        completed
purged                    -       -           -           -           -                    -          -               -       -           -          completed   -
deleted and purged        -       -           -           -           -                    -          -               -       -           -          same        -
"""  # noqa: E501


def _table() -> list[tuple[str, str, str]]:
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in TABLE.strip("\n").splitlines()]
    header, *body = rows
    return [
        (state, proposal, result) for state, *results in body for proposal, result in zip(header, results, strict=True)
    ]


def test_the_table_covers_every_state_and_proposal() -> None:
    assert {(state, proposal) for state, proposal, _ in _table()} == {(s, p) for s in STATES for p in PROPOSALS}
    assert {type(event) for event in PROPOSALS.values()} == {
        event for event in EVENTS.values() if event.topic == "jobs"
    }


@pytest.mark.parametrize(("state", "proposal", "result"), _table())
def test_transition(state: str, proposal: str, result: str) -> None:
    before = job_after(*STATES[state])
    after = jobs.evolve(before, at(100, PROPOSALS[proposal]))
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


def test_a_job_begins_with_its_submission_and_nothing_else() -> None:
    for name, event in PROPOSALS.items():
        assert (fold([at(0, event)]) is None) is (name != "submit")


anything = st.one_of(
    st.sampled_from([*PROPOSALS.values(), *(sample(0), sample(0, attempt=2), sample(9))]),
    st.sampled_from(
        [
            PromptCreated(prompt_id="job", text="x"),
            JobProgressed(job_id="job", attempt=1, fraction=0.5, stage="decoding"),
            WorkerAlive(worker_id="job", model_id="m", state="ready"),
            UnknownEvent("JobPraised"),
            Undecodable("not JSON"),
        ]
    ),
    st.builds(JobStarted, job_id=st.just("job"), attempt=st.integers(-1, 5), worker_id=st.sampled_from(["w1", "w2"])),
    st.builds(JobCompleted, job_id=st.just("job"), attempt=st.integers(-1, 5)),
)
histories = st.lists(anything, max_size=30).map(lambda events: recorded(SUBMITTED, *events))
disorders = st.lists(anything, max_size=20).map(lambda events: recorded(*events))


@given(st.one_of(histories, disorders))
def test_any_events_in_any_order_fold_without_raising(history: list[Recorded]) -> None:
    job = fold(history)
    if job is not None:
        assert job.position == history[-1].position.offset
        assert len(job.outcomes) <= OUTCOMES


@given(histories)
def test_a_refused_event_changes_nothing_but_position_and_outcomes(history: list[Recorded]) -> None:
    job: Job | None = None
    for record in history:
        before, job = job, jobs.evolve(job, record)
        assert job is not None
        outcome = job.outcome(record.id)
        if before and outcome and outcome.reason and not isinstance(record.event, Undecodable):
            assert replace(job, position=before.position, outcomes=before.outcomes) == before


@given(histories)
def test_folding_twice_equals_folding_once(history: list[Recorded]) -> None:
    once = fold(history)
    assert fold(history, once) == once
    assert fold([record for record in history for _ in range(2)]) == once


@given(histories, st.data())
def test_an_event_sent_again_under_its_id_holds_once(history: list[Recorded], data: st.DataObject) -> None:
    """A producer that retries after an unknown outcome appends the same event at a second offset."""
    place = data.draw(st.integers(0, len(history) - 1))
    record = history[place]
    repeated = [*history[: place + 1], replace(record, position=replace(record.position, offset=place + 1))]
    once, twice = fold(history[: place + 1]), fold(repeated)
    assert once is not None
    assert twice is not None
    assert replace(twice, position=once.position) == once


@given(histories)
def test_a_closed_job_never_opens_again(history: list[Recorded]) -> None:
    job: Job | None = None
    for record in history:
        before, job = job, jobs.evolve(job, record)
        assert job is not None
        if before and not before.is_open:
            assert job.status == before.status


def test_the_first_of_two_claims_holds() -> None:
    job = job_after(STARTED, JobStarted(job_id="job", attempt=1, worker_id="w2"))
    assert job.worker_id == "w1"
    assert [outcome.reason for outcome in job.outcomes] == [
        None,
        None,
        "attempt 1 is not the next one, attempt 1 is on record",
    ]


def test_a_takeover_keeps_samples_and_shuts_the_old_attempt_out() -> None:
    taken = [STARTED, sample(0), JobStarted(job_id="job", attempt=2, worker_id="w2"), sample(1), sample(1, attempt=2)]
    job = job_after(*taken)
    assert [made.event.attempt for made in job.samples] == [1, 2]
    assert job.missing == []
    assert (job.worker_id, job.lost) == ("w2", 0)


def test_attempts_lost_in_a_row_are_counted() -> None:
    claims = [JobStarted(job_id="job", attempt=n, worker_id=f"w{n}") for n in (1, 2, 3)]
    assert job_after(*claims).lost == 2
    assert job_after(*claims, sample(0, attempt=3)).lost == 0


def test_failures_are_retried_up_to_the_limit() -> None:
    job = replace(job_after(STARTED), failures=MAX_FAILURES - 2)
    assert isinstance(jobs.report_failure(job, "out of memory", LATER), JobAttemptFailed)
    final = jobs.report_failure(replace(job, failures=MAX_FAILURES - 1), "out of memory", LATER)
    assert isinstance(final, JobFailed)
    assert final.error == f"out of memory (tried {MAX_FAILURES} times)"
    assert isinstance(jobs.report_failure(job, "bad request", None), JobFailed)


def test_a_released_attempt_does_not_count_as_a_failure() -> None:
    job = job_after(STARTED)
    released = jobs.evolve(job, at(9, jobs.release(job, LATER, "The worker was stopped.")))
    assert released is not None
    assert (released.status, released.failures) == ("queued", 0)


def test_damage_marks_the_job_suspect_and_leaves_it_usable() -> None:
    job = job_after(STARTED, Undecodable("not JSON"), sample(0), sample(1), COMPLETED)
    assert job.suspect
    assert job.status == "completed"


@pytest.mark.parametrize("state", STATES)
def test_repeating_a_command_appends_nothing(state: str) -> None:
    job = job_after(*STATES[state])
    assert job.deleted_at or jobs.submit(job, SUBMITTED.request_digest, lambda: SUBMITTED) == []
    for command in (jobs.cancel, jobs.delete):
        try:
            events = command(job, "job")
        except (ConflictError, NotFoundError):
            continue
        again = fold([at(100 + number, cast("Event", event)) for number, event in enumerate(events)], job)
        try:
            assert command(again, "job") == []
        except NotFoundError:
            assert command is jobs.delete


@pytest.mark.parametrize("state", [state for state in STATES if state.startswith("deleted")])
def test_a_deleted_job_cannot_be_submitted_again(state: str) -> None:
    with pytest.raises(ConflictError, match="Job job of this Idempotency-Key was deleted; use a new key for a new job"):
        jobs.submit(job_after(*STATES[state]), SUBMITTED.request_digest, lambda: SUBMITTED)


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_finished_job_cannot_be_cancelled(state: str) -> None:
    with pytest.raises(ConflictError, match=f"Job job is {state}; only a queued or processing job can be cancelled."):
        jobs.cancel(job_after(*STATES[state]), "job")


@pytest.mark.parametrize("command", [jobs.cancel, jobs.delete])
def test_commands_on_unknown_and_deleted_jobs_are_not_found(command: Any) -> None:
    for job in (None, job_after(*STATES["deleted when completed"])):
        with pytest.raises(NotFoundError):
            command(job, "job")


def test_an_idempotency_key_sent_with_another_request_is_refused() -> None:
    with pytest.raises(KeyReusedError):
        jobs.submit(job_after(), "another", lambda: SUBMITTED)


@pytest.mark.parametrize("state", ["cancelling", "cancelled", "deleted when completed", "purged"])
def test_stopped_deleted_and_purged_jobs_have_no_audible_samples(state: str) -> None:
    assert job_after(*STATES[state]).audible == ()


@pytest.mark.parametrize("state", STATES)
def test_only_a_deleted_job_that_may_have_audio_awaits_its_purge(state: str) -> None:
    assert job_after(*STATES[state]).awaits_purge is (state == "deleted when completed")
