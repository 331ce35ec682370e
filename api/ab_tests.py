"""Blind A/B tests: created from prompts and two arms, voted on, closed."""

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast, get_args

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED
from msgspec import Struct, convert
from msgspec.structs import asdict, replace

from api.http import pages, positions
from api.http.access import LISTEN
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.sealing import unknown
from api.http.services import Injected, Services
from api.prompts import IdempotencyKey
from commands import ab_tests as commands
from commands.ab_tests import VoteRequest
from commands.transact import begun, existing, identify, load, seen
from domain import verdicts
from domain.ab_tests import (
    AB_TESTS,
    AB_VOTES,
    ARMS,
    ABTest,
    PairStatus,
    Status,
    Vote,
    job_id,
    job_ids,
    pair_statuses,
)
from domain.errors import Fault, InvalidError
from domain.events.ab_tests import MAX_PAIRS, Arm, Choice
from domain.events.jobs import AdapterSnapshot
from domain.jobs import JOBS, Job
from domain.pairing import ABTestRequest, notice
from domain.ports import Query
from domain.verdicts import Results, results

VOTES_AT_ONCE: Final = 1_000
FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")


class PairBody(Struct, frozen=True, kw_only=True):
    """`job_a` and `job_b` are the jobs of the arms. A `failed` pair is left out: a job of it failed or was deleted."""

    pair: int
    prompt: str
    seed: int
    job_a: str
    job_b: str
    status: PairStatus


class ABTestItem(Struct, frozen=True, kw_only=True):
    """An arm without an adapter is the base model. `warnings` say what the model does not read of the prompts."""

    id: str
    name: str
    status: Status
    progress: str
    pairs_total: int
    pairs_generated: int
    pairs_failed: int
    adapter_a: str | None
    adapter_b: str | None
    notice: str | None
    warnings: list[str]
    model_id: str
    duration: float
    catch_trials: int
    user_id: str | None
    created_at: str
    ready_at: str | None
    closed_at: str | None


class ABTestBody(ABTestItem, frozen=True, kw_only=True):
    pairs: list[PairBody]


class Closing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing has to be said: send {}."""


class ArmAdapter(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    version: str


class Adapters(Struct, frozen=True, kw_only=True):
    """By arm; null is the base model."""

    A: ArmAdapter | None
    B: ArmAdapter | None


class VoteBody(Struct, frozen=True, kw_only=True):
    """In a catch trial both sides were of one arm."""

    vote_id: str
    choice: Choice
    left_arm: Arm
    right_arm: Arm
    adapters: Adapters


@post("/ab-tests", operation_id="createABTest", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["ab-tests"])
async def create_ab_test(
    services: Injected, data: JSONBody[ABTestRequest], idempotency_key: IdempotencyKey = None
) -> Response[ABTestBody]:
    """A job for each pair and arm follows; the test is `ready` once all have ended. A retry under the same
    `Idempotency-Key` is the same test.
    """
    request, owner = services.caller.signed(data), services.caller.idempotency_owner

    async def is_retry() -> bool:
        id_ = identify(services.journal, "abtest", owner, idempotency_key)
        return idempotency_key is not None and await load(services.views, AB_TESTS, id_) is not None

    async with services.quota.room(services.caller, _jobs(request), is_retry) as room:
        models = await services.models()
        receipt = await commands.create(services.journal, services.views, models, request, idempotency_key, owner=owner)
        room.positions = receipt.positions if receipt.events else ()
    test = await begun(services.journal, services.views, AB_TESTS, receipt, "A/B test")
    return Response(
        await _body(services, test),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/ab-tests/{receipt.id}", **positions.headers(*receipt.positions)},
    )


@get("/ab-tests", operation_id="listABTests", tags=["ab-tests"])
async def list_ab_tests(
    services: Injected,
    *,
    status: FromQuery[str | None] = None,
    adapter_id: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[ABTestItem]:
    """Newest first, without their pairs. `adapter_id` may be either arm's."""
    if status is not None and status not in get_args(Status):
        raise InvalidError([Fault("/status", f"status is {status!r}; it is one of {', '.join(get_args(Status))}.")])
    query = pages.query(limit, offset, cursor, equal={"status": status, "adapter_id": adapter_id})
    found = await pages.page(services.views, AB_TESTS, query, lambda test: test)
    # The others say themselves which pairs they have lost.
    generating = [ident for test in found.items if test.ready_at is None for ident in job_ids(test)]
    jobs = await services.views.get(JOBS, generating) if generating else {}
    items = [ABTestItem(**_fields(test, pair_statuses(test, jobs))) for test in found.items]
    return Page(items=items, **{name: value for name, value in asdict(found).items() if name != "items"})


@get("/ab-tests/{ab_test_id:str}", operation_id="getABTest", opt=CURRENT, tags=["ab-tests"])
async def get_ab_test(services: Injected, ab_test_id: FromPath[str]) -> Response[ABTestBody]:
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    return Response(await _body(services, test), headers=positions.headers(*seen(AB_TESTS, test)))


