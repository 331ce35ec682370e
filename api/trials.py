"""Blind trials: the next one of a voter, and the audio of its two sides. No answer tells what a side is."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeAlias

from litestar import Request, Response, get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT
from msgspec import Struct

from api.http.access import LISTEN
from api.http.positions import CURRENT
from api.http.renditions import AudioFile
from api.http.sealing import Seal, unknown
from api.http.services import Injected, Services
from api.http.streams import stream
from commands.transact import existing
from domain.ab_tests import AB_TESTS, AB_VOTES, ARMS, ABTest, job_id, vote_id
from domain.errors import ConflictError, DamagedError, Fault, InvalidError, NotFoundError, UnavailableError
from domain.events.ab_tests import Arm, Side
from domain.jobs import JOBS
from domain.trials import Trial, trials
from projections.audio import AudioSample, samples

RENDITION: Final = "matched 1"  # another number where the same masters would give other bytes
MAX_VOTER: Final = 200

logger: Final = logging.getLogger(__name__)

Voter = Annotated[str, QueryParameter(name="voter", min_length=1, max_length=MAX_VOTER)]
Arms: TypeAlias = Mapping[Arm, AudioSample]


class SideBody(Struct, frozen=True, kw_only=True):
    stream_url: str
    duration_seconds: float


class TrialBody(Struct, frozen=True, kw_only=True):
    """`remaining` counts the voter's trials without a vote, this one too."""

    trial_id: str
    prompt: str
    left: SideBody
    right: SideBody
    remaining: int


@get(
    "/ab-tests/{ab_test_id:str}/next",
    operation_id="getNextTrial",
    opt={**CURRENT, **LISTEN},
    tags=["ab-tests"],
    responses={
        HTTP_200_OK: ResponseSpec(TrialBody, description="The next trial", generate_examples=False),
        HTTP_204_NO_CONTENT: ResponseSpec(None, description="The voter has voted on every trial that can be heard"),
    },
)
async def next_trial(services: Injected, ab_test_id: FromPath[str], voter: Voter) -> Response[Any]:
    """The trial that `voter` is to vote on next, the same one until then; 204 when there is none left, and 410 when
    there are some, of which none can be heard.

    Each voter hears every pair once, in an order and on sides of their own.
    """
    if not voter.strip():
        raise InvalidError([Fault("/voter", f"voter is {voter!r}, which is blank. Send a name or id of the listener.")])
    services.caller.check_voter(voter)
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    if test.status != "ready":
        advice = "ask again when it is ready" if test.status == "generating" else "it takes no more votes"
        raise ConflictError(f"A/B test {ab_test_id} is {test.status}; {advice}.")
    seal = await services.seals.get()
    pairs = await _pairs(services, test)
    waiting, voted = await _waiting(services, test, voter, seal, pairs)
    count = len(waiting)
    while waiting:
        trial = waiting[0]
        try:
            await _render(services, seal, trial, pairs[trial.pair])
        except DamagedError:
            # The voter would be given it again and again.
            waiting = [other for other in waiting if other.pair != trial.pair]
            continue
        trial_id = seal.seal(trial)
        seconds = min(sample.duration_seconds for sample in pairs[trial.pair].values())
        url = f"/ab-tests/{ab_test_id}/trials/{trial_id}"
        body = TrialBody(
            trial_id=trial_id,
            prompt=test.pairs[trial.pair].prompt,
            left=SideBody(stream_url=f"{url}/left", duration_seconds=seconds),
            right=SideBody(stream_url=f"{url}/right", duration_seconds=seconds),
            remaining=len(waiting),
        )
        return Response(body, headers={"Cache-Control": "private, no-store"})
    if count and not voted:
        raise DamagedError(
            f"{voter} has not voted on {count} {'trial' if count == 1 else 'trials'}, whose audio is damaged or gone. "
            "Put sound copies in its place, or close the test."
        )
    return Response(None, status_code=HTTP_204_NO_CONTENT)


@get(
    "/ab-tests/{ab_test_id:str}/trials/{trial_id:str}/{side:str}",
    operation_id="getTrialAudio",
    opt={**CURRENT, **LISTEN},
    tags=["ab-tests"],
)
async def trial_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    ab_test_id: FromPath[str],
    trial_id: FromPath[str],
    side: FromPath[Side],
) -> Response[Any]:
    """One side of a trial as WAV, as loud and as long as the other. Honours Range, If-Range and If-None-Match."""
    seal = await services.seals.get()
    trial = seal.open(trial_id)
    if trial.ab_test_id != ab_test_id:
        raise unknown(trial_id)
    services.caller.check_voter(trial.voter)
    test = await existing(services.views, AB_TESTS, ab_test_id, "A/B test")
    arms = (await _pairs(services, test, only=trial.pair)).get(trial.pair)
    if arms is None:
        raise unknown(trial_id)
    file = (await _render(services, seal, trial, arms))[trial.arm(side)]
    with _neutral():
        return await stream(
            request.headers,
            file,
            etag=f'"{seal.mark("etag", trial_id, side, file.etag)}"',
            file_name=f"{side}.wav",
            media_type="audio/wav",
        )


ROUTES: Final = (next_trial, trial_audio)


async def _pairs(services: Services, test: ABTest, only: int | None = None) -> dict[int, Arms]:
    """The samples of each pair that both arms have one of: none of a job that failed, was deleted or purged."""
    numbers = set(range(len(test.pairs)) if only is None else [only]).difference(test.left_out)
    ids = {(pair, arm): job_id(test.id, pair, arm) for pair in numbers for arm in ARMS}
    jobs = await services.views.get(JOBS, list(ids.values()))
    heard = {
        at: next(samples(job))
        for at, id_ in ids.items()
        if (job := jobs.get(id_)) and job.status == "completed" and job.audible
    }
    return {
        pair: {arm: heard[pair, arm] for arm in ARMS} for pair in numbers if all((pair, arm) in heard for arm in ARMS)
    }


async def _waiting(
    services: Services, test: ABTest, voter: str, seal: Seal, usable: Collection[int]
) -> tuple[list[Trial], int]:
    """The voter's trials that have no vote, and how many have one."""
    given = [pair for pair in range(len(test.pairs)) if pair not in test.failed]
    left_out = [pair for pair in given if pair not in usable]
    found = trials(test.id, voter, given, test.request.catch_trials, left_out=left_out, key=seal.key)
    ids = [vote_id(test.id, trial.pair, voter, trial.catch) for trial in found]
    voted = await services.views.get(AB_VOTES, ids)
    return [trial for id_, trial in zip(ids, found, strict=True) if id_ not in voted], len(voted)


async def _render(services: Services, seal: Seal, trial: Trial, arms: Arms) -> Mapping[Arm, AudioFile]:
    """Both sides, whichever is asked for, so that the time it takes says nothing of either.

    Raises DamagedError for a pair that cannot be heard.
    """
    name = seal.mark(RENDITION, trial.ab_test_id, str(trial.pair))
    with _neutral():
        first, second = await services.renditions.get_matched(arms["A"], arms["B"], name)
    return {"A": first, "B": second}


@contextmanager
def _neutral() -> Iterator[None]:
    """Errors of stored files name the job, so they are for the log alone."""
    try:
        yield
    except (NotFoundError, DamagedError) as error:
        logger.warning("The audio of a blind trial cannot be had: %s", error)
        raise DamagedError("The audio of this trial is damaged or gone; ask for the next trial.") from None
    except UnavailableError as error:
        logger.warning("The audio of a blind trial cannot be had just now: %s", error)
        raise UnavailableError("The audio of this trial cannot be had just now; ask again.") from None
