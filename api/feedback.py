from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED, HTTP_204_NO_CONTENT
from msgspec import Struct
from msgspec.structs import replace

from api.audio import find_sample
from api.http import pages, positions
from api.http.pages import MAX_LIMIT, Page
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.jobs import shown
from api.prompts import IdempotencyKey
from commands import feedback as commands
from commands.transact import Receipt, load, seen
from domain.errors import Fault, InvalidError, NotFoundError, plain
from domain.events.feedback import RATINGS, FeedbackGiven, SampleSnapshot, Verdict
from domain.feedback import FEEDBACK, Feedback, FeedbackRequest, Revision
from domain.jobs import JOBS
from domain.ports import Query
from projections import figures
from projections.feedback import DIMENSIONS
from projections.figures import STEPS


class FeedbackBody(Struct, frozen=True, kw_only=True):
    """`preferred_over` is the other sample, whatever the verdict; `seconds_listened` is by sample."""

    id: str
    audio_id: str
    job_id: str
    rating: float | None
    preferred_over: str | None
    verdict: Verdict | None
    tags: list[str]
    notes: str | None
    user_id: str | None
    heard_first: str | None
    seconds_listened: dict[str, float]
    created_at: str
    updated_at: str


class Figures(Struct, frozen=True, kw_only=True):
    """`ratings` counts by rating. A preference is a win of the one sample's groups and a loss of the other's."""

    count: int
    mean_rating: float | None
    ratings: dict[str, int]
    wins: int
    losses: int
    ties: int
    both_bad: int


class GroupFigures(Figures, frozen=True, kw_only=True):
    """`key` is null for the base model, and for listeners without a name."""

    key: str | None


class FeedbackStatistics(Figures, frozen=True, kw_only=True):
    groups: list[GroupFigures]


@post("/feedback", operation_id="giveFeedback", opt=CURRENT, tags=["feedback"])
async def give_feedback(
    services: Injected, data: JSONBody[FeedbackRequest], idempotency_key: IdempotencyKey = None
) -> Response[FeedbackBody]:
    """Answers 202 with a Location where the feedback cannot be shown yet. Tags that are named twice count once."""
    receipt = await commands.give(
        services.journal,
        services.views,
        partial(_sample, services),
        services.caller.signed(data),
        idempotency_key,
        owner=services.caller.idempotency_owner,
    )
    return await _answer(services, receipt, HTTP_201_CREATED)


