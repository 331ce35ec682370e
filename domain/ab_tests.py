"""A blind test of two arms, each an adapter or the base model, on pairs of one prompt and seed.

    generating ──▶ ready ──▶ closed          a test may also be closed while it is generating

`ABTestCreated` is the whole intention: the jobs follow from it, and a reaction submits them and says when they have
ended. Votes are documents of their own: a test that held them would grow with every voter.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, Literal, TypeAlias
from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct
from msgspec.structs import replace

from domain.correlation import Correlation
from domain.errors import ConflictError, KeyReusedError, NotFoundError
from domain.events import Recorded
from domain.events.ab_tests import (
    MAX_PAIRS,
    ABTestClosed,
    ABTestCreated,
    ABTestEvent,
    ABTestReady,
    ABVoteCast,
    Arm,
    Pair,
)
from domain.events.jobs import JobSubmitted
from domain.events.prompts import PromptCreated
from domain.jobs import Job
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View

Status: TypeAlias = Literal["generating", "ready", "closed"]
PairStatus: TypeAlias = Literal["generating", "generated", "failed"]
ARMS: Final[tuple[Arm, Arm]] = ("A", "B")


class ABTest(Judged, frozen=True, kw_only=True):
    """`failed` are the pairs that had failed when the test became ready, `left_out` those and the pairs lost since."""

    id: str
    request: ABTestCreated
    status: Status
    created_at: str
    partition: int
    position: int
    failed: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    ready_at: str | None = None
    closed_at: str | None = None
    correlation: Correlation | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return self.request.pairs


class Vote(Struct, frozen=True, kw_only=True):
    """A vote that counts: the first of its voter on its trial. `event_id` is that of the event."""

    id: str
    event: ABVoteCast
    event_id: str
    created_at: str
    position: int


AB_TESTS: Final = View(
    "abtests",
    ABTest,
    fields=lambda test: {
        "status": test.status,
        "user_id": test.request.user_id,
        "adapter_id": tuple(dict.fromkeys(arm.id for arm in (test.request.adapter_a, test.request.adapter_b) if arm)),
    },
    filters=("status", "user_id", "adapter_id"),
    several=("adapter_id",),
)
AB_VOTES: Final = View(
    "ab_votes", Vote, fields=lambda vote: {"ab_test_id": vote.event.ab_test_id}, filters=("ab_test_id",)
)


@lru_cache(maxsize=8 * MAX_PAIRS)
def job_id(ab_test_id: str, pair: int, arm: Arm) -> str:
    return str(uuid5(NAMESPACE_URL, f"abtest:{ab_test_id}:{pair}:{arm}"))


def job_ids(test: ABTest) -> list[str]:
    return [job_id(test.id, number, arm) for number in range(len(test.pairs)) for arm in ARMS]


def prompt_id(ab_test_id: str, number: int) -> str:
    """The id of the prompt that came with a test as its text."""
    return str(uuid5(NAMESPACE_URL, f"prompt of abtest:{ab_test_id}:{number}"))


def vote_id(ab_test_id: str, pair: int, voter: str, catch: Arm | None = None) -> str:
    """The same for every vote of the voter on one trial: the pair's own, or the catch trial that repeats a side of it.

    Published: the foreign consumers compute it too.
    """
    kind = "catch" if catch else "pair"
    return str(uuid5(NAMESPACE_URL, f"abvote:{ab_test_id}:{pair}:{kind}:{voter}"))


def ready_id(ready: ABTestReady) -> str:
    """The event's id: processes that say the same say it once."""
    return str(uuid5(NAMESPACE_URL, f"abtest:{ready.ab_test_id}:ready:{ready.failed}"))


def submissions(test: ABTestCreated) -> Iterator[JobSubmitted]:
    """The jobs of the test, pair by pair. Both arms of a pair have the same seed."""
    for number, pair in enumerate(test.pairs):
        for arm, adapter in zip(ARMS, (test.adapter_a, test.adapter_b), strict=True):
            yield JobSubmitted(
                job_id=job_id(test.ab_test_id, number, arm),
                prompt_id=pair.prompt_id,
                prompt=pair.prompt,
                model_prompt=pair.model_prompt,
                warnings=pair.warnings,
                model_id=test.model_id,
                model_revision=test.model_revision,
                seeds=[pair.seed],
                duration=test.duration,
                sampling=test.sampling,
                parameters=test.parameters,
                lyrics=test.lyrics,
                adapter=adapter,
                user_id=test.user_id,
                ab_test_id=test.ab_test_id,
            )


def own_prompts(test: ABTestCreated) -> Iterator[PromptCreated]:
    """The prompts that came with the test as texts."""
    texts = {pair.prompt_id: pair.prompt for pair in test.pairs}
    for number in range(len(texts)):
        if (own := prompt_id(test.ab_test_id, number)) in texts:
            yield PromptCreated(prompt_id=own, text=texts[own], user_id=test.user_id)


def is_lost(job: Job | None) -> bool:
    """Whether the job's pair can never be heard, or no longer."""
    return job is not None and (job.deleted_at is not None or job.status in {"failed", "cancelling", "cancelled"})


def pair_statuses(test: ABTest, jobs: Mapping[str, Job]) -> list[PairStatus]:
    """Of each pair, by its jobs' documents. Those of a test that became ready are needed only for later losses."""
    return [_pair_status(test, number, jobs) for number in range(len(test.pairs))]


