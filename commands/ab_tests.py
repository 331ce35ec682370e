from collections.abc import Iterator
from functools import partial

from msgspec import Struct

from commands.jobs import find_adapter
from commands.transact import LOCAL, Receipt, Views, append, identify, load, read_back, seen, settle, transact
from domain import ab_tests, pairing
from domain.ab_tests import AB_TESTS, AB_VOTES, ARMS, ABTest, Vote, job_id, vote_id
from domain.errors import ConflictError, Fault, InvalidError, NotFoundError, plain
from domain.events.ab_tests import ABTestCreated, ABVoteCast, Choice, Side
from domain.events.feedback import MAX_SECONDS_LISTENED
from domain.feedback import notes_faults
from domain.idempotency import digest
from domain.jobs import JOBS
from domain.journal import Journal
from domain.models import Registry
from domain.pairing import ABTestRequest
from domain.ports import Position
from domain.prompts import PROMPTS
from domain.trials import Trial


class SecondsListened(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    left: float | None = None
    right: float | None = None


class VoteRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds_listened` is how long each side was played, `heard_first` the side that was played first."""

    trial_id: str
    choice: Choice
    heard_first: Side | None = None
    seconds_listened: SecondsListened = SecondsListened()
    notes: str | None = None


async def create(
    journal: Journal,
    views: Views,
    registry: Registry,
    request: ABTestRequest,
    idempotency_key: str | None,
    *,
    owner: str = LOCAL,
) -> Receipt:
    """Raises InvalidError, NotFoundError for a prompt or adapter, and KeyReusedError."""
    ab_test_id, request_digest = identify(journal, "abtest", owner, idempotency_key), digest(request)
    test = None if idempotency_key is None else await load(views, AB_TESTS, ab_test_id)
    stored = {} if test else await views.get(PROMPTS, request.prompt_ids or [])
    adapter_a, adapter_b = [
        await find_adapter(views, None if test else id_) for id_ in (request.adapter_a, request.adapter_b)
    ]

    def created() -> ABTestCreated:
        pairing.check(request)
        if missing := [ident for ident in request.prompt_ids or [] if ident not in stored]:
            raise NotFoundError("prompt", missing[0])
        return pairing.creation(
            request,
            ab_test_id=ab_test_id,
            stored=stored,
            registry=registry,
            adapters=(adapter_a("/adapter_a"), adapter_b("/adapter_b")),
            digest=request_digest,
        )

    events = ab_tests.create(test, request_digest, created)
    receipt = await append(journal, views, ab_test_id, events, seen(AB_TESTS, test))
    decide = partial(ab_tests.create, request_digest=request_digest, creation=created)
    return await settle(views, AB_TESTS, receipt, idempotency_key, decide)


async def vote(journal: Journal, views: Views, trial: Trial, request: VoteRequest) -> Receipt:
    """The receipt's id is the vote's. The same vote again appends nothing. Raises InvalidError, NotFoundError, and
    ConflictError for a vote that does not count, also where another one landed first.
    """
    if faults := [*_vote_faults(request)]:
        raise InvalidError(faults)
    ident = vote_id(trial.ab_test_id, trial.pair, trial.voter, trial.catch)
    cast = ABVoteCast(
        ab_test_id=trial.ab_test_id,
        vote_id=ident,
        pair=trial.pair,
        voter=trial.voter,
        choice=request.choice,
        left=trial.left,
        catch=trial.catch,
        heard_first=request.heard_first,
        seconds_left=request.seconds_listened.left,
        seconds_right=request.seconds_listened.right,
        notes=request.notes,
    )
    test = await load(views, AB_TESTS, trial.ab_test_id)
    earlier = await load(views, AB_VOTES, ident)
    events = ab_tests.cast(test, earlier, cast)
    if earlier is not None and not events:
        return _known(test, earlier)
    await _check_pair(views, trial)
    receipt = await append(journal, views, ident, events)
    await read_back(views, receipt.positions)
    counted = await load(views, AB_VOTES, ident)
    if counted is None or counted.event_id != receipt.event_id:
        # Raises with the reason, where it is one that the test has.
        if not ab_tests.cast(await load(views, AB_TESTS, trial.ab_test_id), counted, cast) and counted is not None:
            return _known(test, counted)
        raise ConflictError("The vote came too late and does not count.")
    return receipt


def _known(test: ABTest | None, vote: Vote) -> Receipt:
    """Of a vote that was cast before."""
    return Receipt(vote.id, tuple(Position(at.topic, at.partition, vote.position) for at in seen(AB_TESTS, test)))


async def close(journal: Journal, views: Views, ab_test_id: str) -> Receipt:
    return await transact(journal, views, AB_TESTS, ab_test_id, lambda test: ab_tests.close(test, ab_test_id))


async def _check_pair(views: Views, trial: Trial) -> None:
    """Raises ConflictError where the test does not say yet that the pair was lost."""
    both = await views.get(JOBS, [job_id(trial.ab_test_id, trial.pair, arm) for arm in ARMS])
    if any(map(ab_tests.is_lost, both.values())):
        raise ConflictError(f"The vote does not count: pair {trial.pair} is left out, as a job of it was deleted.")


def _vote_faults(request: VoteRequest) -> Iterator[Fault]:
    for side in ("left", "right"):
        seconds = getattr(request.seconds_listened, side)
        if seconds is not None and not 0 <= seconds <= MAX_SECONDS_LISTENED:
            detail = f"{side} is {plain(seconds)} s; it must be from 0 to {plain(MAX_SECONDS_LISTENED)} s."
            yield Fault(f"/seconds_listened/{side}", detail)
    yield from notes_faults(request.notes)