@get("/feedback", operation_id="listFeedback", tags=["feedback"])
async def list_feedback(
    services: Injected,
    *,
    audio_id: FromQuery[str | None] = None,
    job_id: FromQuery[str | None] = None,
    adapter_id: FromQuery[str | None] = None,
    model_id: FromQuery[str | None] = None,
    user_id: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    min_rating: FromQuery[float | None] = None,
    max_rating: FromQuery[float | None] = None,
    start_date: FromQuery[str | None] = None,
    end_date: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[FeedbackBody]:
    """Newest first. Every filter narrows; the dates bound `created_at`, and all bounds are inclusive."""
    equal = {
        "audio_id": audio_id,
        "job_id": job_id,
        "adapter_id": adapter_id,
        "model_id": model_id,
        "user_id": user_id,
        "tag": tag,
    }
    among = _ratings(min_rating, max_rating)
    start, end = pages.moment("start_date", start_date), pages.moment("end_date", end_date, end=True)
    return await _page(services, pages.query(limit, offset, cursor, equal=equal, among=among, start=start, end=end))


@get("/feedback/stats", operation_id="getFeedbackStatistics", tags=["feedback"])
async def get_statistics(
    services: Injected,
    *,
    group_by: FromQuery[str | None] = None,
    audio_id: FromQuery[str | None] = None,
    job_id: FromQuery[str | None] = None,
    adapter_id: FromQuery[str | None] = None,
    model_id: FromQuery[str | None] = None,
    user_id: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    min_rating: FromQuery[float | None] = None,
    max_rating: FromQuery[float | None] = None,
    start_date: FromQuery[str | None] = None,
    end_date: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
) -> FeedbackStatistics:
    """The figures of all feedback, or of what the filters leave; with `group_by` also those of the `limit` groups with
    the most feedback. Filtered by a sample, job, adapter or model they are that one's: its ratings, its wins and its
    losses. Without a filter, or with one alone, they come from counters; dates, ratings and several filters read the
    feedback itself, at most 100,000 of it.
    """
    if services.caller.is_restricted:
        # The counters know of everybody's.
        if user_id not in {None, services.caller.owner}:
            return FeedbackStatistics(**_figures(Counter()), groups=[])
        user_id = services.caller.owner
    if group_by is not None and group_by not in DIMENSIONS:
        raise InvalidError([Fault("/group_by", f"group_by is {group_by!r}; it is one of {', '.join(DIMENSIONS)}.")])
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidError([Fault("/limit", f"limit is {limit}; ask for 1 to {MAX_LIMIT} groups.")])
    equal = {
        "audio_id": audio_id,
        "job_id": job_id,
        "adapter_id": adapter_id,
        "model_id": model_id,
        "user_id": user_id,
        "tag": tag,
    }
    among = _ratings(min_rating, max_rating)
    start, end = pages.moment("start_date", start_date), pages.moment("end_date", end_date, end=True)
    query = pages.query(limit, 0, None, equal=equal, among=among, start=start, end=end)
    return await _statistics(services, query, group_by)


@get("/feedback/{feedback_id:str}", operation_id="getFeedback", opt=CURRENT, tags=["feedback"])
async def get_feedback(services: Injected, feedback_id: FromPath[str]) -> Response[FeedbackBody]:
    feedback = await _load(services, feedback_id)
    return Response(_body(feedback), headers=positions.headers(*seen(FEEDBACK, feedback)))


@put("/feedback/{feedback_id:str}", operation_id="reviseFeedback", opt=CURRENT, tags=["feedback"])
async def revise_feedback(
    services: Injected, feedback_id: FromPath[str], data: JSONBody[Revision]
) -> Response[FeedbackBody]:
    """Replaces the feedback as a whole: what is left out is gone, but for the sample that it is about. Answers 202
    where the revision cannot be shown yet.
    """
    caller, samples = services.caller, partial(_sample, services)
    if caller.is_restricted:
        data = caller.signed(data)
    elif caller.owner is not None and data.user_id is None:
        data = replace(data, user_id=(await _load(services, feedback_id)).user_id)
    receipt = await commands.revise(services.journal, services.views, samples, feedback_id, data)
    return await _answer(services, receipt, HTTP_200_OK)


@delete("/feedback/{feedback_id:str}", operation_id="eraseFeedback", opt=CURRENT, tags=["feedback"])
async def erase_feedback(services: Injected, feedback_id: FromPath[str]) -> Response[None]:
    """Erases it for good, from the log too."""
    receipt = await commands.erase(services.journal, services.views, feedback_id)
    await services.views.show(receipt.positions)
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers=positions.headers(*receipt.positions))