def _pair_status(test: ABTest, number: int, jobs: Mapping[str, Job]) -> PairStatus:
    both = [jobs.get(job_id(test.id, number, arm)) for arm in ARMS]
    if number in test.left_out or any(map(is_lost, both)):
        return "failed"
    is_made = test.ready_at is not None or all(job is not None and job.status == "completed" for job in both)
    return "generated" if is_made else "generating"


def readiness(test: ABTest, jobs: Mapping[str, Job]) -> list[ABTestReady]:
    """Says that the test is ready once all its jobs have ended, whatever came of them."""
    if test.ready_at is not None or any(id_ not in jobs or jobs[id_].is_open for id_ in job_ids(test)):
        return []
    failed = (number for number, status in enumerate(pair_statuses(test, jobs)) if status == "failed")
    return [ABTestReady(ab_test_id=test.id, failed=tuple(failed))]


def losses(test: ABTest, jobs: Mapping[str, Job]) -> list[ABTestReady]:
    """Says which pairs of a ready test are lost as well, as far as these jobs of it show that."""
    if test.ready_at is None:
        return []
    lost = {
        number
        for number in set(range(len(test.pairs))).difference(test.left_out)
        if any(is_lost(jobs.get(job_id(test.id, number, arm))) for arm in ARMS)
    }
    return [ABTestReady(ab_test_id=test.id, failed=tuple(sorted(lost)))] if lost else []


def create(test: ABTest | None, request_digest: str | None, creation: Callable[[], ABTestCreated]) -> list[ABTestEvent]:
    """`creation` is called for a new test alone. Raises KeyReusedError when the id was used for another request."""
    if test is None:
        return [creation()]
    if test.request.request_digest != request_digest:
        raise KeyReusedError("This Idempotency-Key was sent before with another request; use a new key for a new one.")
    return []


def cast(test: ABTest | None, earlier: Vote | None, vote: ABVoteCast) -> list[ABTestEvent]:
    """Nothing where it was cast before. Raises NotFoundError, and ConflictError for a vote that would not count."""
    if test is None:
        raise NotFoundError("A/B test", vote.ab_test_id)
    if earlier is not None and earlier.event == vote:
        return []
    if earlier is not None:
        raise ConflictError("There is a vote of this voter on this trial, and the first one counts. Ask for the next.")
    if (reason := _refusal(test, vote)) is not None:
        raise ConflictError(f"The vote does not count: {reason}.")
    return [vote]


def close(test: ABTest | None, ab_test_id: str) -> list[ABTestEvent]:
    if test is None:
        raise NotFoundError("A/B test", ab_test_id)
    return [] if test.status == "closed" else [ABTestClosed(ab_test_id=ab_test_id)]


def counted(test: ABTest | None, recorded: Recorded) -> Vote | None:
    """The vote of a record that the test, as it was before the record, accepts; an earlier one on its trial counts."""
    event, at = recorded.event, recorded.position
    if test is None or at.partition != test.partition or at.offset <= test.position:
        return None
    if not isinstance(event, ABVoteCast) or test.outcome(recorded.id) or _refusal(test, event):
        return None
    return Vote(
        id=event.vote_id,
        event=event,
        event_id=recorded.id,
        created_at=recorded.time,
        position=at.offset,
    )


def begun(event: ABTestCreated, recorded: Recorded) -> ABTest:
    return ABTest(
        id=event.ab_test_id,
        request=event,
        status="generating",
        created_at=recorded.time,
        partition=recorded.position.partition,
        position=recorded.position.offset,
        correlation=recorded.correlation,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def evolve(test: ABTest | None, recorded: Recorded) -> ABTest | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if test is None:
        return begun(recorded.event, recorded) if isinstance(recorded.event, ABTestCreated) else None
    return judge(test, recorded, _apply)


def _apply(test: ABTest, recorded: Recorded) -> ABTest | str:
    """The test after the event, or why the event is refused."""
    now = recorded.time
    match recorded.event:
        case ABTestReady(failed=failed):
            if unknown := [number for number in failed if number >= len(test.pairs)]:
                return f"the test has no pair {unknown[0]}"
            left_out = tuple(sorted({*test.left_out, *failed}))
            if test.ready_at is not None:
                return replace(test, left_out=left_out) if left_out != test.left_out else "the test was ready before"
            status: Status = "closed" if test.status == "closed" else "ready"
            return replace(test, status=status, failed=left_out, left_out=left_out, ready_at=now)
        case ABVoteCast() as vote:
            return _refusal(test, vote) or test
        case ABTestClosed():
            return test if test.status == "closed" else replace(test, status="closed", closed_at=now)
        case ABTestCreated():
            return "the test was created before"
        case _:
            return "not an event of an A/B test"


def _refusal(test: ABTest, vote: ABVoteCast) -> str | None:
    if test.status != "ready":
        return f"the test is {test.status}"
    if vote.pair >= len(test.pairs):
        return f"the test has no pair {vote.pair}"
    if vote.pair in test.left_out:
        return f"pair {vote.pair} is left out"
    if vote.vote_id != vote_id(vote.ab_test_id, vote.pair, vote.voter, vote.catch):
        return "its id is not that of the trial"
    return None