@post(
    "/ab-tests/{ab_test_id:str}/votes",
    operation_id="castVote",
    opt={**CURRENT, **LISTEN},
    status_code=HTTP_201_CREATED,
    tags=["ab-tests"],
)
async def cast_vote(services: Injected, ab_test_id: FromPath[str], data: JSONBody[VoteRequest]) -> Response[VoteBody]:
    """Tells which arm was on which side. Of a voter's votes on one trial the first counts: the same one again
    gets the same answer, and another one 409.
    """
    trial = (await services.seals.get()).open(data.trial_id)
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    if trial.ab_test_id != ab_test_id:
        raise unknown(data.trial_id)
    services.caller.check_voter(trial.voter)
    receipt = await commands.vote(services.journal, services.views, trial, data)
    body = VoteBody(
        vote_id=receipt.id,
        choice=data.choice,
        left_arm=trial.arm("left"),
        right_arm=trial.arm("right"),
        adapters=Adapters(A=_adapter(test.request.adapter_a), B=_adapter(test.request.adapter_b)),
    )
    return Response(body, status_code=HTTP_201_CREATED, headers=positions.headers(*receipt.positions))


@post(
    "/ab-tests/{ab_test_id:str}/close",
    operation_id="closeABTest",
    opt=CURRENT,
    status_code=HTTP_200_OK,
    tags=["ab-tests"],
)
async def close_ab_test(
    services: Injected,
    ab_test_id: FromPath[str],
    data: JSONBody[Closing],  # noqa: ARG001 -- {} alone is taken
) -> Response[ABTestBody]:
    """No vote counts from then on. Closing a closed test changes nothing."""
    receipt = await commands.close(services.journal, services.views, ab_test_id)
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    return Response(await _body(services, test), headers=positions.headers(*receipt.positions))


@get("/ab-tests/{ab_test_id:str}/results", operation_id="getABTestResults", tags=["ab-tests"])
async def get_results(
    services: Injected,
    ab_test_id: FromPath[str],
    file_format: Annotated[Literal["json", "csv"], QueryParameter(name="format")] = "json",
) -> Response[Results]:
    """What the votes say so far, with a verdict that may be looked at any time. With `format=csv`, every vote in a row.

    Votes on a pair that was lost later count on: leaving them out then could be used to choose the verdict.
    """
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    votes = [_judged(vote) for vote in await _votes(services, ab_test_id)]
    if file_format == "json":
        found = await asyncio.to_thread(results, votes, duration=test.request.duration)
        return Response(found, headers=positions.headers(*seen(AB_TESTS, test)))
    table = await asyncio.to_thread(_csv, votes, test.request.duration)
    headers = {"Content-Disposition": f'attachment; filename="{ab_test_id}.csv"'}
    return cast("Response[Results]", Response(table, media_type="text/csv", headers=headers))


ROUTES: Final = (create_ab_test, list_ab_tests, get_ab_test, cast_vote, close_ab_test, get_results)


def _jobs(request: ABTestRequest) -> int:
    """How many it asks for; none where it asks for more than a test may have, and is refused."""
    pairs = (len(request.prompt_ids or ()) + len(request.prompts or ())) * request.pairs_per_prompt
    return len(ARMS) * pairs if 0 < pairs <= MAX_PAIRS else 0


async def _votes(services: Services, ab_test_id: str) -> list[Vote]:
    """All that count, in the order of the log."""
    found: list[Vote] = []
    query = Query(equal={"ab_test_id": ab_test_id}, limit=VOTES_AT_ONCE)
    while page := await services.views.find(AB_VOTES, query):
        found += page
        query = replace(query, after=(page[-1].created_at, page[-1].id))
    return sorted(found, key=lambda vote: vote.position)


def _judged(vote: Vote) -> verdicts.Vote:
    event = vote.event
    return verdicts.Vote(
        voter=event.voter,
        pair=event.pair,
        choice=event.choice,
        left=event.left,
        catch=event.catch,
        heard_first=event.heard_first,
        seconds_left=event.seconds_left,
        seconds_right=event.seconds_right,
        time=vote.created_at,
    )


def _csv(votes: Sequence[verdicts.Vote], duration: float) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(verdicts.COLUMNS)
    for row in verdicts.rows(votes, duration=duration):
        table.writerow(["" if cell is None else _harmless(cell) for cell in row])
    return text.getvalue().encode()


def _harmless(cell: object) -> object:
    """A voter's name must not become a formula in the spreadsheet that opens the file."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


async def _body(services: Services, test: ABTest) -> ABTestBody:
    jobs: Mapping[str, Job] = await services.views.get(JOBS, job_ids(test))
    statuses = pair_statuses(test, jobs)
    pairs = [
        PairBody(
            pair=number,
            prompt=pair.prompt,
            seed=pair.seed,
            job_a=job_id(test.id, number, "A"),
            job_b=job_id(test.id, number, "B"),
            status=statuses[number],
        )
        for number, pair in enumerate(test.pairs)
    ]
    return ABTestBody(pairs=pairs, **_fields(test, statuses))


def _fields(test: ABTest, statuses: Sequence[PairStatus]) -> dict[str, Any]:
    request = test.request
    generated = statuses.count("generated")
    return {
        "id": test.id,
        "name": request.test_name,
        "status": test.status,
        "progress": f"{generated}/{len(statuses)} pairs generated",
        "pairs_total": len(statuses),
        "pairs_generated": generated,
        "pairs_failed": statuses.count("failed"),
        "adapter_a": request.adapter_a.id if request.adapter_a else None,
        "adapter_b": request.adapter_b.id if request.adapter_b else None,
        "notice": notice(request),
        "warnings": list(dict.fromkeys(warning for pair in request.pairs for warning in pair.warnings)),
        "model_id": request.model_id,
        "duration": request.duration,
        "catch_trials": request.catch_trials,
        "user_id": request.user_id,
        "created_at": test.created_at,
        "ready_at": test.ready_at,
        "closed_at": test.closed_at,
    }


def _adapter(adapter: AdapterSnapshot | None) -> ArmAdapter | None:
    return None if adapter is None else convert(adapter, ArmAdapter, from_attributes=True)