@get("/jobs/{job_id:str}/feedback", operation_id="listJobFeedback", tags=["feedback"])
async def list_job_feedback(
    services: Injected,
    job_id: FromPath[str],
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[FeedbackBody]:
    """What was said of the job's samples, newest first."""
    await shown(services, job_id)
    return await _page(services, pages.query(limit, offset, cursor, equal={"job_id": job_id}))


ROUTES: Final = (
    give_feedback,
    list_feedback,
    get_statistics,
    get_feedback,
    revise_feedback,
    erase_feedback,
    list_job_feedback,
)


async def _sample(services: Services, audio_id: str) -> SampleSnapshot | None:
    if (sample := await find_sample(services, audio_id)) is None:
        return None
    return SampleSnapshot(
        audio_id=sample.id,
        job_id=sample.job_id,
        prompt_id=sample.prompt_id,
        model_id=sample.model_id,
        adapter_id=sample.adapter.id if sample.adapter else None,
    )


async def _load(services: Services, feedback_id: str) -> Feedback:
    if feedback := await commands.find(services.views, feedback_id):
        return feedback
    raise NotFoundError("feedback", feedback_id)


async def _answer(services: Services, receipt: Receipt, status: int) -> Response[FeedbackBody]:
    headers = {"Location": f"/feedback/{receipt.id}", **positions.headers(*receipt.positions)}
    if not receipt.events or await services.views.show(receipt.positions):
        return Response(_body(await _load(services, receipt.id)), status_code=status, headers=headers)
    given = next(event for event in receipt.events if isinstance(event, FeedbackGiven))
    now = services.journal.now()
    pending = _content(given, receipt.id, given.created_at or now, now)
    return Response(pending, status_code=HTTP_202_ACCEPTED, headers=headers)


async def _page(services: Services, query: Query) -> Page[FeedbackBody]:
    """A deleted job's feedback is left out of a page until it is erased."""

    async def bodies(feedback: Sequence[Feedback]) -> list[FeedbackBody]:
        return [_body(each) for each in await commands.standing(services.views, feedback)]

    total = partial(figures.total, services.views, query, _partitions(services))
    if services.caller.is_restricted:
        # The counters know of everybody's.
        total = partial(services.views.count, FEEDBACK, query)
    return await pages.page_of(services.views, FEEDBACK, query, bodies, total)


async def _statistics(services: Services, query: Query, group_by: str | None) -> FeedbackStatistics:
    job_id = query.equal.get("job_id")
    if job_id is not None and (job := await load(services.views, JOBS, str(job_id))) and job.deleted_at:
        return FeedbackStatistics(**_figures(Counter()), groups=[])
    group, partitions = figures.only(query), _partitions(services)
    # What is filed under one tag may be under others too.
    is_counted = group_by is None or not query.equal or (group is not None and group_by == group[0] != "tag")
    if group is None or not is_counted:
        counts, found = await figures.counted(services.views, query, group_by, query.limit)
    else:
        (counts,) = await figures.of_groups(services.views, [group], partitions)
        found = []
        if group_by == group[0]:
            found = [(group[1], counts)] if counts else []
        elif group_by is not None:
            found = await figures.largest(services.views, group_by, query.limit, partitions)
    return FeedbackStatistics(
        **_figures(counts), groups=[GroupFigures(key=key, **_figures(each)) for key, each in found]
    )


def _partitions(services: Services) -> int:
    return services.journal.log.topics[FEEDBACK.name].partitions


def _figures(counts: Counter[str]) -> dict[str, Any]:
    ratings = {f"{step:g}": counts[f"{step:g}"] for step in STEPS}
    return {
        "mean_rating": figures.mean(counts),
        "ratings": ratings,
        **{name: counts[name] for name in ("count", "wins", "losses", "ties", "both_bad")},
    }


def _ratings(low: float | None, high: float | None) -> dict[str, Sequence[float]]:
    faults = [
        Fault(f"/{name}", f"{name} is {plain(bound)}; ratings go from {plain(RATINGS[0])} to {plain(RATINGS[1])}.")
        for name, bound in (("min_rating", low), ("max_rating", high))
        if bound is not None and not RATINGS[0] <= bound <= RATINGS[1]
    ]
    if low is not None and high is not None and low > high:
        faults.append(Fault("/min_rating", f"min_rating is {plain(low)}, above max_rating, which is {plain(high)}."))
    if faults:
        raise InvalidError(faults)
    if low is None and high is None:
        return {}
    return {"rating": [step for step in STEPS if (low or 0) <= step <= (high or RATINGS[1])]}


def _body(feedback: Feedback) -> FeedbackBody:
    return _content(feedback, feedback.id, feedback.created_at, feedback.updated_at)


def _content(given: Feedback | FeedbackGiven, id_: str, created_at: str, updated_at: str) -> FeedbackBody:
    return FeedbackBody(
        id=id_,
        audio_id=given.sample.audio_id,
        job_id=given.sample.job_id,
        rating=given.rating,
        preferred_over=given.other.audio_id if given.other else None,
        verdict=given.verdict,
        tags=list(given.tags),
        notes=given.notes,
        user_id=given.user_id,
        heard_first=given.heard_first,
        seconds_listened=dict(given.seconds_listened),
        created_at=created_at,
        updated_at=updated_at,
    )
